"""What handlers returned, for as long as their jobs want it kept.

A result stands in an entry of its own, in the frame of its job's ack; when that segment is given up, it is
written again. Results above the bulk threshold lie in the bulk store, and the entry says where.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct

from ...core.job import BulkRef
from ...core.timers import DueCalendar

#: Estimated bytes of memory a kept result takes, its text not counted.
RESULT_BYTES = 400
#: Results forgotten in one go.
FORGOTTEN_AT_ONCE = 5000


class Result(Struct, omit_defaults=True):
    """A kept result, as the journal holds it.

    Attributes:
        job: the job's number.
        type: its type.
        at: when it finished, microseconds since 1970.
        until: when the result is forgotten, the same.
        value: JSON text; ``null`` when ``bulk`` has it.
        bulk: where an oversize one lies.
    """

    job: int
    type: str
    at: int
    until: int
    value: Raw = Raw(b"null")
    bulk: BulkRef | None = None


class Kept(Struct, gc=False):
    """What is in memory of a result: where it stands, or itself until that is known.

    Attributes:
        until: when it is forgotten.
        place, size: of its entry; 0 while that is on its way to the disk.
        pending: the result until then.
        bulk: its payload's place in the bulk store.
    """

    until: int
    place: int
    size: int
    pending: Result | None
    bulk: BulkRef | None


class ResultIndex:
    """All kept results, by job number.

    Attributes:
        bytes: of their entries.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}
        self._calendar = DueCalendar(self._until)
        self._in_segment: dict[int, list[int]] = {}
        self.bytes = 0

    def _until(self, number: int) -> int | None:
        kept = self._kept.get(number)
        return None if kept is None else kept.until

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, number: int) -> Kept | None:
        return self._kept.get(number)

    def add(self, result: Result) -> None:
        """Keep a result, in memory until it is :meth:`placed`."""
        if (known := self._kept.get(result.job)) is not None:
            self.bytes -= known.size
        self._kept[result.job] = Kept(result.until, 0, 0, result, result.bulk)
        self._calendar.add(result.job, result.until)

    def placed(self, number: int, size: int, place: int) -> None:
        """A result's entry is durable, and stands here."""
        kept = self._kept.get(number)
        if kept is not None:
            self.bytes += size - kept.size
            kept.place, kept.size, kept.pending = place, size, None
            self._in_segment.setdefault(place >> 32, []).append(number)

    def standing_in(self, segments: Iterable[int]) -> list[int]:
        """The jobs whose results stand in these segments."""
        return [
            number
            for segment in segments
            for number in self._in_segment.get(segment, ())
            if (kept := self._kept.get(number)) is not None and kept.place >> 32 == segment
        ]

    def dropped(self, segments: Iterable[int]) -> None:
        """These segments are gone; what stood there was carried or is forgotten."""
        for segment in segments:
            self._in_segment.pop(segment, None)

    def forget_due(self, now: int) -> list[BulkRef]:
        """Forget results whose time is over; returns what the bulk store may delete."""
        unused = []
        for number in self._calendar.pop_due(now, FORGOTTEN_AT_ONCE):
            kept = self._kept.pop(number)
            self.bytes -= kept.size
            if kept.bulk is not None:
                unused.append(kept.bulk)
        return unused

    def bulk_names(self) -> set[str]:
        """Names of all results in the bulk store."""
        return {kept.bulk.name for kept in self._kept.values() if kept.bulk is not None}


decode_result = msgspec.json.Decoder(Result).decode
