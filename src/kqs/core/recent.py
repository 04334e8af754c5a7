"""A bounded memory of the latest things, for answers about what is over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Remembers at least the latest ``size`` keys and at most twice as many.

    Two generations of plain dicts: when the younger is full, the older is dropped whole. Every operation
    is O(1); an ordered dict would do more work per key.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __setitem__(self, key: K, value: V) -> None:
        if len(self._young) >= self._size:
            self._old = self._young
            self._young = {}
        self._young[key] = value

    def get(self, key: K) -> V | None:
        found = self._young.get(key)
        return self._old.get(key) if found is None else found

    def values(self) -> Iterator[V]:
        """Oldest first; a key set twice may show twice."""
        yield from self._old.values()
        yield from self._young.values()
