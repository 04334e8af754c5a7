"""Times at which something is due, at O(1) each: the ends of leases, and of delays.

A lease is nearly always settled long before it expires, so a heap would fill with dead entries; ten million
delayed jobs in a heap of tuples would take more than a gigabyte. Here times fall into buckets of 16.4 ms; a
heap holds the buckets only.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
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


class DueCalendar:
    """When delayed jobs are due: 8 bytes a job, exact to the microsecond.

    A number in a bucket is a hint: its owner tells, when the time has come, whether it still waits for it.

    Args:
        due_of: the time a number waits for, or None when it waits for none any more.

    Attributes:
        behind: whether the last :meth:`pop_due` stopped before it was through.
    """

    def __init__(self, due_of: Callable[[int], int | None]) -> None:
        self._due_of = due_of
        self._buckets: dict[int, array[int]] = {}
        self._order: list[int] = []
        self._at = 0  # in the first bucket: what is before it was looked at
        self._later = array("Q")  # of that part, what waits on
        self.behind = False

    def add(self, number: int, due: int) -> None:
        """A number waits for ``due`` (microseconds), which :attr:`due_of` tells as well."""
        key = due >> BUCKET_BITS
        bucket = self._buckets.get(key)
        if bucket is None:
            if self._at and key < self._order[0]:
                self._rewind()
            bucket = self._buckets[key] = array("Q")
            heappush(self._order, key)
        bucket.append(number)

    def _rewind(self) -> None:
        """The first bucket, looked at in part, is not the first any more."""
        key = self._order[0]
        self._buckets[key] = self._later + self._buckets[key][self._at :]
        self._at, self._later = 0, array("Q")

    def pop_due(self, now: int, most: int) -> list[int]:
        """Numbers whose time has come, the earliest first; the caller ends each one's waiting at once.

        Args:
            now: microseconds.
            most: look at so many at most, and go on there the next time: a million that are due at once must
                not hold up everybody else.
        """
        this = now >> BUCKET_BITS
        due: list[tuple[int, int]] = []
        while self._order and self._order[0] <= this and most > 0:
            key = self._order[0]
            bucket, whole = self._buckets[key], self._at == 0
            part = bucket[self._at : self._at + most]
            most -= len(part)
            self._at += len(part)
            for number in part:
                at = self._due_of(number)
                if at is None or at >> BUCKET_BITS != key:
                    continue
                if at <= now:
                    due.append((at, number))
                else:
                    self._later.append(number)
            if self._at < len(bucket):
                break
            self._at, later, self._later = 0, self._later, array("Q")
            if later:
                self._buckets[key] = later
                if whole:
                    break
                continue  # what was too early at an earlier call may be due by now
            del self._buckets[heappop(self._order)]
        self.behind = most == 0 and bool(self._order) and self._order[0] <= this
        due.sort()
        return [number for _at, number in dict.fromkeys(due)]

    def next_wake(self) -> int | None:
        """The earliest time a number waits for; buckets nobody waits in any more are let go."""
        while self._order:
            key = self._order[0]
            times = [
                at
                for at in map(self._due_of, (*self._later, *self._buckets[key][self._at :]))
                if at is not None and at >> BUCKET_BITS == key
            ]
            if times:
                return min(times)
            del self._buckets[heappop(self._order)]
            self._at, self._later = 0, array("Q")
        return None
