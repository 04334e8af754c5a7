"""A bounded memory of the latest things, for answers about what is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_LATEST: Final = 1000


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


class Lateness:
    """How late things came that were due: of the latest thousand."""

    def __init__(self) -> None:
        self._count = 0
        self._latest: deque[int] = deque(maxlen=_LATEST)

    def add(self, late: int) -> None:
        """Something came, so many microseconds late."""
        self._count += 1
        self._latest.append(late)

    def shown(self) -> dict[str, Any]:
        """As ``stats`` shows it; seconds."""
        view: dict[str, Any] = {"released": self._count}
        if self._latest:
            late = sorted(self._latest)
            for name, share in (("late_p50", 0.5), ("late_p99", 0.99), ("late_max", 1.0)):
                view[name] = late[min(len(late) - 1, int(share * len(late)))] / 1e6
        return view
