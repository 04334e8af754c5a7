"""Runs a Python callable for a job and makes a value of whatever it does."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..core.handler import Job
from ..core.outcome import OK, Again, Attempted, Fail, Reason
from ..core.retry import MAX_SECONDS

#: Characters of a message and of a traceback that travel; of a traceback the last ones.
MAX_MESSAGE = 4000
MAX_TRACEBACK = 8000


class PythonRunner:
    """See :class:`kqs.ports.Runner`.

    Args:
        function: called with the job; what a coroutine function returns is awaited on a loop that lives as
            long as the runner.
    """

    decodes = True

    def __init__(self, function: Callable[[Job], Any]) -> None:
        self._function = function
        self._loop: asyncio.Runner | None = None

    def run(self, job: Job, payload: bytes) -> Attempted:
        context = contextvars.copy_context()  # what a job sets there, the next one does not see
        try:
            value = context.run(self._function, job)
            if inspect.iscoroutine(value):
                self._await(value, context)
            elif inspect.isgenerator(value) or inspect.isasyncgen(value):
                return Attempted("fail", None, Reason("the handler is a generator: calling it runs nothing"))
        except Again as again:
            reason = Reason(wire_text(again.reason) or "asked to run again", "Again")
            return Attempted("again", _delay(again.delay), reason)
        except Fail as fail:
            return Attempted("fail", None, Reason(wire_text(fail.reason) or "failed for good", "Fail"))
        except BaseException as error:  # SystemExit too: the worker outlives its jobs
            return Attempted("again", None, reason_of(error))
        return OK

    def _await(self, coroutine: Any, context: contextvars.Context) -> None:
        if self._loop is None:
            self._loop = asyncio.Runner()
        self._loop.run(coroutine, context=context)


def wire_text(text: object, longest: int = MAX_MESSAGE) -> str:
    """What a handler says, as it can travel: bounded, and without the lone surrogates of odd file names."""
    return str(text)[:longest].encode("utf-8", "replace").decode()


def _delay(delay: object) -> float | None:
    """The delay of an Again as the server takes it; what is no number of seconds is left to the policy."""
    if isinstance(delay, bool) or not isinstance(delay, int | float) or delay != delay:
        return None
    return min(max(0.0, float(delay)), MAX_SECONDS)


def reason_of(error: BaseException) -> Reason:
    """An exception as a job's last error: the handler's own frames only."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    name = type(error).__name__
    try:
        message = wire_text(error).strip().splitlines()
    except Exception:
        message = [f"{name} (its text cannot be had: str() failed)"]
    text = "".join(lines)[-MAX_TRACEBACK:]
    return Reason(message[0] if message else name, wire_text(name), wire_text(text, MAX_TRACEBACK))


def _is_ours(trace: TracebackType) -> bool:
    return str(trace.tb_frame.f_globals.get("__name__", "")).startswith(("kqs.", "asyncio."))
