"""The journal's carry and keys entries, and entries read one at a time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core import record
from kqs.core.lifecycle import Event, State
from kqs.core.record import (
    ACCEPT,
    CARRY,
    CARRY_FIXED,
    ENTRY_MIN,
    EVENTS,
    FLAG_BINARY,
    FLAG_BULK,
    FLAG_LOCAL,
    KEYS,
    Carry,
    Damaged,
    Newer,
)

u8, u32, u64 = st.integers(0, 2**8 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
FLAGS = [0, FLAG_BINARY, FLAG_BULK, FLAG_LOCAL, FLAG_BINARY | FLAG_BULK | FLAG_LOCAL]
LIVE = [int(state) for state in State if state is not State.DONE]

#: The arguments of encode_carry.
carries = st.tuples(
    u64,
    st.sampled_from(FLAGS),
    u64,
    st.sampled_from(LIVE),
    u8,
    st.integers(0, 4),
    u32,
    u32,
    u64,
    u64,
    u64,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).map(str.encode),
    st.binary(max_size=60),
    st.binary(max_size=100),
)


def carry(*, flags: int = 0, state: int = 2, prio: int = 2, type_: bytes = b"ping") -> bytes:
    return record.encode_carry(9, flags, 1, state, 0, prio, 1, 30_000, 10, 20, 99, type_, b"{}", b"[1]")


def _resized(entry: bytes, length: int) -> bytes:
    return entry[:4] + length.to_bytes(4, "little") + entry[8:]


# -- carry ---------------------------------------------------------------------------------------


@given(carries)
def test_carry_both_ways(arguments: tuple[Any, ...]) -> None:
    *numbers, type_, options, data = arguments
    entry = record.encode_carry(*arguments)
    record.check_entry(entry)
    made = record.decode_carry(entry)
    assert made == Carry(*numbers, type_.decode(), options, made.data_start, made.data_end)
    assert entry[made.data_start : made.data_end] == data
    assert entry[0] == CARRY


@given(carries, st.integers(0, 10**6), st.integers(1, 255))
def test_any_carry_with_any_byte_changed_is_refused(arguments: tuple[Any, ...], at: int, change: int) -> None:
    entry = bytearray(record.encode_carry(*arguments))
    entry[at % len(entry)] ^= change
    with pytest.raises(Damaged):
        record.check_entry(entry)


def test_a_carry_whose_parts_do_not_fit_is_damaged() -> None:
    entry = carry()
    type_length_at = record.ENTRY_HEADER + 10
    assert entry[type_length_at] == len(b"ping")
    for changed in (
        _resized(entry, len(entry) + 1),
        _resized(entry, 0),
        entry[:-1],
        entry + b"x",
        entry[:ENTRY_MIN],
        entry[: CARRY_FIXED + 3],
        entry[:type_length_at] + b"\xff" + entry[type_length_at + 1 :],
        entry[:2] + b"\xff\xff" + entry[4:],
        entry.replace(b"ping", b"p\xffng"),
        carry(prio=5),
        carry(state=0),
        carry(state=State.DONE),
        carry(state=255),
    ):
        with pytest.raises(Damaged):
            record.decode_carry(changed)


@pytest.mark.parametrize("flag", [16, 32, 128])
def test_carry_flags_of_a_later_version(flag: int) -> None:
    with pytest.raises(Newer, match="carry flags"):
        record.decode_carry(carry(flags=flag))


# -- keys ----------------------------------------------------------------------------------------


@given(u64, st.binary(max_size=300))
def test_keys_both_ways(sequence: int, data: bytes) -> None:
    entry = record.encode_data(record.KEYS, sequence, data)
    record.check_entry(entry)
    assert record.decode_data(entry) == data
    assert entry[0] == KEYS


def test_keys_of_more_than_64_kib() -> None:
    """That is where options end, so keys are data."""
    data = bytes(range(256)) * 1024
    assert record.decode_data(record.encode_data(record.KEYS, 1, data)) == data


def test_keys_that_do_not_fit_or_are_newer() -> None:
    entry = record.encode_data(record.KEYS, 1, b"[]")
    for changed in (
        _resized(entry, len(entry) + 1),
        entry[:-1],
        entry + b"x",
        entry[:2] + b"\x01\0" + entry[4:],
    ):
        with pytest.raises(Damaged):
            record.decode_data(changed)
    with pytest.raises(Newer, match="flags 1"):
        record.decode_data(entry[:1] + b"\x01" + entry[2:])


def test_every_kind_has_its_own_number() -> None:
    kinds = [ACCEPT, CARRY, KEYS, *EVENTS]
    assert len(set(kinds)) == len(kinds)


# -- one at a time -------------------------------------------------------------------------------


def three() -> tuple[bytes, list[int]]:
    """Three entries of a frame, sequences 7, 8, 9, and where each starts."""
    entries = [
        record.encode_accept(7, 0, 1, 2, 3, 0, b"t", b"", b"data"),
        record.encode_event(Event.ACK, 8, 0, 7, 1, 2, 3, 1, 0, 0),
        carry(),
    ]
    starts = [0, len(entries[0]), len(entries[0]) + len(entries[1])]
    return b"".join(entries), starts


def test_an_entry_is_found_by_its_offset_and_sequence() -> None:
    data, starts = three()
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(data)], strict=True)):
        assert record.entry_at(data, start, len(data), 7 + number) == data[start:end]
        assert record.entry_size(data[start : start + ENTRY_MIN]) == end - start


def test_an_entry_with_another_sequence_or_cut_off_is_damaged() -> None:
    data, starts = three()
    for offset, end, sequence in (
        (starts[0], len(data), 8),
        (starts[1], len(data), 7),
        (starts[1] + 1, len(data), 8),
        (starts[2], len(data) - 1, 9),
        (starts[2], starts[2] + ENTRY_MIN - 1, 9),
        (len(data), len(data), 10),
    ):
        with pytest.raises(Damaged) as caught:
            record.entry_at(data, offset, end, sequence)
        assert caught.value.offset == offset
    with pytest.raises(Damaged):
        record.entry_at(_resized(data, 3), 0, len(data), 7)
    with pytest.raises(Damaged):
        record.entry_size(data[: ENTRY_MIN - 1])


@given(u64, u64, u64, st.integers(0, 4), st.integers(0, 255), st.integers(0, 60))
def test_the_start_of_an_accept(
    sequence: int, inserted: int, due: int, prio: int, type_length: int, options: int
) -> None:
    entry = record.encode_accept(
        sequence, FLAG_BINARY, inserted, due, 2**32 - 1, prio, b"t" * type_length, b"o" * options, b"data"
    )
    start = (ACCEPT, FLAG_BINARY, options, len(entry), sequence, inserted, due, prio, type_length)
    assert record.unpack_accept_start(entry) == start
    assert record.unpack_accept_start(b"xx" + entry, 2) == start
    with pytest.raises(record.Truncated):
        record.unpack_accept_start(entry[: record.ACCEPT_FIXED - 1])
