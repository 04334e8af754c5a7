"""Hands jobs to whoever asks, and lets those who ask too early wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

from ..ports import Engine, Lease

#: Stands for "all types" among types, which are never empty.
_ANY = ""


class _Waiter:
    __slots__ = ("types", "woken")

    def __init__(self, types: frozenset[str], woken: asyncio.Future[bool]) -> None:
        self.types = types
        self.woken = woken

    def wake(self, work: bool = True) -> None:
        """End the wait: True when there may be work, False when time is up."""
        if not self.woken.done():
            self.woken.set_result(work)


class Dispatch:
    """Parked ``reserve`` calls, woken one at a time as jobs become ready.

    Waking one, not all: the one woken wakes the next when it found something, so that a thousand idle
    workers do not all run for one job.

    Args:
        engine: where the jobs are.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[_Waiter, None] = {}
        self._of: dict[object, set[_Waiter]] = {}
        self._asked: dict[object, frozenset[str]] = {}
        self._served: Counter[str] = Counter()
        self.draining = False
        engine.on_ready(self.wake)

    async def reserve(
        self,
        types: frozenset[str],
        limit: int,
        wait: float,
        *,
        asker: object,
        holder: str,
        local: bool,
    ) -> list[Lease]:
        """Lease jobs, waiting up to ``wait`` seconds for the first; possibly none.

        Args:
            types: job types wanted; empty for all.
            limit: most jobs.
            wait: seconds.
            asker: who to name to :meth:`dismiss` when nobody is there any more.
            holder, local: see :meth:`kqs.ports.Engine.reserve`.
        """
        self._note(asker, types)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            if not self.draining:
                leases = await self._engine.reserve(types, limit, holder=holder, local=local)
                if leases:
                    if len(leases) == limit:
                        self.wake(types)
                    return leases
            if not await self._parked(types, asker, deadline - loop.time()):
                break
        return []

    async def _parked(self, types: frozenset[str], asker: object, seconds: float) -> bool:
        """Wait to be woken; False when time is up."""
        if seconds <= 0:
            return False
        loop = asyncio.get_running_loop()
        waiter = _Waiter(types, loop.create_future())
        self._waiting[waiter] = None
        self._of.setdefault(asker, set()).add(waiter)
        timer = loop.call_later(seconds, waiter.wake, False)
        try:
            return await waiter.woken
        except asyncio.CancelledError:
            if waiter.woken.done() and not waiter.woken.cancelled():
                self.wake(types)  # woken, but going: somebody else should look
            raise
        finally:
            timer.cancel()
            self._waiting.pop(waiter, None)
            self._of[asker].discard(waiter)
            if not self._of[asker]:
                del self._of[asker]

    def wake(self, types: Collection[str]) -> None:
        """Jobs of these types are ready (empty: of any): wake a waiter for each type."""
        if not self._waiting:
            return
        rest = set(types)
        for waiter in list(self._waiting):
            if waiter.woken.done():
                continue  # it gave up or its time is over, and it has not come round to leaving yet
            if not types or not waiter.types or not waiter.types.isdisjoint(rest):
                del self._waiting[waiter]
                waiter.wake()
                if not waiter.types:
                    return
                rest -= waiter.types
                if types and not rest:
                    return

    def _note(self, asker: object, types: frozenset[str]) -> None:
        """Remember what this asker serves."""
        if self._asked.get(asker) != types:
            self._forget(asker)
            self._asked[asker] = types
            self._served.update(types or (_ANY,))

    def _forget(self, asker: object) -> None:
        types = self._asked.pop(asker, None)
        if types is None:
            return
        for type_ in types or (_ANY,):
            self._served[type_] -= 1
            if not self._served[type_]:
                del self._served[type_]

    def asked(self, asker: object) -> frozenset[str] | None:
        """The types this asker asks for (empty: all), or None when it has not asked yet."""
        return self._asked.get(asker)

    def serves(self, type_: str) -> bool:
        """Whether a worker is connected that asked for jobs of this type, busy or not."""
        return type_ in self._served or _ANY in self._served

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def dismiss(self, asker: object) -> None:
        """Nobody is there to take a job: the waiting reserves of this asker get nothing, now."""
        self._forget(asker)
        for waiter in self._of.get(asker, ()):
            waiter.wake(False)

    def drain(self) -> None:
        """Hand out nothing more. Those who ask wait on: told to come back, they would ask without a pause."""
        self.draining = True

    def resume(self) -> None:
        """The end of a :meth:`drain`: everybody who waits looks again."""
        self.draining = False
        for waiter in list(self._waiting):
            waiter.wake()

    def close(self) -> None:
        """The end: all who wait get nothing, now."""
        self.draining = True
        for waiter in list(self._waiting):
            waiter.wake(False)
