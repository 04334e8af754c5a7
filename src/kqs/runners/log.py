"""The log of a worker process: what handlers say with ``job.log`` and what they print, with their jobs.

It goes to the server's stderr, as JSON lines when the server logs so.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
from typing import TextIO

import msgspec

from .capture import Named

#: Set for workers when their server logs as JSON lines.
AS_JSON = "KQS_LOG_JSON"
_jobs = logging.getLogger("kqs.job")
_own = logging.getLogger("kqs.worker")


def configure(stream: TextIO) -> None:
    """Log to a stream from now on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JSONLines() if os.environ.get(AS_JSON) else _PlainLines())
    for log in (_jobs, _own):
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def of(job: Named) -> logging.LoggerAdapter[logging.Logger]:
    """The logger a handler gets."""
    return logging.LoggerAdapter(_jobs, {"job": job.id, "type": job.type, "stream": "log"})


def printed(job: Named | None, stream: str, line: str) -> None:
    """Log a line that a job, or nobody knows which, printed."""
    about = {"job": job.id, "type": job.type} if job is not None else {}
    _jobs.info("%s", line, extra={**about, "stream": stream})


def error(text: str) -> None:
    """Log what is wrong with the worker itself."""
    _own.error("%s", text)


def _members(record: logging.LogRecord) -> dict[str, str]:
    return {name: getattr(record, name) for name in ("job", "type", "stream") if hasattr(record, name)}


class _JSONLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        members = _members(record)
        text = super().format(record).encode("utf-8", "replace").decode()  # odd file names hold surrogates
        told = {"event": "output", "line": text} if members else {"event": text}
        when = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line = {**members, **told, "level": record.levelname.lower(), "timestamp": when}
        return msgspec.json.encode(line).decode()


class _PlainLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        about = " ".join(f"{name}={value}" for name, value in _members(record).items())
        text = _harmless(super().format(record))
        return f"{when[:-6]}Z [{record.levelname.lower():<8}] {text} {about}".rstrip()


def _harmless(text: str) -> str:
    """Control characters of others must not act on the terminal; lines of a traceback stay lines."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
