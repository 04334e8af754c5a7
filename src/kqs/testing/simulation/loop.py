"""Event loops in virtual time: several of them, one order of everything that happens.

Nothing waits and nothing runs beside anything else. When no callback is ready, time jumps to the next timer;
timers of the same moment go in an order drawn from the seed. Within a moment callbacks go in the order they
were scheduled, as asyncio promises.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from heapq import heappop, heappush
from random import Random
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Callbacks in one moment after which a run is taken for an endless loop.
_MOMENT = 100_000


class Stuck(Exception):
    """Nothing is left that could happen, or it happens for ever without time passing."""


class Timeline:
    """Virtual time, shared by all loops of a simulation.

    Args:
        random: decides the order of timers of the same moment.

    Attributes:
        now: nanoseconds since the start.
    """

    def __init__(self, random: Random) -> None:
        self.now = 0
        self.ready: deque[tuple[VirtualLoop, asyncio.Handle]] = deque()
        self._draw = random.random
        self._timers: list[tuple[int, float, int, VirtualLoop, asyncio.TimerHandle]] = []
        self._count = 0

    def seconds(self) -> float:
        """:attr:`now` in seconds."""
        return self.now / 1e9

    def add_timer(self, when: int, loop: VirtualLoop, handle: asyncio.TimerHandle) -> None:
        self._count += 1
        heappush(self._timers, (max(when, self.now), self._draw(), self._count, loop, handle))

    def run(self, over: Callable[[], bool]) -> None:
        """Let things happen until ``over()``, which is asked after each of them.

        Raises:
            Stuck: they never will be over.
        """
        ready, timers, moment = self.ready, self._timers, 0
        try:
            while not over():
                if ready:
                    loop, handle = ready.popleft()
                    moment += 1
                    if moment > _MOMENT:
                        raise Stuck(f"an endless loop at {self.seconds():.6f} s, in {handle}")
                elif timers:
                    when, _tie, _count, loop, handle = heappop(timers)
                    if when > self.now:
                        self.now = when
                        moment = 0
                else:
                    raise Stuck(f"nothing is left to happen at {self.seconds():.6f} s")
                if loop.alive and not handle.cancelled():
                    asyncio._set_running_loop(loop)
                    handle._run()
        finally:
            asyncio._set_running_loop(None)


class VirtualLoop(asyncio.AbstractEventLoop):
    """One process's event loop on a :class:`Timeline`. It can die, with all that was on its way in it.

    Args:
        timeline: time.
        report: told of exceptions nobody caught, in words.

    Attributes:
        alive: whether its callbacks are run.
    """

    def __init__(self, timeline: Timeline, report: Callable[[str], None]) -> None:
        self.timeline = timeline
        self.alive = True
        self._report = report
        self._tasks: list[asyncio.Task[Any]] = []

    def die(self) -> None:
        """Run nothing more, not even what is ready."""
        self.alive = False

    def clear(self) -> None:
        """Close what was under way when the loop died, now and in order, not when the collector finds it.

        What the coroutines do on their way out must have no effect: the world below them must be dead too.
        """
        tasks, self._tasks = self._tasks, []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that had not begun
            for task in tasks:
                if not task.done():
                    _close(task.get_coro())

    # -- what asyncio's futures, tasks and handles need -----------------------------------------

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.timeline.ready.append((self, handle))
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.timeline.add_timer(round(when * 1e9), self, handle)
        return handle

    def time(self) -> float:
        return self.timeline.now / 1e9

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.alive:  # a dead process's tasks are "destroyed while pending": so they should be
            self._report(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self.alive

    def is_closed(self) -> bool:
        return not self.alive

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asyncio tells of cancelled timers; they are passed over when their time comes."""


def _close(coro: Any) -> None:
    """Close a coroutine; one that goes on to wait, or fails, is closed again."""
    for _ in range(10):
        with suppress(Exception):
            coro.close()
            return
