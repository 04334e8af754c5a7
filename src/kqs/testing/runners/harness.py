"""What the suite needs from who tests a runner, and the hands it tests with."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Literal, Protocol, TypeGuard, TypeVar

import msgspec
import pytest

from kqs.core.handler import Job
from kqs.core.outcome import Attempted
from kqs.ports import AsyncRunner, Runner

T = TypeVar("T")
AnyRunner = Runner | AsyncRunner

#: How a handler of the suite behaves. It
#:
#: - ``quiet``: succeeds and says nothing;
#: - ``again``: asks to run again, after ``RunnerHarness.delay`` seconds where it can name a delay;
#: - ``fail``: says that the job can never succeed, and ``no such picture``;
#: - ``crash``: ends by an error of its own, which says ``out of paper``;
#: - ``digest``: succeeds with the SHA-256 of the payload's bytes, in hexadecimal;
#: - ``echo``: succeeds with the payload, which is JSON;
#: - ``words``: succeeds with the text :data:`WORDS`, which is not JSON as it stands;
#: - ``flood``: succeeds with more than a result may be;
#: - ``unfit``: succeeds with what is neither a JSON value nor a text;
#: - ``hang``: begins and never ends.
Behaviour = Literal["quiet", "again", "fail", "crash", "digest", "echo", "words", "flood", "unfit", "hang"]
WORDS = 'done, and "well"\n\N{SNOWMAN}'

#: How long the suite waits for what must happen before it says that it did not, seconds. Never a speed limit.
PATIENCE = 60.0


class Running(Protocol):
    """An attempt that hangs."""

    def end(self) -> None:
        """End it as its worker does at the ttr, or when the job was cancelled; return when it is over."""
        ...


class RunnerHarness(ABC):
    """Makes runners of handlers that behave as told.

    Attributes:
        delay: seconds ``again`` asks for; None where the handler has no way to name a delay.
        max_result: bytes of the largest result as JSON text.
    """

    delay: float | None = None
    max_result: int = 8 * 1024 * 1024

    def __init__(self) -> None:
        self.loop = EventLoop()

    @abstractmethod
    def runner(self, behaviour: Behaviour) -> AnyRunner:
        """A runner of a handler that behaves like this."""

    @abstractmethod
    def begin(self) -> Running:
        """Start an attempt of ``hang``; return when its handler has begun."""

    @abstractmethod
    def wait_gone(self) -> None:
        """Return when nothing of the handler that :meth:`begin` started runs any more.

        Raises:
            AssertionError: it goes on running.
        """

    def close(self) -> None:
        """End what the harness started."""
        self.loop.close()

    def run(self, runner: AnyRunner, job: Job, payload: bytes) -> Attempted:
        """One attempt, from its beginning to its end, on whichever port the runner has."""
        return (
            runner.run(job, payload) if hasattr(runner, "run") else self.loop.run(runner.arun(job, payload))
        )


class EventLoop:
    """An event loop in a thread of its own, where attempts of asynchronous runners run."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def start(self, coroutine: Coroutine[Any, Any, Attempted]) -> Running:
        """Run a coroutine as a task that is cancelled by ``end``."""
        return _Task(self, coroutine)

    def close(self) -> None:
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


class _Task:
    """See :class:`Running`."""

    def __init__(self, loop: EventLoop, coroutine: Coroutine[Any, Any, Attempted]) -> None:
        self._loop = loop

        async def create() -> asyncio.Task[Attempted]:
            return asyncio.create_task(coroutine)

        self._task = loop.run(create())

    def end(self) -> None:
        async def cancel() -> None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=PATIENCE)

        self._loop.run(cancel())
        assert self._task.done(), "the attempt goes on although it was cancelled"
        assert self._task.cancelled(), "the attempt was cancelled and does not say so"


class Bystander:
    """The link of a job that nobody watches. See :class:`kqs.core.handler.JobLink`."""

    cancelled = False

    def progress(self, fraction: float | None, message: str) -> None:
        pass

    def renew(self) -> bool:
        return True


def runs_async(runner: AnyRunner) -> TypeGuard[AsyncRunner]:
    """Which of the two ports it has."""
    return hasattr(runner, "arun")


def new_job(
    runner: AnyRunner,
    payload: bytes = b"null",
    *,
    binary: bool = False,
    wants_result: bool = False,
    ttr: float = PATIENCE,
    attempt: int = 1,
    type: str = "suite",
) -> Job:
    """What a worker makes of a lease for this runner."""
    now = dt.datetime.now(dt.UTC)
    return Job(
        id="5eed5eed-1",
        type=type,
        data=msgspec.json.decode(payload) if runner.decodes and not binary else payload,
        attempt=attempt,
        prio="normal",
        inserted_at=now,
        deadline=now + dt.timedelta(seconds=ttr),
        log=logging.getLogger("kqs.job"),
        link=Bystander(),
        binary=binary,
        wants_result=wants_result,
    )


class Cases:
    """Base of all cases."""

    @pytest.fixture
    def attempt(self, harness: RunnerHarness) -> Attempt:
        return Attempt(harness)


class Attempt:
    """One attempt of a handler that behaves as told, as the cases make it."""

    def __init__(self, harness: RunnerHarness) -> None:
        self._harness = harness

    def __call__(
        self, behaviour: Behaviour, payload: bytes = b"null", *, binary: bool = False, result: bool = False
    ) -> Attempted:
        """Run it.

        Args:
            behaviour: of the handler.
            payload, binary: the job's.
            result: whether the job wants one.
        """
        runner = self._harness.runner(behaviour)
        job = new_job(runner, payload, binary=binary, wants_result=result)
        return self._harness.run(runner, job, payload)

    def value(self, behaviour: Behaviour, payload: bytes = b"null", *, binary: bool = False) -> Any:
        """The result of a successful attempt."""
        attempted = self(behaviour, payload, binary=binary, result=True)
        assert (attempted.outcome, attempted.reason) == ("ok", None)
        assert attempted.result is not None
        assert b"\n" not in attempted.result, "a settlement is one line"
        return msgspec.json.decode(attempted.result)
