"""Entries that survive in a damaged stretch of a segment. Source: docs/adr/0008-repair.md.

A frame's CRC says only that something in it is wrong; each entry has a CRC of its own. What makes it more
than looking for valid CRCs is that a payload is the caller's: it may hold bytes that pass for an entry. So an
entry counts only where entries can be:

- where the frame before ended, and from there on byte by byte, as each entry says where the next begins;
- behind an entry that is damaged, where its own length leads, if the entry there is the next by number;
- anywhere, if an unbroken row of entries leads from there exactly to where the stretch is known to end.
  Bytes in a payload cannot: the payload's own entry ends behind them, with a CRC they would have to foresee.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from struct import Struct as Layout
from typing import Final, NamedTuple

from msgspec import Struct

from . import record
from .record import Damaged

_ENTRY: Final = Layout("<BBHIQ")
#: What an entry can start with: a kind and flags. Looked ahead for, so that matches overlap.
_START: Final = re.compile(rb"(?=[\x01-\x12][\x00-\x0f])", re.DOTALL)


class LossMark(Struct, frozen=True, forbid_unknown_fields=True):
    """The options of the mark entry that a repair writes where entries are lost.

    Attributes:
        lost: their first and last sequence; no last one: it is not known how many there were.
    """

    lost: tuple[int, int | None]


class Run(NamedTuple):
    """Entries whose sequences count up by one, byte on byte.

    Attributes:
        first, entries: the first one's sequence, and how many they are.
        start, end: where they lie.
    """

    first: int
    entries: int
    start: int
    end: int


class Entry(NamedTuple):
    sequence: int
    end: int


def salvage(
    data: bytes, start: int, end: int, first: int, last: int | None, *, end_is_known: bool
) -> list[Run]:
    """The entries that verify by their own CRC between two places.

    Args:
        data: the segment.
        start: where a frame began, or should have.
        end: where the stretch ends: at the next readable frame, or with the segment.
        first, last: sequences that may be there; None: no upper bound.
        end_is_known: whether the last entry ended there; else it is only where to stop looking.
    """
    stretch = _Stretch(data, end, last)
    runs: list[Run] = []
    at, sequence = start + record.FRAME_HEADER, first
    while at < end:
        entry = stretch.entry(at, sequence)
        if entry is not None:
            _add(runs, entry, at)
            at, sequence = entry.end, entry.sequence + 1
        elif stretch.header(at):
            at += record.FRAME_HEADER
        elif (following := stretch.behind(at, sequence)) is not None:
            at = following
        elif end_is_known and (row := stretch.row_to_end(at + 1, sequence)) is not None:
            for place, found in row:
                _add(runs, found, place)
            break
        else:
            break
    return runs


def _add(runs: list[Run], entry: Entry, at: int) -> None:
    """Add an entry to the run it continues, or begin another."""
    if runs and (runs[-1].end, runs[-1].first + runs[-1].entries) == (at, entry.sequence):
        runs[-1] = runs[-1]._replace(entries=runs[-1].entries + 1, end=entry.end)
    else:
        runs.append(Run(entry.sequence, 1, at, entry.end))


class _Stretch:
    def __init__(self, data: bytes, end: int, last: int | None) -> None:
        self._data = data
        self._view = memoryview(data)
        self._end = end
        self._last = last
        self._led_nowhere: set[int] = set()

    def entry(self, at: int, first: int) -> Entry | None:
        """The entry at a place, if one of these sequences or a later one verifies there."""
        if at + record.ENTRY_MIN > self._end:
            return None
        _kind, _flags, _options, length, sequence = _ENTRY.unpack_from(self._data, at)
        end = at + length
        if length < record.ENTRY_MIN or end > self._end or sequence < first:
            return None
        if self._last is not None and sequence > self._last:
            return None
        try:
            record.check_entry(self._view[at:end])
        except Damaged:
            return None
        return Entry(sequence, end)

    def header(self, at: int) -> bool:
        """Whether a frame's header stands here, behind an entry's end; its numbers are not believed."""
        return self._data.startswith(record.FRAME_MAGIC_BYTES, at) and at + record.FRAME_HEADER <= self._end

    def behind(self, at: int, sequence: int) -> int | None:
        """Where the damaged entry here ends, if what follows there proves its length."""
        if at + record.ENTRY_MIN > self._end:
            return None
        _kind, _flags, _options, length, number = _ENTRY.unpack_from(self._data, at)
        end = at + length
        if length < record.ENTRY_MIN or end > self._end:
            return None
        if number == sequence and (end == self._end or self.header(end)):
            return int(end)
        following = self.entry(end, sequence + 1)
        if following is None or following.sequence - 1 not in (sequence, number):
            return None
        return int(end)

    def row_to_end(self, at: int, first: int) -> list[tuple[int, Entry]] | None:
        """The first entries from which a row without a break leads to the end."""
        for match in _START.finditer(self._data, at, self._end):
            if self.entry(match.start(), first) is None:
                continue
            row = list(self._row(match.start(), first))
            if row and row[-1][1].end == self._end:
                return row
            self._led_nowhere.update(place for place, _entry in row)
        return None

    def _row(self, at: int, first: int) -> Iterator[tuple[int, Entry]]:
        while at not in self._led_nowhere and (entry := self.entry(at, first)) is not None:
            yield at, entry
            at, first = entry.end, entry.sequence + 1
            if self.header(at):
                at += record.FRAME_HEADER
