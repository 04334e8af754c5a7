"""Idempotency keys: which insert used which key, for a window of time.

A key is remembered until it is older than the window, or until there are more keys than the cap: then the
oldest go first. It lives in its job's accept entry; when that segment is given up, keys still within the
window are carried forward in an entry of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from ...core.job import SECOND

#: Keys in one entry: well below a frame's size.
_ENTRY_KEYS: Final = 5000
#: Estimated bytes of memory a key takes beside its own text.
KEY_BYTES: Final = 250


class Known(Struct, gc=False):
    """What is known of a key: the job it inserted, when, and in which segment that stands."""

    number: int
    at: int
    segment: int


class CarriedKey(Struct, array_like=True):
    """A key as a keys entry holds it."""

    key: str
    number: int
    at: int


class KeyIndex:
    """All remembered keys.

    Args:
        window: seconds a key is remembered.
        cap: most keys.
    """

    def __init__(self, window: float, cap: int) -> None:
        self._window = int(window * SECOND)
        self._cap = cap
        self._known: dict[str, Known] = {}
        self._in_segment: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str, now: int) -> int | None:
        """The number of the job that used a key, or None when that is not remembered (any more)."""
        known = self._known.get(key)
        return known.number if known is not None and now - known.at < self._window else None

    def add(self, key: str, number: int, at: int, segment: int, now: int) -> None:
        """A job with a key was accepted."""
        self._known.pop(key, None)
        self._known[key] = Known(number, at, segment)
        self._in_segment.setdefault(segment, []).append(key)
        self._forget(now)

    def _forget(self, now: int) -> None:
        while self._known:
            key = next(iter(self._known))
            if len(self._known) <= self._cap and now - self._known[key].at < self._window:
                break
            del self._known[key]

    def standing_in(self, segments: Iterable[int], now: int) -> list[bytes]:
        """The data of the entries that carry these segments' keys forward."""
        keys = []
        for segment in segments:
            for key in self._in_segment.get(segment, ()):
                known = self._known.get(key)
                if known is not None and known.segment == segment and now - known.at < self._window:
                    keys.append(CarriedKey(key, known.number, known.at))
        return [
            msgspec.json.encode(keys[start : start + _ENTRY_KEYS])
            for start in range(0, len(keys), _ENTRY_KEYS)
        ]

    def carried(self, data: bytes, segment: int) -> None:
        """Keys stand in an entry of this segment now; ones that are not known yet (in replay) are taken.

        Raises:
            msgspec.MsgspecError: the data is no list of keys.
        """
        for carried in msgspec.json.decode(data, type=list[CarriedKey]):
            known = self._known.get(carried.key)
            if known is None:
                self._known[carried.key] = Known(carried.number, carried.at, segment)
            elif known.number == carried.number:
                known.segment = segment
            else:
                continue
            self._in_segment.setdefault(segment, []).append(carried.key)

    def dropped(self, segments: Iterable[int]) -> None:
        """These segments are gone."""
        for segment in segments:
            for key in self._in_segment.pop(segment, ()):
                known = self._known.get(key)
                if known is not None and known.segment == segment:
                    del self._known[key]

    def settle(self, now: int) -> None:
        """After a replay: in order of age again, within window and cap."""
        self._known = dict(sorted(self._known.items(), key=_age))
        self._forget(now)


def _age(item: tuple[str, Known]) -> Any:
    return item[1].at
