"""The heaps of the scheduler, by themselves; what they are for is tested in test_fairshare.py."""

from __future__ import annotations

from heapq import heappop, heappush

from hypothesis import given, settings
from hypothesis import strategies as st

from kqs.core.gates import Limit
from kqs.core.lanes import Group, Kind, Lane, Line
from kqs.core.shares import Share


def line(tag: float = 0.0, *numbers: int, group: Group | None = None, limit: Limit | None = None) -> Line:
    """A line of a lane of its own."""
    kind = group.kind if group is not None else Kind("t")
    lane = Lane(0, kind, None)
    lane.limits = () if limit is None else (limit,)
    made = Line(lane, group or Group(kind, 2))
    made.tag = tag
    for number in numbers:
        made.push(number)
    return made


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.integers(0, 60),
            st.lists(st.integers(0, 60), min_size=1, max_size=6).map(sorted),
            st.just("pop"),
        ),
        max_size=60,
    )
)
def test_a_line_is_a_sorted_list(steps: list[int | list[int] | str]) -> None:
    tested, model = line(), list[int]()
    for step in steps:
        if isinstance(step, int):
            tested.push(step)
            heappush(model, step)
        elif isinstance(step, list):
            tested.extend(step)
            for number in step:
                heappush(model, number)
        elif model:
            assert tested.pop() == heappop(model)
        assert tested.head == (model[0] if model else -1)
        for number in (0, 7, 30, 61):
            assert tested.before(number) == sum(other < number for other in model)


def test_a_job_that_comes_back_meets_the_entry_of_its_line_that_is_gone() -> None:
    group = Group(Kind("t"), 2)
    gone, line_ = (line(1.0, 7, group=group) for _ in range(2))
    group.enter(gone)
    group.remove(gone)
    group.enter(line_)
    assert group.top() == (1.0, 7, line_)


def test_the_lowest_tag_is_first_and_the_lowest_number_of_those() -> None:
    group = Group(Kind("t"), 2)
    lines = [line(tag, number, group=group) for tag, number in ((5, 1), (3, 9), (3, 7))]
    for one in lines:
        assert group.enter(one)
    taken = []
    while (top := group.top()) is not None:
        taken.append((top[0], top[1]))
        top[2].pop()  # type: ignore[union-attr]
        group.known = None
    assert taken == [(3, 7), (3, 9), (5, 1)]


def test_a_tag_that_rose_is_put_right_and_one_that_fell_is_entered_anew() -> None:
    group = Group(Kind("t"), 2)
    one, two = line(1, 1, group=group), line(2, 2, group=group)
    group.enter(one)
    group.enter(two)
    assert group.top() == (1, 1, one)
    one.tag, group.known = 10, None
    assert group.top() == (2, 2, two)
    one.tag = 1
    group.offer(one, 1, 1)
    assert group.top() == (1, 1, one)
    assert group.second() <= (2, 2)


def test_what_comes_second_is_never_told_too_late() -> None:
    group = Group(Kind("t"), 2)
    assert group.second() == (float("inf"), 0)
    for tag in (4.0, 1.0, 3.0, 2.0):
        group.enter(line(tag, int(tag), group=group))
    assert group.top() is not None
    assert group.second() == (2.0, 2)


def test_a_heap_does_not_keep_what_was_entered_anew() -> None:
    group = Group(Kind("t"), 2)
    one, other = line(1e9, 1, group=group), line(0, 2, group=group)
    group.enter(one)
    group.enter(other)
    for step in range(10_000):
        group.offer(one, 1e9 - step, 1)
    assert len(group._heap) < 200


def test_a_closed_gate_takes_a_line_out_until_it_opens() -> None:
    group = Group(Kind("t"), 2)
    limit = Limit("key", "K", Share(concurrency=1), 0)
    held, free = line(1, 1, group=group, limit=limit), line(2, 2, group=group)
    group.enter(held)
    group.enter(free)
    assert not limit.enter(0)
    assert group.top() == (2, 2, free)
    assert held not in group.nodes()
    limit.running = 0
    assert limit.open() == [(group, held)]
    group.enter(held)
    assert group.top() == (1, 1, held)


def test_a_line_that_is_gone_is_nowhere() -> None:
    group = Group(Kind("t"), 2)
    limit = Limit("key", "K", Share(concurrency=1), 0)
    one = line(1, 1, group=group, limit=limit)
    group.enter(one)
    limit.enter(0)
    assert group.top() is None
    assert limit.held
    group.remove(one)
    assert not limit.held
