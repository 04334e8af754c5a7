"""Who is told that jobs may be ready, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush

from ...core.job import SECOND


class Ask:
    """Somebody asks the servers for jobs just now; ``rung`` tells that there may be some it did not see."""

    __slots__ = ("rung", "types")

    def __init__(self, types: frozenset[str]) -> None:
        self.types = types
        self.rung = False


class Wakes:
    """See the module.

    Attributes:
        notify: told the types of jobs that may be ready; none: of any.
    """

    def __init__(self) -> None:
        self.notify: Callable[[Sequence[str]], None] = lambda types: None
        self._asks: set[Ask] = set()
        self._due: list[tuple[int, str]] = []
        self._due_known: set[tuple[int, str]] = set()

    def ring(self, types: Sequence[str]) -> None:
        """Jobs of these types may be ready; none: of any."""
        for ask in self._asks:
            ask.rung |= not types or not ask.types or not ask.types.isdisjoint(types)
        self.notify(types)

    @contextmanager
    def asking(self, types: frozenset[str]) -> Iterator[Ask]:
        """While somebody asks for these types (none: all), it is told what is rung."""
        ask = Ask(types)
        self._asks.add(ask)
        try:
            yield ask
        finally:
            self._asks.remove(ask)

    def later(self, due: int, type: str) -> None:
        """Somebody should look for jobs of a type at that time, or in the second after it."""
        entry = (-(-due // SECOND) * SECOND, type)
        if entry not in self._due_known:
            self._due_known.add(entry)
            heappush(self._due, entry)

    def tick(self, now: int) -> None:
        """Ring for what is due."""
        due: dict[str, None] = {}
        while self._due and self._due[0][0] <= now:
            entry = heappop(self._due)
            self._due_known.discard(entry)
            due[entry[1]] = None
        if due:
            self.ring(list(due))

    def next_due(self) -> int | None:
        """When the next one is due, microseconds since 1970."""
        return self._due[0][0] if self._due else None
