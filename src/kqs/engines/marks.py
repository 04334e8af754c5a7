"""What a journal says besides jobs, as every engine that has one keeps it: cron marks and pauses."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from msgspec import Struct

from ..ports import CronMark


class CronEntry(Struct, omit_defaults=True):
    """What a cron entry holds.

    Attributes:
        name: the cron's.
        at: its mark; 0: it has none any more.
        last: see :class:`~kqs.ports.CronMark`.
    """

    name: str
    at: int
    last: int = 0


_decode = msgspec.json.Decoder(CronEntry).decode


class CronIndex:
    """The marks, and in which segment each stands, at the earliest.

    Attributes:
        marks: by the crons' names.
    """

    def __init__(self) -> None:
        self.marks: dict[str, CronMark] = {}
        self._segments: dict[str, int] = {}

    def put(self, data: bytes, segment: int) -> None:
        """A mark is what an entry says.

        Args:
            data: of the entry.
            segment: where that stands, or an earlier one.

        Raises:
            msgspec.MsgspecError: the data is none.
        """
        entry = _decode(data)
        if entry.at:
            self.marks[entry.name] = CronMark(entry.at, entry.last)
            self._segments[entry.name] = segment
        else:
            self.marks.pop(entry.name, None)
            self._segments.pop(entry.name, None)

    def standing_in(self, segments: Collection[int]) -> list[str]:
        """The crons whose mark stands in one of these segments."""
        return [name for name, segment in self._segments.items() if segment in segments]


class Pause(Struct, omit_defaults=True):
    """What a pause entry holds.

    Attributes:
        type: the job type.
        paused: whether it begins or ends.
        by: who did it, as the server saw them.
        at: when, microseconds since 1970; 0 in a journal of format 2.
    """

    type: str
    paused: bool
    by: str = ""
    at: int = 0


class Paused(Struct):
    """A type that is paused: by whom, since when, and the segment that says so."""

    by: str
    at: int
    segment: int


decode_pause = msgspec.json.Decoder(Pause).decode
