"""Real file systems that can be filled, cut off and taken away, and real system calls that fail."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from tests.support import until

#: Linux's EXT4_IOC_SHUTDOWN (fs/ext4/ext4.h) and its flag EXT4_GOING_FLAGS_NOLOGFLUSH: stop at once, and
#: write nothing of what is in memory, the file system's own journal included.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = (2).to_bytes(4, "little")


class Unavailable(Exception):
    """This machine, or this user, can't have such a file system."""


class FileSystem:
    """A file system of its own, mounted in a folder.

    Args:
        folder: where it goes; made when missing.
        kind: ``ext4``, on a loop device over a file beside the folder, or ``tmpfs``.
        size: bytes.

    Raises:
        Unavailable: it can't be made or mounted here.
    """

    def __init__(self, folder: Path, kind: str = "ext4", size: int = 64 << 20) -> None:
        self.folder = folder
        self._kind = kind
        self._size = size
        self._image = folder.with_suffix(".image")
        folder.mkdir()
        try:
            if kind == "ext4":
                with self._image.open("wb") as image:
                    image.truncate(size)
                _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
            self.mount()
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            raise Unavailable(f"needs a {kind} of its own (root, mount, loop devices): {reason}") from None

    def mount(self, *options: str) -> None:
        """Mount it; an ext4 has what it had when it was unmounted, or its power was cut."""
        if self._kind == "ext4":
            _run("mount", "-o", ",".join(("loop", *options)), str(self._image), str(self.folder))
        else:
            _run("mount", "-t", "tmpfs", "-o", f"size={self._size}", "kqs-test", str(self.folder))

    def remount(self, *options: str) -> None:
        _run("mount", "-o", ",".join(("remount", *options)), str(self.folder))

    def unmount(self, *options: str) -> None:
        """Unmount it, once the processes that were killed on it are gone."""

        def unmounted() -> bool:
            done = subprocess.run(
                ["umount", *options, str(self.folder)], capture_output=True, text=True, check=False
            )
            if done.returncode and "busy" not in done.stderr:
                raise AssertionError(done.stderr)
            return done.returncode == 0

        until(unmounted, "its users to be gone")

    def cut_power(self) -> None:
        """What is not durable by now is lost; everything fails until it is mounted again."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(fd)

    def fill(self, name: str = "full") -> Path:
        """Fill it to the last byte; returns the file to remove to have space again."""
        path = self.folder / name
        with path.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
        return path

    def discard(self) -> None:
        """Unmount it if it is mounted, whatever uses it."""
        if self.folder.is_mount():
            self.unmount("--lazy")


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True)


class Strace:
    """``strace`` around a server: makes system calls fail and writes down what happened.

    Args:
        log: the file it writes to.
        calls: what is traced: names, or ``/regex``.
        inject: expressions as ``fdatasync:error=EIO:when=2``; ``when`` counts in each thread.
        paths: only calls about these files are traced and fail.
    """

    def __init__(
        self, log: Path, calls: tuple[str, ...], inject: tuple[str, ...], paths: tuple[Path, ...] = ()
    ) -> None:
        self.log = log
        # -D: the server stays the process that was started; strace watches from aside.
        self.argv = ["strace", "-D", "-f", "--seccomp-bpf", "-q", "-y", "-o", str(log)]
        self.argv += ["-e", f"trace={','.join(calls)}"]
        for path in paths:
            self.argv += ["-P", str(path)]
        for expression in inject:
            self.argv += ["-e", f"inject={expression}"]

    def lines(self) -> list[str]:
        """The calls it wrote down so far, each as one ``PID CALL``, whatever came between its two halves."""
        text = self.log.read_text() if self.log.exists() else ""
        begun: dict[str, str] = {}
        lines = []
        for line in text.splitlines()[: text.count("\n")]:
            pid, rest = line.split(maxsplit=1)
            if rest.endswith("<unfinished ...>"):
                begun[pid] = rest.removesuffix("<unfinished ...>")
                continue
            if rest.startswith("<... "):
                rest = begun.pop(pid, "") + rest.partition(" resumed>")[2]
            lines.append(f"{pid} {rest}")
        return lines

    def injected(self) -> list[str]:
        """The calls that were made to fail."""
        return [line for line in self.lines() if "(INJECTED)" in line]

    def ended(self, pid: int) -> list[str]:
        """All it wrote, once the process is gone."""
        until(lambda: any(line.startswith(f"{pid} +++") for line in self.lines()), "strace to write the end")
        return self.lines()
