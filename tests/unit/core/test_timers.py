"""Deadlines against a plain list: never early, at most a bucket late, each told once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kqs.core.timers import BUCKET_BITS, DeadlineWheel, DueCalendar

BUCKET = 1 << BUCKET_BITS


class WheelMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.wheel = DeadlineWheel()
        self.now = 1_000_000
        self.count = 0
        self.deadlines: dict[int, int] = {}

    @rule(after=st.integers(-3 * BUCKET, 5 * BUCKET))
    def add(self, after: int) -> None:
        self.count += 1
        self.deadlines[self.count] = self.now + after
        self.wheel.add(self.count, self.now + after)

    @precondition(lambda self: self.deadlines)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.deadlines)))
        self.wheel.remove(number, self.deadlines.pop(number))

    @rule(number=st.integers(10_000, 10_010), deadline=st.integers(0, 2_000_000))
    def remove_what_is_not_there(self, number: int, deadline: int) -> None:
        self.wheel.remove(number, deadline)

    def pop(self) -> None:
        due = self.wheel.pop_due(self.now)
        told = [(self.deadlines.pop(number), number) for number in due]
        assert told == sorted(told)
        assert all(deadline <= self.now for deadline, _number in told), "early"
        assert all(deadline > self.now - BUCKET for deadline in self.deadlines.values()), "late"

    @rule(step=st.integers(0, 3 * BUCKET))
    def advance(self, step: int) -> None:
        self.now += step
        self.pop()

    @rule()
    def wake(self) -> None:
        """Sleep as the engine does: until it is told to."""
        wake = self.wheel.next_wake()
        if wake is not None:
            before = len(self.deadlines)
            self.now = max(self.now, wake)
            self.pop()
            assert len(self.deadlines) < before, "woken for nothing"

    @invariant()
    def wakes_in_time(self) -> None:
        wake = self.wheel.next_wake()
        assert (wake is None) is (not self.deadlines)
        if wake is not None:
            first = min(self.deadlines.values())
            assert first < wake <= first + BUCKET

    def teardown(self) -> None:
        self.now += 10 * BUCKET
        self.pop()
        assert not self.deadlines
        assert self.wheel.pop_due(self.now) == []


TestDeadlineWheel = WheelMachine.TestCase
TestDeadlineWheel.settings = settings(max_examples=80, stateful_step_count=30)


def test_never_early_by_a_microsecond() -> None:
    for deadline in (0, 1, BUCKET - 1, BUCKET, BUCKET + 1, 7 * BUCKET + 5):
        wheel = DeadlineWheel()
        wheel.add(1, deadline)
        assert wheel.pop_due(deadline - 1) == []
        assert wheel.pop_due(deadline + BUCKET) == [1]


def test_in_the_order_of_deadlines() -> None:
    wheel = DeadlineWheel()
    for number, deadline in ((1, 900), (2, 100), (3, BUCKET + 1), (4, 500), (5, 100)):
        wheel.add(number, deadline)
    assert wheel.pop_due(10 * BUCKET) == [2, 5, 4, 1, 3]


def test_a_renewed_deadline_is_told_at_its_new_time_only() -> None:
    wheel = DeadlineWheel()
    wheel.add(1, 100)
    wheel.remove(1, 100)
    wheel.add(1, 5 * BUCKET)
    assert wheel.pop_due(3 * BUCKET) == []
    assert wheel.next_wake() == 6 * BUCKET
    assert wheel.pop_due(6 * BUCKET) == [1]
    assert wheel.next_wake() is None


# -- DueCalendar ---------------------------------------------------------------------------------


class CalendarMachine(RuleBasedStateMachine):
    """Jobs wait, stop waiting without a word, wait for another time, and come due exactly then."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000
        self.count = 0
        self.waits: dict[int, int] = {}
        self.calendar = DueCalendar(self.waits.get)

    def add(self, number: int, after: int) -> None:
        self.waits[number] = self.now + after
        self.calendar.add(number, self.now + after)

    @rule(after=st.integers(-2 * BUCKET, 5 * BUCKET))
    def wait(self, after: int) -> None:
        self.count += 1
        self.add(self.count, after)

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Kicked, buried, deleted: the calendar is not told."""
        del self.waits[data.draw(st.sampled_from(sorted(self.waits)))]

    @precondition(lambda self: self.waits)
    @rule(data=st.data(), after=st.integers(0, 3 * BUCKET))
    def wait_for_another_time(self, data: st.DataObject, after: int) -> None:
        self.add(data.draw(st.sampled_from(sorted(self.waits))), after)

    @precondition(lambda self: self.count)
    @rule(data=st.data(), after=st.integers(0, 3 * BUCKET))
    def wait_again(self, data: st.DataObject, after: int) -> None:
        """One that was released is delayed anew, under its number."""
        self.add(data.draw(st.integers(1, self.count)), after)

    def pop(self) -> None:
        expected = sorted((due, number) for number, due in self.waits.items() if due <= self.now)
        told = [(self.waits.pop(number), number) for number in self.calendar.pop_due(self.now, 10_000)]
        assert told == expected
        assert not self.calendar.behind

    @rule(step=st.integers(0, 3 * BUCKET), most=st.integers(1, 4), calls=st.integers(1, 9))
    def advance_some(self, step: int, most: int, calls: int) -> None:
        """A few at a time: each at most once, none early, and all in the end."""
        self.now += step
        for _ in range(calls):
            numbers = self.calendar.pop_due(self.now, most)
            assert len(numbers) <= most
            for number in numbers:
                assert self.waits.pop(number) <= self.now
            if not self.calendar.behind:
                assert not [due for due in self.waits.values() if due <= self.now]

    @rule(step=st.integers(0, 3 * BUCKET))
    def advance(self, step: int) -> None:
        self.now += step
        self.pop()

    @rule()
    def wake(self) -> None:
        wake = self.calendar.next_wake()
        if wake is not None:
            self.now = max(self.now, wake)
            self.pop()

    @invariant()
    def wakes_for_the_earliest(self) -> None:
        assert self.calendar.next_wake() == min(self.waits.values(), default=None)


TestDueCalendar = CalendarMachine.TestCase
TestDueCalendar.settings = settings(max_examples=80, stateful_step_count=30)


def test_a_delay_is_exact_to_the_microsecond() -> None:
    for due in (1, BUCKET - 1, BUCKET, BUCKET + 1, 7 * BUCKET + 5):
        waits = {1: due, 2: due + 1}
        calendar = DueCalendar(waits.get)
        for number, at in waits.items():
            calendar.add(number, at)
        assert calendar.pop_due(due - 1, 9) == []
        assert calendar.pop_due(due, 9) == [1]
        del waits[1]
        assert calendar.next_wake() == due + 1
        assert calendar.pop_due(due + 1, 9) == [2]


def test_a_calendar_in_the_order_of_times_then_numbers() -> None:
    waits = {1: 900, 2: 100, 3: BUCKET + 1, 4: 500, 5: 100}
    calendar = DueCalendar(waits.get)
    for number, at in waits.items():
        calendar.add(number, at)
    assert calendar.pop_due(10 * BUCKET, 9) == [2, 5, 4, 1, 3]


def test_one_that_waits_for_another_time_has_that_times_place() -> None:
    waits = {1: 5, 2: BUCKET + 1}
    calendar = DueCalendar(waits.get)
    for number, at in waits.items():
        calendar.add(number, at)
    waits[1] = BUCKET + 2
    calendar.add(1, BUCKET + 2)
    assert calendar.pop_due(2 * BUCKET, 9) == [2, 1]
