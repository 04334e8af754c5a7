"""NumberQueue against a sorted list."""

from __future__ import annotations

from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core import numbers
from kqs.core.numbers import RUN, NumberQueue


@pytest.fixture(params=[2, 5, RUN])
def run_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Small runs, so that few numbers make many of them."""
    monkeypatch.setattr(numbers, "RUN", request.param)
    return int(request.param)


def drain(queue: NumberQueue) -> list[int]:
    taken = []
    while queue:
        head = queue.head()
        assert queue.pop() == head
        taken.append(head)
    return taken


@pytest.mark.parametrize("size", [1, 2, 5])
@given(st.lists(st.one_of(st.integers(0, 60), st.none(), st.lists(st.integers(0, 9), min_size=1))))
def test_whatever_the_order_the_smallest_comes_first(size: int, operations: list[object]) -> None:
    """Numbers are pushed, ``None`` pops, a list is an extend of numbers above all before."""
    before, numbers.RUN = numbers.RUN, size  # type: ignore[misc]
    try:
        queue, model, highest = NumberQueue(), [], 0
        for operation in operations:
            if operation is None:
                assert bool(queue) == bool(model)
                if model:
                    assert queue.pop() == heappop(model)
            elif isinstance(operation, int):
                queue.push(operation)
                heappush(model, operation)
                highest = max(highest, operation)
            else:
                assert isinstance(operation, list)
                run = [highest := highest + step + 1 for step in operation]
                queue.extend(run)
                for number in run:
                    heappush(model, number)
        assert drain(queue) == sorted(model)
    finally:
        numbers.RUN = before  # type: ignore[misc]


def test_in_order(run_size: int) -> None:
    queue = NumberQueue()
    for number in range(3 * run_size + 1):
        queue.push(number)
    assert drain(queue) == list(range(3 * run_size + 1))
    assert not queue


def test_backwards_and_doubled(run_size: int) -> None:
    queue = NumberQueue()
    for number in [*range(2 * run_size, 0, -1), 1]:
        queue.push(number)
    assert drain(queue) == [1, *range(1, 2 * run_size + 1)]


def test_a_number_that_comes_back_is_next(run_size: int) -> None:
    queue = NumberQueue()
    queue.extend(list(range(2 * run_size)))
    first = queue.pop()
    queue.pop()
    queue.push(first)
    assert [queue.pop(), queue.pop()] == [0, 2]


def test_numbers_that_come_back_among_arrivals_that_still_wait(run_size: int) -> None:
    """Jobs kicked or given another priority: a full run of them lies between waiting arrivals."""
    queue = NumberQueue()
    arrivals = [0, 10 * run_size]
    queue.extend(arrivals)
    back = list(range(1, run_size + 1))
    for number in reversed(back):
        queue.push(number)
    queue.push(20 * run_size)
    assert drain(queue) == [0, *back, 10 * run_size, 20 * run_size]


def test_eight_bytes_a_number() -> None:
    import tracemalloc

    queue, count = NumberQueue(), 200_000
    tracemalloc.start()
    try:
        for number in range(count):
            queue.push(number)
        size, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 12 * count
