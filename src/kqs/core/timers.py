"""Deadlines of many leases at O(1) each, for deadlines that are mostly cancelled before they come.

A lease is nearly always settled long before it expires, so a heap would fill with dead entries. Here
deadlines fall into buckets of 16.4 ms; a heap holds the buckets only.
"""

from __future__ import annotations

from heapq import heappop, heappush

BUCKET_BITS = 14  # 2**14 microseconds


class DeadlineWheel:
    """Deadlines of numbered things; a deadline is never reported early and at most a bucket late."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[int, int]] = {}
        self._order: list[int] = []

    def add(self, number: int, deadline: int) -> None:
        """Set a deadline (microseconds); the thing must not have one already."""
        key = deadline >> BUCKET_BITS
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = {}
            heappush(self._order, key)
        bucket[number] = deadline

    def remove(self, number: int, deadline: int) -> None:
        """Take back what :meth:`add` set; unknown ones are passed over."""
        bucket = self._buckets.get(deadline >> BUCKET_BITS)
        if bucket is not None:
            bucket.pop(number, None)

    def pop_due(self, now: int) -> list[int]:
        """Numbers whose bucket is over, in order of their deadlines."""
        due: list[tuple[int, int]] = []
        while self._order and (self._order[0] + 1) << BUCKET_BITS <= now:
            bucket = self._buckets.pop(heappop(self._order))
            due.extend((deadline, number) for number, deadline in bucket.items())
        due.sort()
        return [number for _deadline, number in due]

    def next_wake(self) -> int | None:
        """When :meth:`pop_due` should be called next; buckets emptied meanwhile are let go."""
        while self._order and not self._buckets[self._order[0]]:
            del self._buckets[heappop(self._order)]
        return (self._order[0] + 1) << BUCKET_BITS if self._order else None
