"""All live jobs in columns: about 50 bytes a job, whatever state it is in.

Rows are sorted by job number in chunks of a few thousand, each column an array. A Python object for each job
would take fourteen times the memory; one is made when a job is leased or shown, from its row and its entry in
the journal.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import compress
from typing import Final, NamedTuple

ROWS: Final = 4096
#: (attribute, array type code) of every column.
_COLUMNS: Final = (
    ("number", "Q"),
    ("place", "Q"),
    ("size", "I"),
    ("due", "Q"),
    ("meta", "I"),
    ("attempt", "I"),
    ("deaths", "B"),
    ("error", "Q"),
)
#: Bytes of one row.
ROW_BYTES: Final = sum(array(code).itemsize for _name, code in _COLUMNS)

STATE_BITS: Final = 3
PRIO_BITS: Final = 3
LANE_SHIFT: Final = STATE_BITS + PRIO_BITS
STATE_MASK: Final = (1 << STATE_BITS) - 1
PRIO_MASK: Final = (1 << PRIO_BITS) - 1


def pack_meta(lane: int, prio: int, state: int) -> int:
    """Lane, priority and state in one number; never 0, which marks a row that is gone."""
    return lane << LANE_SHIFT | prio << STATE_BITS | state


def pack_place(segment: int, offset: int) -> int:
    """Where an entry lies, in one number."""
    return segment << 32 | offset


class Chunk:
    """Some thousand rows.

    Attributes:
        number: job numbers, ascending.
        place, size: where the job's accept (or carry) entry lies: segment << 32 | offset, and its bytes.
        due: when it may run, microseconds since 1970.
        meta: :func:`pack_meta`; 0: the job is gone.
        attempt, deaths: counted so far.
        error: where the event entry with its last error lies, as ``place``; 0: none, or in its own entry.
        gone: rows with ``meta`` 0.
    """

    __slots__ = ("attempt", "deaths", "due", "error", "gone", "meta", "number", "place", "size")

    number: array[int]
    place: array[int]
    size: array[int]
    due: array[int]
    meta: array[int]
    attempt: array[int]
    deaths: array[int]
    error: array[int]

    def __init__(self) -> None:
        for name, code in _COLUMNS:
            setattr(self, name, array(code))
        self.gone = 0

    def shrink(self) -> None:
        """Drop the rows that are gone."""
        for name, code in _COLUMNS:
            if name != "meta":
                setattr(self, name, array(code, compress(getattr(self, name), self.meta)))
        self.meta = array("I", filter(None, self.meta))
        self.gone = 0

    def fit(self) -> None:
        """Give back the room kept for growth: the chunk is full."""
        for name, code in _COLUMNS:
            setattr(self, name, array(code, getattr(self, name)))

    def split(self) -> Chunk:
        """Cut off and return the upper half."""
        upper, middle = Chunk(), len(self.number) // 2
        for name, _code in _COLUMNS:
            column = getattr(self, name)
            setattr(upper, name, column[middle:])
            setattr(self, name, column[:middle])
        upper.gone = upper.meta.count(0)
        self.gone -= upper.gone
        return upper


class Row(NamedTuple):
    """Where a job's columns are."""

    chunk: Chunk
    at: int


class JobTable:
    """Rows by job number."""

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self._firsts: list[int] = []
        self._highest = 0
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def add(self, number: int, place: int, size: int, due: int, meta: int) -> Row:
        """A new job that never ran; numbers mostly come in ascending order. It must not be there yet."""
        if number > self._highest:
            if not self._chunks or len(self._chunks[-1].number) >= ROWS:
                self._open_chunk(number)
            chunk = self._chunks[-1]
            chunk.number.append(number)
            chunk.place.append(place)
            chunk.size.append(size)
            chunk.due.append(due)
            chunk.meta.append(meta)
            chunk.attempt.append(0)
            chunk.deaths.append(0)
            chunk.error.append(0)
            self._highest = number
            self._live += 1
            return Row(chunk, len(chunk.number) - 1)
        return self._insert(number, place, size, due, meta)

    def extend(
        self, numbers: list[int], places: list[int], sizes: list[int], dues: list[int], metas: list[int]
    ) -> None:
        """:meth:`add` for many; a column each. The numbers are ascending and above all that are here."""
        start, count = 0, len(numbers)
        while start < count:
            if not self._chunks or len(self._chunks[-1].number) >= ROWS:
                self._open_chunk(numbers[start])
            chunk = self._chunks[-1]
            end = min(count, start + ROWS - len(chunk.number))
            zeros = bytes(8 * (end - start))
            chunk.number.extend(numbers[start:end])
            chunk.place.extend(places[start:end])
            chunk.size.extend(sizes[start:end])
            chunk.due.extend(dues[start:end])
            chunk.meta.extend(metas[start:end])
            chunk.attempt.frombytes(zeros[: 4 * (end - start)])
            chunk.deaths.frombytes(zeros[: end - start])
            chunk.error.frombytes(zeros)
            start = end
        self._highest = numbers[-1]
        self._live += count

    @property
    def highest(self) -> int:
        """The highest number there ever was."""
        return self._highest

    def _open_chunk(self, first: int) -> None:
        if self._chunks:
            self._chunks[-1].fit()
        self._chunks.append(Chunk())
        self._firsts.append(first)

    def _insert(self, number: int, place: int, size: int, due: int, meta: int) -> Row:
        """A job older than the newest: one that compaction carried forward, met in replay."""
        if not self._chunks:
            self._open_chunk(number)
        position = max(0, bisect_right(self._firsts, number) - 1)
        chunk = self._chunks[position]
        at = bisect_left(chunk.number, number)
        values = (number, place, size, due, meta, 0, 0, 0)
        for (name, _code), value in zip(_COLUMNS, values, strict=True):
            getattr(chunk, name).insert(at, value)
        self._live += 1
        self._firsts[position] = chunk.number[0]
        if len(chunk.number) >= 2 * ROWS:
            upper = chunk.split()
            self._chunks.insert(position + 1, upper)
            self._firsts.insert(position + 1, upper.number[0])
            return self.row(number) or Row(chunk, at)
        return Row(chunk, at)

    def row(self, number: int) -> Row | None:
        """Where a live job's columns are; valid until a job is added or removed."""
        position = bisect_right(self._firsts, number) - 1
        if position < 0:
            return None
        chunk = self._chunks[position]
        at = bisect_left(chunk.number, number)
        if at == len(chunk.number) or chunk.number[at] != number or not chunk.meta[at]:
            return None
        return Row(chunk, at)

    def remove(self, row: Row) -> None:
        """A job is over."""
        chunk, at = row
        chunk.meta[at] = 0
        chunk.gone += 1
        self._live -= 1
        rows = len(chunk.number)
        if chunk.gone == rows or (chunk.gone * 2 > rows >= 64 and chunk is not self._chunks[-1]):
            self._tidy(chunk)

    def _tidy(self, chunk: Chunk) -> None:
        position = bisect_right(self._firsts, chunk.number[0]) - 1
        if chunk.gone == len(chunk.number):
            del self._chunks[position]
            del self._firsts[position]
        else:
            chunk.shrink()
            self._firsts[position] = chunk.number[0]

    def rows(self, start: int = 0) -> Iterator[Row]:
        """All live jobs from a number on, ascending; the table must not change meanwhile."""
        position = max(0, bisect_right(self._firsts, start) - 1)
        for chunk in self._chunks[position:]:
            at = bisect_left(chunk.number, start) if chunk.number[0] < start else 0
            for index in range(at, len(chunk.number)):
                if chunk.meta[index]:
                    yield Row(chunk, index)
