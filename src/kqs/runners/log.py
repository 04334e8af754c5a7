"""The log of a worker process: what handlers say with ``job.log`` and what they print, with their jobs.

It goes to the server's stderr, as JSON lines when the server logs so; a line is one write, and not more than
a pipe takes in one piece, so that those of several processes do not mix.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
from select import PIPE_BUF

import msgspec

from .capture import Named

#: Set for workers when their server logs as JSON lines.
AS_JSON = "KQS_LOG_JSON"


class WorkerLog(logging.Handler):
    """Writes lines; also the handler behind ``job.log``.

    Args:
        fd: where to.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._json = bool(os.environ.get(AS_JSON))

    def printed(self, job: Named | None, stream: str, line: str) -> None:
        """A line that a job, or nobody knows which, printed."""
        about = {"job": job.id, "type": job.type} if job is not None else {}
        self._output("info", line, {**about, "stream": stream})

    def emit(self, record: logging.LogRecord) -> None:
        """What a handler said with ``job.log``."""
        about = {name: getattr(record, name) for name in ("job", "type")}
        self._output(record.levelname.lower(), self.format(record), {**about, "stream": "log"})

    def error(self, text: str) -> None:
        """What is wrong with the worker itself."""
        os.write(self._fd, self._line("error", {"event": text} if self._json else {}, text))

    def _output(self, level: str, text: str, about: dict[str, str]) -> None:
        # Odd file names hold surrogates, which JSON can't.
        own = {"event": "output", "line": text.encode("utf-8", "replace").decode()} if self._json else {}
        line = self._line(level, {**about, **own}, text)
        if len(line) <= PIPE_BUF or len(text) < 2:
            os.write(self._fd, line)
            return
        middle = len(text) // 2
        self._output(level, text[:middle], about)
        self._output(level, text[middle:], about)

    def _line(self, level: str, members: dict[str, str], text: str) -> bytes:
        now = dt.datetime.now(dt.UTC)
        if self._json:
            line = msgspec.json.encode({**members, "level": level, "timestamp": now})
        else:
            when = now.isoformat(timespec="microseconds").removesuffix("+00:00")
            about = " ".join(f"{name}={value}" for name, value in members.items())
            line = f"{when}Z [{level:<9}] {_harmless(text)} {_harmless(about)}".rstrip().encode()
        return line + b"\n"


_jobs = logging.getLogger("kqs.job")
_jobs.setLevel(logging.INFO)
_jobs.propagate = False


def configure(fd: int) -> WorkerLog:
    """The process's log."""
    log = WorkerLog(fd)
    _jobs.addHandler(log)
    return log


def of(job: Named) -> logging.LoggerAdapter[logging.Logger]:
    """The logger a handler gets."""
    return logging.LoggerAdapter(_jobs, {"job": job.id, "type": job.type})


def _harmless(text: str) -> str:
    """Control characters of others must not act on the terminal; lines of a traceback stay lines."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
