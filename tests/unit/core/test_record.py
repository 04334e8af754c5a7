"""The journal's bytes: what is written is read back, and nothing that was changed passes."""

from __future__ import annotations

from collections.abc import Iterator
from struct import error as StructError
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core import record
from kqs.core.lifecycle import Event
from kqs.core.record import (
    ACCEPT,
    ENTRY_MIN,
    EVENT_FIXED,
    EVENTS,
    FLAG_BINARY,
    FLAG_BULK,
    FLAG_LOCAL,
    FRAME_HEADER,
    FRAME_MAGIC_BYTES,
    LEASE,
    RENEW,
    SEGMENT_HEADER,
    Accept,
    Damaged,
    EventRecord,
    Frame,
    Newer,
    SegmentHeader,
)

u8, u32, u64 = st.integers(0, 2**8 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
SALT = 0x1234_5678_9ABC_DEF0

headers = st.builds(SegmentHeader, u64, st.binary(min_size=8, max_size=8), u64, u64, u64, u64)
#: The arguments of encode_accept.
accepts = st.tuples(
    u64,
    st.sampled_from([0, FLAG_BINARY, FLAG_BULK, FLAG_BINARY | FLAG_BULK]),
    u64,
    u64,
    u32,
    st.integers(0, 4),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).map(str.encode),
    st.binary(max_size=60),
    st.binary(max_size=100),
)
#: The arguments of encode_event, without options.
events = st.tuples(
    st.sampled_from(sorted(EVENTS)), u64, st.sampled_from([0, FLAG_LOCAL]), u64, u64, u64, u64, u32, u8, u8
)


def flips(data: bytes) -> Iterator[bytes]:
    """The bytes with one bit of one byte changed, for every bit."""
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            yield bytes(changed)


def accept(sequence: int = 1, data: bytes = b'{"a":1}') -> bytes:
    return record.encode_accept(sequence, 0, 10, 20, 30_000, 2, b"ping", b"", data)


def event(sequence: int = 2, kind: int = Event.ACK) -> bytes:
    return record.encode_event(kind, sequence, 0, 1, 10, 20, 99, 1, 2, 0)


def frame_of(*entries: bytes, first: int = 1, frame: int = 5, previous: int = 77, salt: int = SALT) -> bytes:
    data, _crc = record.encode_frame(
        entries,
        salt=salt,
        frame=frame,
        first_sequence=first,
        durable=frame - 1,
        count=len(entries),
        previous=previous,
    )
    return bytes(data)


# -- segment headers -----------------------------------------------------------------------------


@given(headers, st.binary(max_size=20))
def test_segment_header_both_ways(header: SegmentHeader, tail: bytes) -> None:
    data = record.encode_segment_header(header)
    assert len(data) == SEGMENT_HEADER
    assert record.decode_segment_header(data + tail)[0] == header


def test_a_segment_header_changed_anywhere_is_damaged() -> None:
    data = record.encode_segment_header(SegmentHeader(3, b"journal!", SALT, 1, 1, 5))
    for changed in flips(data):
        with pytest.raises(Damaged):
            record.decode_segment_header(changed)
    for size in range(SEGMENT_HEADER):
        with pytest.raises(Damaged, match="shorter"):
            record.decode_segment_header(data[:size])


@pytest.mark.parametrize(("at", "value"), [(8, 9), (10, 1)], ids=["format", "flags"])
def test_a_newer_segment_is_not_damaged_but_newer(at: int, value: int) -> None:
    data = bytearray(record.encode_segment_header(SegmentHeader(3, b"journal!", SALT, 1, 1, 5)))
    data[at : at + 2] = value.to_bytes(2, "little")
    data[12:16] = crc32(data[16:], crc32(data[:12])).to_bytes(4, "little")
    with pytest.raises(Newer):
        record.decode_segment_header(bytes(data))


def test_the_header_crc_starts_the_chain() -> None:
    data = record.encode_segment_header(SegmentHeader(3, b"journal!", SALT, 1, 1, 5))
    assert record.decode_segment_header(data)[1] == int.from_bytes(data[12:16], "little")


# -- entries -------------------------------------------------------------------------------------


@given(accepts)
def test_accept_both_ways(arguments: tuple[Any, ...]) -> None:
    sequence, flags, inserted, due, ttr, prio, type_, options, data = arguments
    entry = record.encode_accept(*arguments)
    record.check_entry(entry)
    made = record.decode_accept(entry)
    assert made == Accept(
        sequence, flags, inserted, due, ttr, prio, type_.decode(), options, made.data_start, made.data_end
    )
    assert entry[made.data_start : made.data_end] == data


@given(events, st.binary(max_size=60))
def test_event_both_ways(arguments: tuple[Any, ...], options: bytes) -> None:
    entry = record.encode_event(*arguments, options=options)
    record.check_entry(entry)
    assert record.decode_event(entry) == EventRecord(*arguments, options)


@pytest.mark.parametrize(
    "entry", [accept(), accept(data=b""), event(), record.encode_event(5, 3, 0, 1, 2, 3, 4, 5, 2, 1, b"{}")]
)
def test_an_entry_changed_or_cut_anywhere_fails_its_checksum(entry: bytes) -> None:
    record.check_entry(entry)
    for changed in flips(entry):
        with pytest.raises(Damaged):
            record.check_entry(changed)
    for size in range(len(entry)):
        with pytest.raises(Damaged):
            record.check_entry(entry[:size])


@given(accepts, st.integers(0, 10**6), st.integers(1, 255))
def test_any_accept_with_any_byte_changed_is_refused(
    arguments: tuple[Any, ...], at: int, change: int
) -> None:
    entry = bytearray(record.encode_accept(*arguments))
    entry[at % len(entry)] ^= change
    with pytest.raises(Damaged):
        record.check_entry(entry)


@pytest.mark.parametrize("size", [0, 197, 255])
def test_a_type_of_any_length_an_engine_may_have(size: int) -> None:
    entry = record.encode_accept(1, 0, 2, 3, 4, 0, b"t" * size, b"o", b"data")
    made = record.decode_accept(entry)
    assert (made.type, made.options, entry[made.data_start : made.data_end]) == ("t" * size, b"o", b"data")


def _resized(entry: bytes, length: int) -> bytes:
    return entry[:4] + length.to_bytes(4, "little") + entry[8:]


def test_an_accept_whose_parts_do_not_fit_is_damaged() -> None:
    entry = accept()
    type_length_at = record.ACCEPT_FIXED - 1
    too_long_type = entry[:type_length_at] + b"\xff" + entry[type_length_at + 1 :]
    too_many_options = entry[:2] + b"\xff\xff" + entry[4:]
    bad_prio = entry[: type_length_at - 1] + b"\x05" + entry[type_length_at:]
    not_utf8 = entry.replace(b"ping", b"p\xffng")
    for changed in (
        _resized(entry, len(entry) + 1),
        _resized(entry, 0),
        entry[:-1],
        entry + b"x",
        entry[:ENTRY_MIN],
        too_long_type,
        too_many_options,
        bad_prio,
        not_utf8,
    ):
        with pytest.raises(Damaged):
            record.decode_accept(changed)


def test_an_event_whose_parts_do_not_fit_is_damaged() -> None:
    entry = event()
    for changed in (
        _resized(entry, len(entry) + 1),
        entry[:-1],
        entry + b"x",
        entry[:ENTRY_MIN],
        entry[:2] + b"\x01\x00" + entry[4:],
    ):
        with pytest.raises(Damaged):
            record.decode_event(changed)


@pytest.mark.parametrize("flag", [4, 8, 128])
def test_flags_of_a_later_version(flag: int) -> None:
    with pytest.raises(Newer, match="accept flags"):
        record.decode_accept(record.encode_accept(1, flag, 2, 3, 4, 0, b"t", b"", b""))


@pytest.mark.parametrize("flag", [1, 2, 8, 128])
def test_event_flags_of_a_later_version(flag: int) -> None:
    with pytest.raises(Newer, match="event flags"):
        record.decode_event(record.encode_event(LEASE, 1, flag, 1, 2, 3, 4, 5, 0, 0))


def test_kinds_are_the_events_of_the_lifecycle() -> None:
    assert EVENTS - {RENEW} == {int(event) for event in Event if event is not Event.DUE}
    assert ACCEPT not in EVENTS


@pytest.mark.parametrize("field", range(9))
def test_a_number_too_large_for_its_field_is_not_written(field: int) -> None:
    arguments: list[Any] = [4, 1, 0, 1, 2, 3, 4, 5, 2, 0]
    arguments[field if field != 2 else 9] = 2**64
    with pytest.raises(StructError):
        record.encode_event(*arguments)


# -- frames --------------------------------------------------------------------------------------


@given(
    entries=st.lists(st.binary(max_size=40), max_size=6),
    salt=u64,
    frame=u64,
    first=u64,
    durable=u64,
    previous=u32,
    before=st.binary(max_size=20),
    after=st.binary(max_size=20),
)
def test_frame_both_ways(
    entries: list[bytes],
    salt: int,
    frame: int,
    first: int,
    durable: int,
    previous: int,
    before: bytes,
    after: bytes,
) -> None:
    entries = [record.encode_event(4, 0, 0, 0, 0, 0, 0, 0, 0, 0, options) for options in entries]
    data, crc = record.encode_frame(
        entries,
        salt=salt,
        frame=frame,
        first_sequence=first,
        durable=durable,
        count=len(entries),
        previous=previous,
    )
    made, chained = record.decode_frame(before + data + after, len(before), salt)
    start = len(before) + FRAME_HEADER
    assert made == Frame(frame, first, durable, len(entries), crc, start, len(before) + len(data))
    assert chained == previous
    assert (before + data)[made.start : made.end] == b"".join(entries)


@given(st.lists(st.sampled_from(["accept", "event"]), min_size=1, max_size=5), st.integers(1, 2**40))
def test_entries_are_found_in_their_frame(kinds: list[str], first: int) -> None:
    entries = [
        accept(first + at, b"x" * at) if kind == "accept" else event(first + at)
        for at, kind in enumerate(kinds)
    ]
    data = frame_of(*entries, first=first)
    made, _previous = record.decode_frame(data, 0, SALT)
    found = list(record.entry_bounds(data, made))
    assert [data[start:end] for _kind, start, end in found] == entries
    assert [kind for kind, _start, _end in found] == [
        ACCEPT if kind == "accept" else Event.ACK for kind in kinds
    ]


def test_a_frame_changed_or_cut_anywhere_is_refused() -> None:
    data = frame_of(accept(), event())
    record.decode_frame(data, 0, SALT)
    for changed in flips(data):
        with pytest.raises(Damaged):
            record.decode_frame(changed, 0, SALT)
    for size in range(len(data)):
        with pytest.raises(Damaged):
            record.decode_frame(data[:size], 0, SALT)


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=3), st.integers(0, 10**6), st.integers(1, 255))
def test_any_frame_with_any_byte_changed_is_refused(payloads: list[bytes], at: int, change: int) -> None:
    data = bytearray(frame_of(*(accept(number + 1, payload) for number, payload in enumerate(payloads))))
    data[at % len(data)] ^= change
    with pytest.raises(Damaged):
        record.decode_frame(data, 0, SALT)


@given(u64, u64)
def test_a_frame_of_another_segment_is_refused(salt: int, other: int) -> None:
    """The salt seeds the checksum with 32 of its bits; those must differ."""
    data = frame_of(accept(), salt=salt)
    if salt & 0xFFFFFFFF == other & 0xFFFFFFFF:
        record.decode_frame(data, 0, other)
    else:
        with pytest.raises(Damaged, match="checksum"):
            record.decode_frame(data, 0, other)


def test_frame_flags_of_a_later_version() -> None:
    data = bytearray(frame_of(accept()))
    flags_at = FRAME_HEADER - 8
    data[flags_at] = 1
    crc = crc32(data[FRAME_HEADER:], crc32(data[: FRAME_HEADER - 4], SALT & 0xFFFFFFFF))
    data[FRAME_HEADER - 4 : FRAME_HEADER] = crc.to_bytes(4, "little")
    with pytest.raises(Newer, match="frame flags"):
        record.decode_frame(data, 0, SALT)


@pytest.mark.parametrize(
    ("entries", "first", "count"),
    [
        ([accept(1), event(3)], 1, 2),  # a sequence is missing
        ([accept(1), event(2)], 0, 2),
        ([accept(1), event(2)], 1, 1),  # more bytes than entries
        ([accept(1), b"x" * 30], 1, 2),
        ([_resized(accept(1), 10**6)], 1, 1),
        ([_resized(accept(1), 0)], 1, 1),
        ([accept(1), event(2)[:ENTRY_MIN]], 1, 2),
        ([accept(1), accept(2)[:10], event(2)[:10]], 1, 3),
    ],
)
def test_entries_that_do_not_fill_their_frame(entries: list[bytes], first: int, count: int) -> None:
    data, _crc = record.encode_frame(
        entries, salt=SALT, frame=1, first_sequence=first, durable=0, count=count, previous=0
    )
    made, _previous = record.decode_frame(data, 0, SALT)
    with pytest.raises(Damaged):
        list(record.entry_bounds(data, made))


# -- looking for a later frame -------------------------------------------------------------------


def test_a_later_frame_is_found_behind_anything() -> None:
    later = frame_of(accept(), frame=6)
    for rubbish in (b"", b"\0" * 100, FRAME_MAGIC_BYTES, FRAME_MAGIC_BYTES * 9, frame_of(accept())[:-1]):
        assert record.find_later_frame(rubbish + later, 0, SALT, 5) == len(rubbish)


def test_nothing_else_is_taken_for_one() -> None:
    whole = frame_of(accept(), frame=6)
    for data in (
        b"",
        b"\0" * 200,
        FRAME_MAGIC_BYTES * 30,
        whole[:-1],
        frame_of(accept(), frame=6, salt=SALT + 1),
        frame_of(accept(), frame=5),
        frame_of(accept(), frame=4),
        frame_of(accept(data=whole), frame=5)[: FRAME_HEADER + 20],
    ):
        assert record.find_later_frame(data, 0, SALT, 5) is None
    assert record.find_later_frame(whole, 1, SALT, 5) is None


def test_a_payload_that_holds_a_frame_of_another_salt_is_no_frame() -> None:
    forged = frame_of(accept(), frame=99, salt=SALT + 1)
    data = frame_of(accept(data=forged), frame=5)
    assert record.find_later_frame(data, 1, SALT, 5) is None


def test_sizes_are_those_of_the_format() -> None:
    """docs/adr/0001-journal-format.md; golden journals depend on them."""
    assert (SEGMENT_HEADER, FRAME_HEADER, ENTRY_MIN) == (64, 48, 20)
    assert len(event()) == EVENT_FIXED + 4
    assert record.EVENT_FIXED == 54
    assert record.ACCEPT_FIXED == 38
