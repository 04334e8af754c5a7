"""The real file system and the real thread behind the journal's ports."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from ..ports import DiskFile


class RealFile:
    """A :class:`~kqs.ports.DiskFile` over a file descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(self._fd, data, offset)

    def pread(self, size: int, offset: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            part = os.pread(self._fd, size, offset)
            if not part:
                break
            parts.append(part)
            size -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def allocate(self, size: int) -> None:
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(self._fd, size)  # a file system that can't reserve; writes may meet ENOSPC later

    def will_need(self, size: int, offset: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_WILLNEED)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def datasync(self) -> None:
        os.fdatasync(self._fd)
        if os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "a journal file was removed while the server uses it")

    def close(self) -> None:
        os.close(self._fd)


class RealDisk:
    """A :class:`~kqs.ports.Disk` over the operating system's files.

    Args:
        read_only: open files for reading only, so that a disk or files that cannot be written will do.
    """

    def __init__(self, *, read_only: bool = False) -> None:
        self._access = os.O_RDONLY if read_only else os.O_RDWR

    def open(self, path: str, *, create: bool = False) -> DiskFile:
        flags = self._access | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        return RealFile(os.open(path, flags, 0o600))

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def makedirs(self, path: str) -> None:
        make_directory(path)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_dir(self, path: str) -> None:
        _sync_directory(path)

    def free(self, path: str) -> tuple[int, int]:
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize


def make_directory(path: str, mode: int = 0o700) -> None:
    """Make a directory, and those above it that are missing, and make their names durable.

    A journal in a directory whose own name a power cut takes back would be gone with it. The directory above
    is synced every time, not only when something was made: an earlier start may have ended in between. Where
    it may not even be opened, it is somebody else's, and was there before.
    """
    above = [os.path.dirname(os.path.abspath(path))]
    while not os.path.isdir(above[-1]):
        above.append(os.path.dirname(above[-1]))
    os.makedirs(path, mode=mode, exist_ok=True)
    for folder in above:
        try:
            _sync_directory(folder)
        except PermissionError:
            continue


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class ThreadExecutor:
    """A :class:`~kqs.ports.Executor` over one dedicated thread.

    Args:
        loop: where the ``done`` callbacks run.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "kqs-journal") -> None:
        self._loop = loop
        self._queue: SimpleQueue[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]] | None]
        self._queue = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self._queue.put((work, done))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, done = item
            result: Any = None
            error: BaseException | None = None
            try:
                result = work()
            except BaseException as caught:
                error = caught
            if self._loop.is_closed():
                return
            self._loop.call_soon_threadsafe(done, result, error)
