"""Executors without threads, so that a run depends on nothing but its inputs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

Work = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]


class _Finished(NamedTuple):
    done: Done
    result: Any
    error: BaseException | None


def _run(work: Work, done: Done) -> _Finished:
    try:
        return _Finished(done, work(), None)
    except BaseException as error:
        return _Finished(done, None, error)


class InlineExecutor:
    """A :class:`~kqs.ports.Executor` that works in ``submit`` and reports on the loop's next turn.

    Args:
        loop: where ``done`` runs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def submit(self, work: Work, done: Done) -> None:
        finished = _run(work, done)
        self._loop.call_soon(finished.done, finished.result, finished.error)

    def close(self) -> None:
        pass


class SteppedExecutor:
    """A :class:`~kqs.ports.Executor` that works when the test says so.

    A piece of work goes through two steps, as it does with a thread: :meth:`work` does it, :meth:`report`
    tells the loop's side. What the loop does between the two is up to the test.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Work, Done]] = deque()
        self._finished: deque[_Finished] = deque()
        self.closed = False

    def submit(self, work: Work, done: Done) -> None:
        if self.closed:
            raise RuntimeError("work was submitted to an executor that is closed")
        self._waiting.append((work, done))

    @property
    def waiting(self) -> int:
        """How much was submitted and not begun."""
        return len(self._waiting)

    @property
    def unreported(self) -> int:
        """How much is done and not reported."""
        return len(self._finished)

    def work(self) -> None:
        """Do the oldest piece of work."""
        self._finished.append(_run(*self._waiting.popleft()))

    def report(self) -> None:
        """Report the oldest piece of work that is done."""
        done, result, error = self._finished.popleft()
        done(result, error)

    def step(self) -> bool:
        """Do and report one piece of work; False when there is none."""
        if not self._finished:
            if not self._waiting:
                return False
            self.work()
        self.report()
        return True

    def run(self) -> None:
        """Do and report everything, also what that leads to."""
        while self.step():
            pass

    def close(self) -> None:
        """Do everything that was submitted; as with a thread that ends, what it led to is not reported."""
        while self._waiting:
            self.work()
        self.closed = True


class DelayedExecutor:
    """A :class:`~kqs.ports.Executor` whose thread takes its time, on a loop with virtual time.

    Work begins when what was submitted before is reported, one after the other; between its beginning and
    its report the loop goes on.

    Args:
        loop: whose time passes, and where ``done`` runs.
        delay: draws seconds: from submitting or the report before to the work, and from there to its report.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: Callable[[], float]) -> None:
        self._loop = loop
        self._delay = delay
        self._waiting: deque[tuple[Work, Done]] = deque()
        self._finished: deque[_Finished] = deque()
        self._busy = False
        self._closed = False

    def submit(self, work: Work, done: Done) -> None:
        if self._closed:
            return  # as nobody does what is put into the queue of a thread that has ended
        self._waiting.append((work, done))
        if not self._busy:
            self._busy = True
            self._loop.call_later(self._delay(), self._work)

    def _work(self) -> None:
        if self._waiting:
            self._finished.append(_run(*self._waiting.popleft()))
            self._loop.call_later(self._delay(), self._report)

    def _report(self) -> None:
        if self._finished:
            done, result, error = self._finished.popleft()
            done(result, error)
        if self._waiting:
            self._loop.call_later(self._delay(), self._work)
        else:
            self._busy = False

    def close(self) -> None:
        """Do everything that was submitted; it is reported on the loop's next turn."""
        self._closed = True
        while self._waiting:
            self._finished.append(_run(*self._waiting.popleft()))
        for _finished in self._finished:
            self._loop.call_soon(self._report)
