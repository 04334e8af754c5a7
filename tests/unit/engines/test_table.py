"""JobTable against a dict."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kqs.engines.embedded import table as module
from kqs.engines.embedded.table import ROW_BYTES, ROWS, JobTable, pack_meta

META = pack_meta(5, 2, 2)


def seen(table: JobTable, start: int = 0) -> list[tuple[int, int, int]]:
    rows = table.rows(start)
    return [(row.chunk.number[row.at], row.chunk.place[row.at], row.chunk.attempt[row.at]) for row in rows]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 200)),
        st.tuples(st.just("extend"), st.integers(1, 12)),
        st.tuples(st.just("remove"), st.integers(0, 400)),
        st.tuples(st.just("attempt"), st.integers(0, 400)),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(OPERATIONS, st.integers(0, 300))
def test_rows_are_what_was_put_and_not_removed(operations: list[tuple[str, int]], start: int) -> None:
    before, module.ROWS = module.ROWS, 4  # type: ignore[misc]
    try:
        table, model = JobTable(), {}
        for name, number in operations:
            if name == "add" and number not in model:
                table.add(number, number * 10, 7, 0, META)
                model[number] = (number, number * 10, 0)
            elif name == "extend":
                first = table.highest + 1
                numbers = list(range(first, first + number))
                table.extend(numbers, [n * 10 for n in numbers], [7] * number, [0] * number, [META] * number)
                model |= {n: (n, n * 10, 0) for n in numbers}
            elif name == "remove" and number in model:
                row = table.row(number)
                assert row is not None
                table.remove(row)
                del model[number]
            elif name == "attempt" and number in model:
                row = table.row(number)
                assert row is not None
                row.chunk.attempt[row.at] += 1
                model[number] = (*model[number][:2], model[number][2] + 1)
            assert (table.row(number) is not None) == (number in model)
            assert len(table) == len(model)
        assert seen(table) == [model[number] for number in sorted(model)]
        assert seen(table, start) == [model[number] for number in sorted(model) if number >= start]
    finally:
        module.ROWS = before  # type: ignore[misc]


def test_a_number_that_was_removed_can_come_back() -> None:
    """Compaction meets this in replay: a carry entry replaces a row."""
    table = JobTable()
    for number in (1, 2, 3):
        table.add(number, number, 7, 0, META)
    row = table.row(2)
    assert row is not None
    table.remove(row)
    table.add(2, 99, 7, 0, META)
    assert seen(table) == [(1, 1, 0), (2, 99, 0), (3, 3, 0)]


def _filled(count: int) -> tuple[JobTable, int]:
    columns: list[Any] = [
        list(range(1, count + 1)),
        [1 << 40] * count,
        [100] * count,
        [0] * count,
        [META] * count,
    ]
    tracemalloc.start()
    try:
        table = JobTable()
        table.extend(*columns)
        return table, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_row_costs_its_columns() -> None:
    _table, size = _filled(20 * ROWS)
    assert size < 1.1 * ROW_BYTES * 20 * ROWS


@pytest.mark.parametrize("keep_every", [2, 10, 1000])
def test_jobs_that_are_gone_cost_nothing_much(keep_every: int) -> None:
    """A few stuck jobs do not keep the rows of all those around them."""
    count = 20 * ROWS
    tracemalloc.start()
    try:
        table = JobTable()
        numbers = list(range(1, count + 1))
        table.extend(numbers, [1 << 40] * count, [100] * count, [0] * count, [META] * count)
        for number in numbers:
            if number % keep_every:
                row = table.row(number)
                assert row is not None
                table.remove(row)
        del numbers
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    allowed = 3 * ROW_BYTES * len(table) + 70 * ROW_BYTES * 20 + 2 * ROW_BYTES * ROWS
    assert size < allowed
