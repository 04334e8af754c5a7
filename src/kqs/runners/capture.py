"""What handlers print goes to the server's log, each line with its job's id.

The worker's stdout and stderr are files in memory, made by the supervisor: writing to them never blocks, a
job that prints nothing costs nothing, and what a job said last is still there after its process died. The
worker logs the lines of each job when it ends, and while it runs when that is long; one position is shared by
all readers, so that no line is logged twice.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from time import sleep
from typing import BinaryIO, NamedTuple, Protocol, TextIO

#: Bytes of one job's output that are logged, stdout and stderr together.
MOST = 64 * 1024
#: Bytes of a line; a longer one is logged in parts.
LINE = 2 * 1024
#: Bytes at which a stream that nobody empties is thrown away.
OVERFLOW = 4 * 1024 * 1024
#: How often the output of a job that runs is looked at, seconds.
EVERY = 0.05
STREAMS = ("stdout", "stderr")


class Named(Protocol):
    """Whose output it is: a lease."""

    @property
    def id(self) -> str: ...

    @property
    def type(self) -> str: ...


#: Called with job (None: no job's), stream, line.
Log = Callable[[Named | None, str, str], None]


class Stream(NamedTuple):
    """One captured stream: two descriptors of a file; the position of the second is shared by all readers."""

    write: int
    read: int

    def size(self) -> int:
        """Bytes in it."""
        return os.lseek(self.write, 0, os.SEEK_END)  # it appends, wherever this leaves it

    def take(self, size: int = MOST + 1) -> bytes:
        """What was written since it was last read; after it was emptied, from the start."""
        data = os.read(self.read, size)
        if not data and self.size() < os.lseek(self.read, 0, os.SEEK_CUR):
            os.lseek(self.read, 0, os.SEEK_SET)
            data = os.read(self.read, size)
        return data

    def empty(self) -> None:
        """Forget what was written, read or not."""
        os.ftruncate(self.write, 0)
        os.lseek(self.read, 0, os.SEEK_SET)


def open_stream() -> Stream:
    """An empty stream; what is written to it is appended."""
    if hasattr(os, "memfd_create"):
        made = os.memfd_create("kqs-output")
        path = f"/proc/self/fd/{made}"
        try:
            return Stream(os.open(path, os.O_WRONLY | os.O_APPEND), os.open(path, os.O_RDONLY))
        finally:
            os.close(made)
    with tempfile.NamedTemporaryFile() as file:
        return Stream(os.open(file.name, os.O_WRONLY | os.O_APPEND), os.open(file.name, os.O_RDONLY))


class Lines:
    """Cuts one job's output into lines, and ends it at :data:`MOST` bytes.

    Args:
        log: told of every line.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._rest = dict.fromkeys(STREAMS, b"")
        self._left = MOST

    @property
    def full(self) -> bool:
        """Whether nothing more is logged."""
        return self._left < 0

    def add(self, job: Named | None, stream: str, data: bytes) -> None:
        """Log the lines that are whole now."""
        if self.full or not data:
            return
        cut = data[: self._left]
        *lines, rest = (self._rest[stream] + cut).split(b"\n")
        for line in lines:
            self._say(job, stream, line)
        while len(rest) > LINE:
            self._say(job, stream, rest[:LINE])
            rest = rest[LINE:]
        self._rest[stream] = rest
        self._left -= len(cut)
        if len(cut) < len(data):
            self.end(job)
            self._left = -1
            self._log(job, stream, f"truncated after {MOST} bytes")

    def end(self, job: Named | None) -> None:
        """Log the lines that were not ended; what follows is another job's."""
        for stream, rest in self._rest.items():
            if rest:
                self._say(job, stream, rest)
                self._rest[stream] = b""
        self._left = MOST

    def _say(self, job: Named | None, stream: str, line: bytes) -> None:
        text = line.decode("utf-8", "replace").removesuffix("\r")
        for at in range(0, len(text) or 1, LINE):
            self._log(job, stream, text[at : at + LINE])


class Capture:
    """The worker's side: logs what its jobs write to its stdout and stderr.

    Args:
        streams: of stdout and stderr.
        log: told of every line.
    """

    def __init__(self, streams: Sequence[Stream], log: Log) -> None:
        self._streams = streams
        self._stdout, self._stderr = sys.stdout, sys.stderr
        self._lock = threading.Lock()
        self._lines = Lines(log)
        self._job: Named | None = None
        self._busy = threading.Event()
        threading.Thread(target=self._follow, name="kqs-output", daemon=True).start()

    def begin(self, job: Named | None) -> None:
        """What is written from now on is this job's."""
        self._job = job

    def end(self) -> None:
        """The job has ended: log the rest of what it wrote. Quick when that is nothing: it is so for most."""
        out, err = self._streams
        try:
            self._stdout.flush()
            self._stderr.flush()
        except (OSError, ValueError):
            pass  # closed
        try:
            if not out.size() and not err.size():
                return
            with self._lock:
                self._take()
                self._lines.end(self._job)
                out.empty()
                err.empty()
        except OSError:
            pass  # closed, all of them: this process ends

    def follow(self, busy: bool) -> None:
        """Whether jobs run that may write; while none does nothing is looked at."""
        (self._busy.set if busy else self._busy.clear)()

    def _follow(self) -> None:
        while self._busy.wait():
            sleep(EVERY)
            with self._lock:
                self._take()

    def _take(self) -> None:
        for stream, name in zip(self._streams, STREAMS, strict=True):
            while not self._lines.full and (data := stream.take()):
                # Asked for after reading: a job that wrote something does not end while the lock is held.
                self._lines.add(self._job, name, data)


class Captured:
    """The supervisor's side: the streams of one worker, process after process."""

    def __init__(self) -> None:
        self.streams = (open_stream(), open_stream())
        self.log = os.dup(2)  # where the worker logs: our own log

    def bound(self) -> None:
        """Throw away what a worker can't keep up with: whatever is written, memory stays bounded."""
        for stream in self.streams:
            if stream.size() > OVERFLOW:
                os.ftruncate(stream.write, 0)  # readers start over

    def rest(self, job: Named | None, log: Log) -> None:
        """Log what a process that ended left unread, and be empty for the next one.

        Args:
            job: that was the only one to run, or None.
            log: told of every line.
        """
        lines = Lines(log)
        for stream, name in zip(self.streams, STREAMS, strict=True):
            lines.add(job, name, stream.take())
            stream.empty()
        lines.end(job)

    def close(self) -> None:
        for stream in self.streams:
            os.close(stream.write)
            os.close(stream.read)
        os.close(self.log)


class TaskOutput(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` of a worker that runs many jobs at once: a task prints as its job.

    Args:
        name: stdout or stderr.
        plain: the stream it stands for; gets what is no job's.
        current: the lines of the job whose code runs, and the job; None when none does.
    """

    def __init__(self, name: str, plain: TextIO, current: Callable[[], tuple[Lines, Named] | None]) -> None:
        self._name = name
        self._plain = plain
        self._current = current
        self._lock = threading.Lock()

    @classmethod
    def install(cls, current: Callable[[], tuple[Lines, Named] | None]) -> None:
        """Put one in the place of each of the two."""
        sys.stdout = cls("stdout", sys.stdout, current)
        sys.stderr = cls("stderr", sys.stderr, current)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._plain.encoding

    @property
    def buffer(self) -> BinaryIO:
        return self._plain.buffer

    def fileno(self) -> int:
        return self._plain.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        current = self._current()
        if current is None:
            return self._plain.write(text)
        lines, job = current
        with self._lock:
            lines.add(job, self._name, text.encode("utf-8", "replace"))
        return len(text)

    def flush(self) -> None:
        self._plain.flush()
