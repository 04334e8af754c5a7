"""Runs a Python callable for a job and makes a value of whatever it does."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..core.handler import Job
from ..core.outcome import OK, Again, Attempted, Fail, Reason


class PythonRunner:
    """See :class:`kqs.ports.Runner`.

    Args:
        function: called with the job; what a coroutine function returns is awaited on a loop that lives as
            long as the runner.
    """

    def __init__(self, function: Callable[[Job], Any]) -> None:
        self._function = function
        self._loop: asyncio.Runner | None = None

    def run(self, job: Job, payload: bytes) -> Attempted:
        try:
            value = self._function(job)
            if inspect.iscoroutine(value):
                self._await(value)
        except Again as again:
            return Attempted("again", again.delay, Reason(again.reason or "asked to run again", "Again"))
        except Fail as fail:
            return Attempted("fail", None, Reason(fail.reason or "failed for good", "Fail"))
        except BaseException as error:  # SystemExit too: the worker outlives its jobs
            return Attempted("again", None, reason_of(error))
        return OK

    def _await(self, coroutine: Any) -> None:
        if self._loop is None:
            self._loop = asyncio.Runner()
        self._loop.run(coroutine)


def reason_of(error: BaseException) -> Reason:
    """An exception as a job's last error: the handler's own frames only."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    message = str(error).strip().splitlines()
    return Reason(message[0] if message else type(error).__name__, type(error).__name__, "".join(lines))


def _is_ours(trace: TracebackType) -> bool:
    return str(trace.tb_frame.f_globals.get("__name__", "")).startswith(("kqs.", "asyncio."))
