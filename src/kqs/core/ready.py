"""Which ready job is next: priority first, then insertion order.

Jobs are plain numbers here. A number that is queued is a hint, not a promise: the owner says at the time of
the pop whether the job is still ready, so that deleting or burying one costs nothing here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from heapq import heapify, heappop, heappush, heapreplace

PRIORITIES = 5


class _Lane:
    """The ready jobs of one type and priority, lowest number first.

    New jobs arrive in order and go to a deque; jobs that come back (retried, released, due) are older than
    its end and go to a heap. The next is the smaller of the two heads.
    """

    __slots__ = ("back", "fresh")

    def __init__(self) -> None:
        self.fresh: deque[int] = deque()
        self.back: list[int] = []

    def push(self, number: int) -> None:
        if not self.fresh or number > self.fresh[-1]:
            self.fresh.append(number)
        else:
            heappush(self.back, number)

    def head(self) -> int:
        """The next number; the lane must not be empty."""
        if not self.back:
            return self.fresh[0]
        if not self.fresh:
            return self.back[0]
        return min(self.fresh[0], self.back[0])

    def pop(self) -> int:
        if not self.back or (self.fresh and self.fresh[0] < self.back[0]):
            return self.fresh.popleft()
        return heappop(self.back)

    def __bool__(self) -> bool:
        return bool(self.fresh or self.back)


class ReadyQueue:
    """Ready jobs of all types and priorities."""

    def __init__(self) -> None:
        self._lanes: list[dict[str, _Lane]] = [{} for _ in range(PRIORITIES)]

    def push(self, prio: int, type_: str, number: int) -> None:
        """A job became ready.

        Args:
            prio: 0 (urgent) .. 4 (bulk).
            type_: its job type.
            number: its number; lower runs first.
        """
        lanes = self._lanes[prio]
        lane = lanes.get(type_)
        if lane is None:
            lane = lanes[type_] = _Lane()
        lane.push(number)

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
    def _wanted(lanes: dict[str, _Lane], types: Collection[str]) -> list[str]:
        if not types:
            return list(lanes)
        if len(types) <= len(lanes):
            return [name for name in types if name in lanes]
        return [name for name in lanes if name in types]

    @staticmethod
    def _drain(
        lanes: dict[str, _Lane],
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
        lanes: dict[str, _Lane],
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

    def heads(self) -> Iterator[int]:
        """The oldest number of every lane (some may not be ready any more)."""
        for lanes in self._lanes:
            for lane in lanes.values():
                yield lane.head()
