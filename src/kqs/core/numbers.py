"""A queue that gives back its numbers in ascending order and takes 8 bytes for each.

Job numbers arrive mostly in order, so a heap of Python integers (40 bytes a number, log n a push) would be
waste. Here numbers that come in order are appended to a run, an array that is sorted as it stands; numbers
that come back (retried, released, due jobs) go to a small heap, which is spilled as a run of its own when it
is full. The next number is the smallest head. The idea is that of a log-structured merge tree's levels.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from heapq import heappop, heappush
from typing import Final

#: Numbers in a run: 64 KiB.
RUN: Final = 8192


class NumberQueue:
    """A min-queue of unsigned 64-bit numbers; the same number may be in it more than once."""

    __slots__ = ("_at", "_back", "_highest", "_now", "_runs", "_tail")

    def __init__(self) -> None:
        self._now = array("Q")  # the run being taken from, from _at on
        self._at = 0
        self._runs: list[tuple[int, array[int]]] = []  # heap of (first number, run)
        self._tail = array("Q")  # arrivals in order: above everything in the runs
        self._back: list[int] = []  # heap of the others
        self._highest = -1

    def push(self, number: int) -> None:
        """Add a number."""
        if number > self._highest:
            self._highest = number
            self._tail.append(number)
            if len(self._tail) >= RUN:
                heappush(self._runs, (self._tail[0], self._tail))
                self._tail = array("Q")
        else:
            heappush(self._back, number)
            if len(self._back) >= RUN:
                run = array("Q", sorted(self._back))
                heappush(self._runs, (run[0], run))
                self._back = []
                if self._tail and self._tail[0] < run[-1]:
                    # The tail is not above everything else any more: it becomes a run among the others.
                    heappush(self._runs, (self._tail[0], self._tail))
                    self._tail = array("Q")

    def extend(self, numbers: list[int]) -> None:
        """Add numbers that are in ascending order."""
        if numbers[0] > self._highest and len(self._tail) + len(numbers) < RUN:
            self._highest = numbers[-1]
            self._tail.extend(numbers)
        else:
            for number in numbers:
                self.push(number)

    def head(self) -> int:
        """The smallest number; the queue must not be empty."""
        if not self._settle():
            return self._back[0]
        number = self._now[self._at]
        return self._back[0] if self._back and self._back[0] < number else number

    def before(self, number: int) -> int:
        """How many numbers are below this one."""
        count = bisect_left(self._now, number, self._at) - self._at + bisect_left(self._tail, number)
        count += sum(bisect_left(run, number) for _first, run in self._runs)
        return count + sum(other < number for other in self._back)

    def pop(self) -> int:
        """Take the smallest number; the queue must not be empty."""
        if not self._settle() or (self._back and self._back[0] < self._now[self._at]):
            return heappop(self._back)
        number = self._now[self._at]
        self._at += 1
        return number

    def _settle(self) -> bool:
        """Make ``_now`` the run with the smallest head; False when there is no run at all."""
        runs = self._runs
        if self._at == len(self._now):
            if runs:
                self._now = heappop(runs)[1]
            elif self._tail:
                self._now, self._tail = self._tail, array("Q")
            else:
                return False
            self._at = 0
        if runs and runs[0][0] < self._now[self._at]:
            rest = self._now[self._at :]
            self._now = heappop(runs)[1]
            self._at = 0
            heappush(runs, (rest[0], rest))
        return True

    def __bool__(self) -> bool:
        return self._at < len(self._now) or bool(self._tail or self._back or self._runs)
