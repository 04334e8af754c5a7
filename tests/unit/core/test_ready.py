"""The ready queue against a list that is sorted anew each time.

The queue's owner is played here as the engine plays it: it knows each job's state, and denies a number that
is not ready any more or was taken already.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kqs.core.ready import PRIORITIES, ReadyQueue

TYPES = ["a", "b", "c"]
prios = st.integers(0, PRIORITIES - 1)


def take(queue: ReadyQueue, ready: dict[int, tuple[int, str]], types: list[str], limit: int) -> list[int]:
    """Pop as the engine does; what is taken is ready no more."""
    taken: set[int] = set()

    def still_ready(number: int, prio: int) -> bool:
        if number in taken or number not in ready or ready[number][0] != prio:
            return False
        taken.add(number)
        return True

    numbers = queue.pop(frozenset(types), limit, still_ready)
    assert set(numbers) == taken
    for number in numbers:
        del ready[number]
    return numbers


def filled(*jobs: tuple[int, str, int]) -> tuple[ReadyQueue, dict[int, tuple[int, str]]]:
    queue = ReadyQueue()
    for prio, type_, number in jobs:
        queue.push(prio, type_, number)
    return queue, {number: (prio, type_) for prio, type_, number in jobs}


def test_an_empty_queue() -> None:
    queue = ReadyQueue()
    assert queue.pop(frozenset(), 10, lambda number, prio: True) == []
    assert list(queue.heads(lambda number, prio: True)) == []


def test_priority_first_then_insertion_across_types() -> None:
    queue, ready = filled((4, "a", 1), (2, "a", 2), (2, "b", 3), (2, "a", 4), (0, "c", 5))
    assert take(queue, ready, [], 9) == [5, 2, 3, 4, 1]


def test_only_the_types_asked_for() -> None:
    queue, ready = filled((0, "a", 1), (1, "b", 2), (1, "c", 3), (1, "b", 4))
    assert take(queue, ready, ["b", "c", "x"], 9) == [2, 3, 4]
    assert take(queue, ready, ["b"], 9) == []
    assert take(queue, ready, [], 9) == [1]


def test_more_types_asked_for_than_there_are() -> None:
    queue, ready = filled((2, "a", 1), (2, "b", 2))
    assert take(queue, ready, [f"t{number}" for number in range(100)] + ["b"], 9) == [2]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_the_limit_cuts_anywhere(limit: int) -> None:
    jobs = [(number % PRIORITIES, TYPES[number % 3], number) for number in range(1, 31)]
    queue, ready = filled(*jobs)
    expected = [number for _prio, number in sorted((prio, number) for prio, _type, number in jobs)]
    got: list[int] = []
    while part := take(queue, ready, [], limit):
        assert len(part) <= limit
        got += part
    assert got == expected


def test_a_returned_job_is_before_younger_ones() -> None:
    queue, ready = filled((2, "a", 1), (2, "a", 2), (2, "a", 3))
    assert take(queue, ready, [], 2) == [1, 2]
    ready[1] = (2, "a")
    queue.push(2, "a", 1)
    assert take(queue, ready, [], 9) == [1, 3]


def test_a_job_whose_priority_changed_is_not_taken_at_its_old_one() -> None:
    queue, ready = filled((0, "a", 1), (2, "a", 2))
    ready[1] = (4, "a")
    queue.push(4, "a", 1)
    assert take(queue, ready, [], 9) == [2, 1]


def test_heads_are_the_oldest_of_their_lanes() -> None:
    queue, _ready = filled((2, "a", 5), (2, "a", 6), (2, "b", 3), (0, "a", 9))
    queue.push(2, "a", 4)
    assert sorted(queue.heads(lambda number, prio: True)) == [3, 4, 9]


class ReadyQueueMachine(RuleBasedStateMachine):
    """Jobs are inserted, leased, returned, taken out and brought back, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = ReadyQueue()
        self.last = 0
        self.ready: dict[int, tuple[int, str]] = {}
        self.away: dict[int, str] = {}

    @rule(prio=prios, type_=st.sampled_from(TYPES), count=st.integers(1, 4))
    def insert(self, prio: int, type_: str, count: int) -> None:
        for _ in range(count):
            self.last += 1
            self.ready[self.last] = (prio, type_)
            self.queue.push(prio, type_, self.last)

    @rule(types=st.lists(st.sampled_from([*TYPES, "none"]), unique=True), limit=st.integers(1, 6))
    def pop(self, types: list[str], limit: int) -> None:
        wanted = [
            (prio, number) for number, (prio, type_) in self.ready.items() if not types or type_ in types
        ]
        expected = [number for _prio, number in sorted(wanted)[:limit]]
        type_of = {number: type_ for number, (_prio, type_) in self.ready.items()}
        assert take(self.queue, self.ready, types, limit) == expected
        self.away.update({number: type_of[number] for number in expected})

    @precondition(lambda self: self.away)
    @rule(data=st.data(), prio=prios)
    def give_back(self, data: st.DataObject, prio: int) -> None:
        """Retried, released, due or kicked: with its old number, so its old place."""
        number = data.draw(st.sampled_from(sorted(self.away)))
        type_ = self.away.pop(number)
        self.ready[number] = (prio, type_)
        self.queue.push(prio, type_, number)

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def take_out(self, data: st.DataObject) -> None:
        """Buried or deleted while ready: the queue is not told."""
        number = data.draw(st.sampled_from(sorted(self.ready)))
        _prio, type_ = self.ready.pop(number)
        self.away[number] = type_

    @invariant()
    def heads_are_known_numbers(self) -> None:
        def still_ready(number: int, prio: int) -> bool:
            return number in self.ready and self.ready[number][0] == prio

        heads = list(self.queue.heads(still_ready))
        assert all(number in self.ready for number in heads)
        assert min(heads, default=None) == min(self.ready, default=None)

    def teardown(self) -> None:
        """Nothing is lost, nothing comes twice."""
        by_prio = sorted(self.ready, key=lambda number: (self.ready[number][0], number))
        assert take(self.queue, self.ready, [], len(by_prio) + 1) == by_prio
        assert take(self.queue, self.ready, [], 1) == []


TestReadyQueue = ReadyQueueMachine.TestCase
TestReadyQueue.settings = settings(max_examples=80, stateful_step_count=30)
