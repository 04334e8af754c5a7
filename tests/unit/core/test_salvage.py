"""Entries of damaged stretches: all that can be told from what a payload holds, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core import record
from kqs.core.salvage import Run, salvage


def entry(sequence: int, data: bytes = b"data") -> bytes:
    return record.encode_accept(sequence, record.FLAG_BINARY, 1, 1, 1, 2, b"t", b"", data)


def frame(number: int, entries: Sequence[bytes], first: int) -> bytes:
    """A frame whose checksum is wrong, as its salt is another's."""
    data, _crc = record.encode_frame(
        entries, salt=number, frame=number, first_sequence=first, durable=0, count=len(entries), previous=0
    )
    return bytes(data)


def numbers(runs: Sequence[Run]) -> list[int]:
    return [number for run in runs for number in range(run.first, run.first + run.entries)]


def flipped(data: bytes, offset: int, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[offset] ^= 1 << bit
    return bytes(damaged)


def test_frames_one_behind_the_other() -> None:
    data = frame(1, [entry(5), entry(6)], 5) + frame(2, [entry(9)], 9)
    runs = salvage(data, 0, len(data), 5, None, end_is_known=True)
    assert [(run.first, run.entries) for run in runs] == [(5, 2), (9, 1)]
    assert data[runs[0].start : runs[0].end] == entry(5) + entry(6)


def test_only_sequences_that_may_be_there() -> None:
    data = frame(1, [entry(5), entry(6)], 5)
    assert numbers(salvage(data, 0, len(data), 6, None, end_is_known=False)) == []
    assert numbers(salvage(data, 0, len(data), 1, 5, end_is_known=True)) == [5]


@given(st.data())
def test_any_flipped_bit_costs_the_entry_it_is_in(choose: st.DataObject) -> None:
    entries = [entry(number, b"x" * choose.draw(st.integers(0, 60))) for number in range(1, 6)]
    data = frame(1, entries, 1)
    offset = choose.draw(st.integers(0, len(data) - 1))
    damaged = flipped(data, offset, choose.draw(st.integers(0, 7)))
    runs = salvage(damaged, 0, len(data), 1, 5, end_is_known=True)
    ends = [record.FRAME_HEADER + sum(map(len, entries[:n])) for n in range(6)]
    intact = [n for n in range(1, 6) if not ends[n - 1] <= offset < ends[n]]
    assert numbers(runs) == intact
    for run in runs:
        assert damaged[run.start : run.end] == b"".join(entries[run.first - 1 : run.first - 1 + run.entries])


@pytest.mark.parametrize("end_is_known", [True, False])
def test_a_payload_is_never_searched_into_unless_it_leads_to_the_end(end_is_known: bool) -> None:
    holder = entry(1, entry(1) + entry(2) + entry(3) + bytes(50))
    data = frame(1, [holder, entry(2, b"real")], 1)
    damaged = flipped(data, record.FRAME_HEADER + 6, 3)  # the holder's length
    runs = salvage(damaged, 0, len(data), 1, 2, end_is_known=end_is_known)
    assert numbers(runs) == ([2] if end_is_known else [])
    for run in runs:
        assert damaged[run.start : run.end] == entry(2, b"real")


@pytest.mark.parametrize("kind", sorted(record.KINDS))
def test_a_row_may_begin_with_any_kind_of_entry(kind: int) -> None:
    data = frame(1, [entry(1, bytes(50)), record.encode_data(kind, 2, b"{}"), entry(3)], 1)
    damaged = flipped(data, record.FRAME_HEADER + 6, 3)  # the first one's length
    assert numbers(salvage(damaged, 0, len(data), 1, 3, end_is_known=True)) == [2, 3]
