"""Runs a Python callable for a job, on its own or on an event loop, and makes a value of whatever it does."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import traceback
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from ..core.handler import Job
from ..core.outcome import OK, Again, Attempted, Fail, Reason
from ..core.retry import MAX_SECONDS
from ..ports import AsyncRunner

T = TypeVar("T")

#: Characters of a message and of a traceback that travel; of a traceback the last ones.
MAX_MESSAGE = 4000
MAX_TRACEBACK = 8000
#: Bytes of a result as JSON: its settlement must fit a line of the wire.
MAX_RESULT = 8 * 1024 * 1024


class PythonRunner:
    """See :class:`kqs.ports.Runner`.

    Args:
        function: called with the job; a coroutine it returns is awaited.
    """

    decodes = True

    def __init__(self, function: Callable[[Job], Any]) -> None:
        self._function = function

    def run(self, job: Job, payload: bytes) -> Attempted:
        context = contextvars.copy_context()  # what a job sets there, the next one does not see
        try:
            value = context.run(self._function, job)
            if inspect.iscoroutine(value):
                value = on_loop(value, context)
        except BaseException as error:  # SystemExit too: the worker outlives its jobs
            return raised(error)
        return returned(value, job)


class OneAtATime:
    """See :class:`kqs.ports.Runner`: runs the attempts of an asynchronous runner to their ends.

    Args:
        runner: what it runs.
    """

    def __init__(self, runner: AsyncRunner) -> None:
        self.decodes = runner.decodes
        self._runner = runner

    def run(self, job: Job, payload: bytes) -> Attempted:
        try:
            return on_loop(self._runner.arun(job, payload), contextvars.copy_context())
        except BaseException as error:  # of a task beside the handler's own, SystemExit
            return raised(error)


def on_loop(coroutine: Coroutine[Any, Any, T], context: contextvars.Context) -> T:
    """Run a coroutine on the loop all attempts of this process share, one at a time."""
    global _loop
    if _loop is None:
        _loop = asyncio.Runner()
    return _loop.run(coroutine, context=context)


_loop: asyncio.Runner | None = None


class AsyncPythonRunner:
    """See :class:`kqs.ports.AsyncRunner`.

    Args:
        function: called with the job; returns a coroutine.
    """

    decodes = True

    def __init__(self, function: Callable[[Job], Any]) -> None:
        self._function = function

    async def arun(self, job: Job, payload: bytes) -> Attempted:
        try:
            value = await self._function(job)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return raised(error)  # of a task the handler waited for
        except BaseException as error:  # SystemExit too: the worker outlives its jobs
            return raised(error)
        return returned(value, job)


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine, as far as can be told without calling it."""
    plain = inspect.unwrap(function)
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(type(plain).__call__)


def returned(value: Any, job: Job) -> Attempted:
    """What an attempt came to whose handler returned."""
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        return Attempted("fail", None, Reason("the handler is a generator: calling it runs nothing"))
    if not job.wants_result:
        return OK
    try:
        result = msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return Attempted("fail", None, Reason(f"the result is not JSON: {wire_text(error)}", "result"))
    if len(result) > MAX_RESULT:
        return Attempted("fail", None, Reason(f"the result is larger than {MAX_RESULT} bytes", "result"))
    return Attempted("ok", result=result)


def raised(error: BaseException) -> Attempted:
    """What an attempt came to whose handler raised."""
    if isinstance(error, Again):
        reason = Reason(wire_text(error.reason) or "asked to run again", "Again")
        return Attempted("again", _delay(error.delay), reason)
    if isinstance(error, Fail):
        return Attempted("fail", None, Reason(wire_text(error.reason) or "failed for good", "Fail"))
    return Attempted("again", None, reason_of(error))


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
