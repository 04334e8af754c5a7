"""The bytes of the journal: segment headers, commit frames, entries. Source: docs/adr/0001-journal-format.md.

Encoding is on the hot path of ``insert``, so it is plain ``struct`` calls; nothing here checks what
``core/job.py`` has checked already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct as Layout
from struct import error as StructError  # noqa: N812
from typing import Final, NamedTuple
from zlib import crc32

#: Format 2 added the kinds from CANCEL to PAUSE (but KEYS), FLAG_CANCELLED, and options of jobs (ADR 0009);
#: format 3 added CRON, FED and more options (ADR 0010).
FORMAT: Final = 3
SEGMENT_MAGIC: Final = b"KQSSEG\r\n"
FRAME_MAGIC: Final = 0x4D52464B  # "KFRM"
FRAME_MAGIC_BYTES: Final = b"KFRM"

_SEGMENT = Layout("<8sHHIQ8sQQQQ")
_FRAME = Layout("<IIQQQIIII")
_FRAME_CRC = Layout("<I")
_BLANK_FRAME = bytes(_FRAME.size)
_ENTRY = Layout("<BBHIQ")
_ACCEPT = Layout("<BBHIQQQIBB")
_ACCEPT_BODY = Layout("<QQIBB")
_CARRY = Layout("<BBHIQQBBBBIIQQQ")
_CARRY_BODY = Layout("<QBBBBIIQQQ")
_EVENT = Layout("<BBHIQQQQQIBB")
_EVENT_BODY = Layout("<QQQQIBB")

SEGMENT_HEADER: Final = _SEGMENT.size
FRAME_HEADER: Final = _FRAME.size
ENTRY_HEADER: Final = _ENTRY.size
ENTRY_MIN: Final = ENTRY_HEADER + 4
ACCEPT_FIXED: Final = _ACCEPT.size
CARRY_FIXED: Final = _CARRY.size
EVENT_FIXED: Final = _EVENT.size

ACCEPT: Final = 1
LEASE: Final = 2
RENEW: Final = 3
#: 4..10 and 12 are the events of core/lifecycle.py.
CANCEL: Final = 12
DELETE: Final = 9
EVENTS: Final = frozenset((*range(2, 11), CANCEL))
CARRY: Final = 11
MARK: Final = 13
KEYS: Final = 14
RESULT: Final = 15
PAUSE: Final = 16
CRON: Final = 17
FED: Final = 18
KINDS: Final = EVENTS | {ACCEPT, CARRY, MARK, KEYS, RESULT, PAUSE, CRON, FED}

FLAG_BINARY: Final = 1
FLAG_BULK: Final = 2
FLAG_LOCAL: Final = 4
FLAG_CANCELLED: Final = 8
ACCEPT_FLAGS: Final = FLAG_BINARY | FLAG_BULK
_EVENT_FLAGS: Final = FLAG_LOCAL
_CARRY_FLAGS: Final = FLAG_BINARY | FLAG_BULK | FLAG_LOCAL | FLAG_CANCELLED


#: Raised by ``unpack_from`` at the end of a buffer.
Truncated = StructError
#: The fields of an accept's fixed part that an index needs: kind, flags, options length, size, sequence,
#: inserted, due, prio, type length.
unpack_accept_start = Layout("<BBHIQQQ4xBB").unpack_from


class Damaged(Exception):
    """These bytes are not what was written.

    Attributes:
        offset: where in the buffer.
    """

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset
        self.what = what


class Newer(Exception):
    """Written by a format this version does not know."""


class SegmentHeader(NamedTuple):
    number: int
    journal: bytes
    salt: int
    first_frame: int
    first_sequence: int
    created: int


class Frame(NamedTuple):
    """A verified frame: its numbers, and where its entries lie in the segment."""

    frame: int
    first_sequence: int
    durable: int
    entries: int
    crc: int
    start: int
    end: int


class Accept(NamedTuple):
    """A decoded accept entry; ``data_start`` and ``data_end`` are offsets in the entry."""

    sequence: int
    flags: int
    inserted: int
    due: int
    ttr: int
    prio: int
    type: str
    options: bytes
    data_start: int
    data_end: int


class Carry(NamedTuple):
    """A decoded carry entry; ``data_start`` and ``data_end`` are offsets in the entry."""

    sequence: int
    flags: int
    job: int
    state: int
    deaths: int
    prio: int
    attempt: int
    ttr: int
    inserted: int
    due: int
    nonce: int
    type: str
    options: bytes
    data_start: int
    data_end: int


class EventRecord(NamedTuple):
    """A decoded event entry (lease, renew, ack ..)."""

    kind: int
    sequence: int
    flags: int
    job: int
    at: int
    due: int
    nonce: int
    attempt: int
    prio: int
    deaths: int
    options: bytes


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The 64 bytes a segment starts with."""
    parts = (header.number, header.journal, header.salt, header.first_frame, header.first_sequence)
    blank = _SEGMENT.pack(SEGMENT_MAGIC, FORMAT, 0, 0, *parts, header.created)
    crc = crc32(blank[16:], crc32(blank[:12]))
    return _SEGMENT.pack(SEGMENT_MAGIC, FORMAT, 0, crc, *parts, header.created)


def decode_segment_header(data: bytes) -> tuple[SegmentHeader, int]:
    """A segment's header and its CRC (the start of the frame chain).

    Raises:
        Damaged: not a segment header.
        Newer: of a later format.
    """
    if len(data) < SEGMENT_HEADER:
        raise Damaged(0, f"the segment is {len(data)} bytes, shorter than its header")
    magic, version, flags, crc, number, journal, salt, first_frame, first_sequence, created = (
        _SEGMENT.unpack_from(data)
    )
    if magic != SEGMENT_MAGIC:
        raise Damaged(0, "the segment does not start with KQSSEG")
    if crc32(data[16:SEGMENT_HEADER], crc32(data[:12])) != crc:
        raise Damaged(0, "the segment header's checksum is wrong")
    if version > FORMAT or flags:
        raise Newer(f"segment format {version} with flags {flags}")
    return SegmentHeader(number, journal, salt, first_frame, first_sequence, created), crc


def encode_frame(
    entries: Sequence[bytes],
    *,
    salt: int,
    frame: int,
    first_sequence: int,
    durable: int,
    count: int,
    previous: int,
) -> tuple[bytearray, int]:
    """A frame's bytes around its entries, and its CRC. The entries are copied once."""
    data = bytearray().join((_BLANK_FRAME, *entries))
    length = len(data) - FRAME_HEADER
    _FRAME.pack_into(data, 0, FRAME_MAGIC, length, frame, first_sequence, durable, count, previous, 0, 0)
    view = memoryview(data)
    crc = crc32(view[FRAME_HEADER:], crc32(view[: FRAME_HEADER - 4], salt & 0xFFFFFFFF))
    _FRAME_CRC.pack_into(data, FRAME_HEADER - 4, crc)
    return data, crc


def decode_frame(data: bytes | memoryview, offset: int, salt: int) -> tuple[Frame, int]:
    """Verify the frame at an offset.

    Returns:
        The frame, and the CRC of the frame it says is before it.

    Raises:
        Damaged: no valid frame starts here.
    """
    if offset + FRAME_HEADER > len(data):
        raise Damaged(offset, "no room for a frame header")
    magic, length, frame, first_sequence, durable, count, previous, flags, crc = _FRAME.unpack_from(
        data, offset
    )
    start = offset + FRAME_HEADER
    end = start + length
    if magic != FRAME_MAGIC:
        raise Damaged(offset, "no frame starts here")
    if end > len(data) or length < count * ENTRY_MIN:
        raise Damaged(offset, "the frame's length is impossible")
    view = memoryview(data)
    if crc32(view[start:end], crc32(view[offset : start - 4], salt & 0xFFFFFFFF)) != crc:
        raise Damaged(offset, "the frame's checksum is wrong")
    if flags:
        raise Newer(f"frame flags {flags}")
    return Frame(frame, first_sequence, durable, count, crc, start, end), previous


def encode_accept(
    sequence: int,
    flags: int,
    inserted: int,
    due: int,
    ttr: int,
    prio: int,
    type_: bytes,
    options: bytes,
    data: bytes,
) -> bytes:
    """An accept entry; ``data`` is spliced, not looked at."""
    type_length = len(type_)
    options_length = len(options)
    length = ACCEPT_FIXED + type_length + options_length + len(data) + 4
    body = (
        _ACCEPT.pack(ACCEPT, flags, options_length, length, sequence, inserted, due, ttr, prio, type_length)
        + type_
        + options
        + data
    )
    return body + crc32(body).to_bytes(4, "little")


def encode_event(
    kind: int,
    sequence: int,
    flags: int,
    job: int,
    at: int,
    due: int,
    nonce: int,
    attempt: int,
    prio: int,
    deaths: int,
    options: bytes = b"",
) -> bytes:
    """An event entry (lease, renew, ack ..)."""
    length = EVENT_FIXED + len(options) + 4
    body = (
        _EVENT.pack(kind, flags, len(options), length, sequence, job, at, due, nonce, attempt, prio, deaths)
        + options
    )
    return body + crc32(body).to_bytes(4, "little")


def encode_carry(
    sequence: int,
    flags: int,
    job: int,
    state: int,
    deaths: int,
    prio: int,
    attempt: int,
    ttr: int,
    inserted: int,
    due: int,
    nonce: int,
    type_: bytes,
    options: bytes,
    data: bytes,
) -> bytes:
    """A carry entry: a live job's whole state, its payload spliced."""
    length = CARRY_FIXED + len(type_) + len(options) + len(data) + 4
    head = (CARRY, flags, len(options), length, sequence)
    state_part = (job, state, deaths, len(type_), prio, attempt, ttr, inserted, due, nonce)
    body = _CARRY.pack(*head, *state_part) + type_ + options + data
    return body + crc32(body).to_bytes(4, "little")


def encode_data(kind: int, sequence: int, data: bytes) -> bytes:
    """An entry that is of no job: keys, a pause, a result. It holds data, as options end at 64 KiB."""
    body = _ENTRY.pack(kind, 0, 0, ENTRY_MIN + len(data), sequence) + data
    return body + crc32(body).to_bytes(4, "little")


def encode_mark(sequence: int, options: bytes) -> bytes:
    """A mark entry: options that are about the journal, not about a job."""
    body = _ENTRY.pack(MARK, 0, len(options), ENTRY_MIN + len(options), sequence) + options
    return body + crc32(body).to_bytes(4, "little")


def decode_mark(entry: bytes) -> bytes:
    """The options of a mark entry.

    Raises:
        Damaged: its length is impossible.
        Newer: flags this version does not know.
    """
    _kind, flags, options_length, length, _sequence = _ENTRY.unpack_from(entry)
    if length != len(entry) or length != ENTRY_MIN + options_length:
        raise Damaged(0, "a mark entry's length is impossible")
    if flags:
        raise Newer(f"mark flags {flags}")
    return entry[ENTRY_HEADER:-4]


def decode_data(entry: bytes) -> bytes:
    """The data of an entry that :func:`encode_data` made.

    Raises:
        Damaged: its length is impossible.
        Newer: flags this version does not know.
    """
    _kind, flags, options_length, length, _sequence = _ENTRY.unpack_from(entry)
    if length != len(entry) or options_length:
        raise Damaged(0, "a data entry's length is impossible")
    if flags:
        raise Newer(f"flags {flags} of a data entry")
    return entry[ENTRY_HEADER:-4]


def entry_bounds(data: bytes | memoryview, frame: Frame) -> Iterator[tuple[int, int, int]]:
    """(kind, start, end) of each entry of a verified frame.

    Raises:
        Damaged: the entries do not fill the frame, or their sequences don't count up.
    """
    offset, sequence = frame.start, frame.first_sequence
    for _ in range(frame.entries):
        if offset + ENTRY_MIN > frame.end:
            raise Damaged(offset, "an entry is cut off by the frame's end")
        kind, _flags, _options, length, number = _ENTRY.unpack_from(data, offset)
        end = offset + length
        if length < ENTRY_MIN or end > frame.end or number != sequence:
            raise Damaged(offset, "an entry's header is impossible")
        yield kind, offset, end
        offset = end
        sequence += 1
    if offset != frame.end:
        raise Damaged(offset, "the frame is longer than its entries")


def entries_between(data: bytes, start: int, end: int) -> Iterator[bytes]:
    """The entries that lie byte on byte between two places, verified before."""
    while start < end:
        length: int = _ENTRY.unpack_from(data, start)[3]
        yield data[start : start + length]
        start += length


def entry_at(data: bytes, offset: int, end: int, sequence: int) -> bytes:
    """The entry at an offset of a verified frame that ends at ``end``.

    Raises:
        Damaged: it is not the entry with this sequence, or is cut off.
    """
    if offset + ENTRY_MIN > end:
        raise Damaged(offset, "an entry is cut off by the frame's end")
    _kind, _flags, _options, length, number = _ENTRY.unpack_from(data, offset)
    if length < ENTRY_MIN or offset + length > end or number != sequence:
        raise Damaged(offset, "an entry's header is impossible")
    return data[offset : offset + length]


def entry_size(start: bytes) -> int:
    """The size of the entry that starts with these bytes.

    Raises:
        Damaged: no entry starts so.
    """
    if len(start) < ENTRY_MIN:
        raise Damaged(0, "no entry is there")
    length: int = _ENTRY.unpack_from(start)[3]
    return length


def check_entry(entry: bytes | memoryview) -> None:
    """Verify one entry by its own CRC.

    Raises:
        Damaged: it does not match.
    """
    view = memoryview(entry)
    if len(view) < ENTRY_MIN or crc32(view[:-4]) != int.from_bytes(view[-4:], "little"):
        raise Damaged(0, "the entry's checksum is wrong")


def decode_accept(entry: bytes) -> Accept:
    """Decode an accept entry (its CRC is the caller's business).

    Raises:
        Damaged: lengths or text are impossible.
        Newer: flags this version does not know.
    """
    _kind, flags, options_length, length, sequence = _ENTRY.unpack_from(entry)
    if len(entry) < ACCEPT_FIXED + 4 or length != len(entry):
        raise Damaged(0, "an accept entry's length is impossible")
    inserted, due, ttr, prio, type_length = _ACCEPT_BODY.unpack_from(entry, ENTRY_HEADER)
    type_end = ACCEPT_FIXED + type_length
    data_start = type_end + options_length
    data_end = length - 4
    if data_start > data_end or prio > 4:
        raise Damaged(0, "an accept entry's parts are impossible")
    if flags & ~ACCEPT_FLAGS:
        raise Newer(f"accept flags {flags}")
    try:
        type_ = str(entry[ACCEPT_FIXED:type_end], "utf-8")
    except UnicodeDecodeError:
        raise Damaged(ACCEPT_FIXED, "an accept entry's type is not UTF-8") from None
    return Accept(
        sequence,
        flags,
        inserted,
        due,
        ttr,
        prio,
        type_,
        bytes(entry[type_end:data_start]),
        data_start,
        data_end,
    )


def decode_carry(entry: bytes) -> Carry:
    """Decode a carry entry (its CRC is the caller's business).

    Raises:
        Damaged: lengths or text are impossible.
        Newer: flags this version does not know.
    """
    _kind, flags, options_length, length, sequence = _ENTRY.unpack_from(entry)
    if len(entry) < CARRY_FIXED + 4 or length != len(entry):
        raise Damaged(0, "a carry entry's length is impossible")
    job, state, deaths, type_length, prio, attempt, ttr, inserted, due, nonce = _CARRY_BODY.unpack_from(
        entry, ENTRY_HEADER
    )
    type_end = CARRY_FIXED + type_length
    data_start = type_end + options_length
    data_end = length - 4
    if data_start > data_end or prio > 4 or not 1 <= state <= 4:
        raise Damaged(0, "a carry entry's parts are impossible")
    if flags & ~_CARRY_FLAGS:
        raise Newer(f"carry flags {flags}")
    try:
        type_ = str(entry[CARRY_FIXED:type_end], "utf-8")
    except UnicodeDecodeError:
        raise Damaged(CARRY_FIXED, "a carry entry's type is not UTF-8") from None
    options = bytes(entry[type_end:data_start])
    numbers = (job, state, deaths, prio, attempt, ttr, inserted, due, nonce)
    return Carry(sequence, flags, *numbers, type_, options, data_start, data_end)


def decode_event(entry: bytes) -> EventRecord:
    """Decode an event entry (its CRC is the caller's business).

    Raises:
        Damaged: its length is impossible.
        Newer: flags this version does not know.
    """
    kind, flags, options_length, length, sequence = _ENTRY.unpack_from(entry)
    if length != len(entry) or length != EVENT_FIXED + options_length + 4:
        raise Damaged(0, "an event entry's length is impossible")
    if flags & ~_EVENT_FLAGS:
        raise Newer(f"event flags {flags}")
    job, at, due, nonce, attempt, prio, deaths = _EVENT_BODY.unpack_from(entry, ENTRY_HEADER)
    options = bytes(entry[EVENT_FIXED:-4])
    return EventRecord(kind, sequence, flags, job, at, due, nonce, attempt, prio, deaths, options)


def find_later_frame(data: bytes, offset: int, salt: int, frame: int) -> int | None:
    """Where, at or after an offset, a valid frame with a number over ``frame`` starts, if anywhere.

    Only a frame of this segment can pass: the salt that seeds the CRC is the segment's own secret.
    """
    at = data.find(FRAME_MAGIC_BYTES, offset)
    while at != -1:
        try:
            found, _previous = decode_frame(data, at, salt)
        except Damaged:
            pass
        except Newer:
            return at
        else:
            if found.frame > frame:
                return at
        at = data.find(FRAME_MAGIC_BYTES, at + 1)
    return None
