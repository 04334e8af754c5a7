"""Which ready job is next: priority first, then insertion order.

Jobs are plain numbers here. A number that is queued is a hint, not a promise: the owner says at the time of
the pop whether the job is still ready, so that deleting or burying one costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from heapq import heapify, heappop, heapreplace

from .numbers import NumberQueue

PRIORITIES = 5


class ReadyQueue:
    """Ready jobs of all types and priorities: one :class:`~kqs.core.numbers.NumberQueue` for each pair."""

    def __init__(self) -> None:
        self._lanes: list[dict[str, NumberQueue]] = [{} for _ in range(PRIORITIES)]
        self._held: dict[str, list[NumberQueue | None]] = {}

    def hold(self, type_: str) -> None:
        """Give out no job of a type until :meth:`let_go`."""
        if type_ not in self._held:
            self._held[type_] = [lanes.pop(type_, None) for lanes in self._lanes]

    def let_go(self, type_: str) -> None:
        """The end of a :meth:`hold`."""
        for lanes, lane in zip(self._lanes, self._held.pop(type_, ()), strict=False):
            if lane is not None:
                lanes[type_] = lane

    def _lane(self, prio: int, type_: str) -> NumberQueue:
        """Where jobs of a type and priority wait."""
        if self._held and (held := self._held.get(type_)) is not None:
            lane = held[prio]
            if lane is None:
                lane = held[prio] = NumberQueue()
            return lane
        lane = self._lanes[prio].get(type_)
        if lane is None:
            lane = self._lanes[prio][type_] = NumberQueue()
        return lane

    def push(self, prio: int, type_: str, number: int) -> None:
        """A job became ready.

        Args:
            prio: 0 (urgent) .. 4 (bulk).
            type_: its job type.
            number: its number; lower runs first.
        """
        self._lane(prio, type_).push(number)

    def extend(self, prio: int, type_: str, numbers: list[int]) -> None:
        """:meth:`push` for many, in ascending order."""
        self._lane(prio, type_).extend(numbers)

    def pop(self, types: Collection[str], limit: int, still_ready: Callable[[int, int], bool]) -> list[int]:
        """Take up to ``limit`` jobs, most urgent first, oldest first among equals.

        Args:
            types: the job types wanted; empty for all.
            limit: how many at most.
            still_ready: called with (number, prio); a job it denies is dropped.
        """
        taken: list[int] = []
        for prio, lanes in enumerate(self._lanes):
            if not lanes:
                continue
            names = self._wanted(lanes, types)
            if len(names) == 1:
                self._drain(lanes, names[0], prio, limit, still_ready, taken)
            elif names:
                self._merge(lanes, names, prio, limit, still_ready, taken)
            if len(taken) >= limit:
                break
        return taken

    @staticmethod
    def _wanted(lanes: dict[str, NumberQueue], types: Collection[str]) -> list[str]:
        if not types:
            return list(lanes)
        if len(types) <= len(lanes):
            return [name for name in types if name in lanes]
        return [name for name in lanes if name in types]

    @staticmethod
    def _drain(
        lanes: dict[str, NumberQueue],
        name: str,
        prio: int,
        limit: int,
        still_ready: Callable[[int, int], bool],
        taken: list[int],
    ) -> None:
        lane = lanes[name]
        while lane and len(taken) < limit:
            number = lane.pop()
            if still_ready(number, prio):
                taken.append(number)
        if not lane:
            del lanes[name]

    @staticmethod
    def _merge(
        lanes: dict[str, NumberQueue],
        names: list[str],
        prio: int,
        limit: int,
        still_ready: Callable[[int, int], bool],
        taken: list[int],
    ) -> None:
        heads = [(lanes[name].head(), name) for name in names]
        heapify(heads)
        while heads and len(taken) < limit:
            name = heads[0][1]
            lane = lanes[name]
            number = lane.pop()
            if still_ready(number, prio):
                taken.append(number)
            if lane:
                heapreplace(heads, (lane.head(), name))
            else:
                heappop(heads)
                del lanes[name]

    def heads(self, still_ready: Callable[[int, int], bool]) -> Iterator[int]:
        """The oldest number of every lane; hints of jobs that are not ready any more are dropped.

        Args:
            still_ready: as in :meth:`pop`.
        """
        for prio, lanes in enumerate(self._lanes):
            for name in list(lanes):
                lane = lanes[name]
                while lane and not still_ready(lane.head(), prio):
                    lane.pop()
                if lane:
                    yield lane.head()
                else:
                    del lanes[name]
