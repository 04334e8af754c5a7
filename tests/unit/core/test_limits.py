"""Pauses and limits in the scheduler: exact, at any time, and nothing left behind.

A limit by itself: test_gates.py.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kqs.core.job import SECOND
from kqs.core.shares import Share, Shares

from .owner import Owner, check_insides, lanes_of, of_class, of_keys, of_types, served

# -- pauses and limits ------------------------------------------------------------------------------


def test_pause_and_resume() -> None:
    owner = Owner()
    (a,), (b,) = owner.insert("a"), owner.insert("b")
    owner.pause("a")
    owner.pause("a")
    assert owner.scheduler.held_back("a") and not owner.scheduler.held_back("b")
    assert owner.take(limit=9) == [b]
    (later,) = owner.insert("a")
    assert owner.take(limit=9) == []
    owner.resume("a")
    owner.resume("a")
    assert list(owner.scheduler.reopened) == ["a"]
    assert owner.take(limit=9) == [a, later]


def test_a_type_is_paused_before_it_has_jobs() -> None:
    owner = Owner()
    owner.resume("a")
    owner.pause("a")
    owner.insert("a")
    assert owner.take() == []
    assert len(owner.scheduler._kinds) == 1


LIMITED = {
    "type": of_types(a=Share(concurrency=2)),
    "class": of_class(Share(concurrency=2), "a", "b"),
    "key": of_keys(k=Share(concurrency=2)),
}


@pytest.mark.parametrize("kind", LIMITED)
def test_concurrency_is_exact(kind: str) -> None:
    owner = Owner(LIMITED[kind])
    numbers = owner.insert("a", "k", count=6)
    assert owner.take(limit=9) == numbers[:2]
    assert owner.take(limit=9) == []
    assert owner.scheduler.closed_limits(owner.scheduler.lane("a", "k"))[0]["kind"] == kind
    owner.end(numbers[0])
    assert list(owner.scheduler.reopened) == ["a"]
    assert owner.take(limit=9) == [numbers[2]]
    owner.untake(numbers[2])
    assert owner.take(limit=9) == [numbers[2]]


@pytest.mark.parametrize("kind", LIMITED)
def test_what_ran_at_the_start_counts(kind: str) -> None:
    owner = Owner(LIMITED[kind])
    runs = owner.running_at_start("a", "k")
    owner.running_at_start("a", "k")
    owner.running_at_start("a", "k")
    owner.insert("a", "k", count=3)
    assert owner.take(limit=9) == []
    owner.end(runs)
    assert owner.take(limit=9) == []
    owner.end(runs + 1)
    assert len(owner.take(limit=9)) == 1


def test_a_class_is_one_limit_and_a_key_one_for_all_types() -> None:
    owner = Owner(of_class(Share(concurrency=1), "a", "b"))
    for name in "abc":
        owner.insert(name, count=2)
    taken = owner.take(limit=9)
    assert sorted(owner.jobs[number].type for number in taken) == ["a", "c", "c"]
    owner = Owner(of_keys(k=Share(concurrency=1)))
    owner.insert("a", "k")
    owner.insert("b", "k")
    owner.insert("b", "l")
    assert [owner.jobs[number].key for number in owner.take(limit=9)].count("k") == 1


@given(st.data(), st.sampled_from([1 / 3, 7.0, 33.3]), st.sampled_from([0, 1, 4]), st.integers(0, 10**15))
@settings(max_examples=60, deadline=None)
def test_limits_together_are_never_exceeded(data: st.DataObject, rate: float, burst: int, start: int) -> None:
    """Type, class and key, concurrency and rate: counted over all pairs of starts, from the very start."""
    shares = Shares(
        of_type=lambda name: ("x", Share(rate=rate * 2, burst=burst)),
        classes={"x": Share(concurrency=5, rate=rate * 3, burst=burst)},
        of_key=lambda key: Share(concurrency=2, rate=rate, burst=burst),
    )
    owner = Owner(shares, start)
    for type_ in "ab":
        for key in "kl":
            owner.insert(type_, key, count=40)
    starts: dict[tuple[str, str], list[int]] = {}
    for _ in range(data.draw(st.integers(1, 60))):
        for number in owner.take((), 8, checked=False):
            job = owner.jobs[number]
            for name, _share in owner.limits(job):
                starts.setdefault(name, []).append(owner.now)
        limits = dict(pair for job in owner.jobs.values() for pair in owner.limits(job))
        for name, share in limits.items():
            assert not share.concurrency or owner.running(name) <= share.concurrency
        running = [number for number, job in owner.jobs.items() if job.state == "running"]
        for number in running[: data.draw(st.integers(0, 3))]:
            owner.end(number)
        wake = owner.scheduler.next_wake()
        if wake is not None and data.draw(st.booleans()):
            owner.now = max(owner.now, wake)
        else:
            owner.now += data.draw(st.sampled_from([1, 1000, 10**5, 10**6, 10**7]))
    for (kind, _name), times in starts.items():
        part = Fraction({"type": rate * 2, "class": rate * 3, "key": rate}[kind])
        size = burst or max(1, round(float(part) / 10))
        for (i, first), (j, last) in combinations(enumerate(times), 2):
            assert j - i + 1 <= size + part * (last - first) / SECOND
        assert all(j + 1 <= part * (time - start) / SECOND for j, time in enumerate(times))


def test_a_bucket_is_empty_at_the_start_for_types_that_are_new_too() -> None:
    owner = Owner(of_types(a=Share(rate=1.0, burst=3)))
    owner.insert("a", count=9)
    assert owner.take(limit=9) == []
    assert owner.scheduler.next_wake() == owner.started + SECOND
    owner.now += SECOND
    assert len(owner.take(limit=9)) == 1


def test_a_rate_waits_by_a_timer_and_tells_the_type() -> None:
    owner = Owner(of_keys(k=Share(rate=2.0, burst=1)))
    owner.insert("a", "k", count=3)
    assert owner.take() == []
    wake = owner.scheduler.next_wake()
    assert wake == owner.started + SECOND // 2
    owner.now = wake - 1
    owner.scheduler.tick(owner.now)
    assert owner.scheduler.reopened == {} and owner.scheduler.held_back("a")
    owner.now = wake
    owner.scheduler.tick(owner.now)
    assert list(owner.scheduler.reopened) == ["a"] and not owner.scheduler.held_back("a")
    assert len(owner.take(limit=9)) == 1


def test_a_limited_lane_keeps_nobody_else_waiting() -> None:
    owner = Owner(of_keys(k=Share(concurrency=1)))
    owner.insert("a", "k", count=10)
    owner.insert("a", "l", count=10)
    assert Counter(owner.jobs[number].key for number in owner.take(limit=11)) == {"k": 1, "l": 10}


# -- other settings ---------------------------------------------------------------------------------


def test_new_limits_count_what_runs() -> None:
    owner = Owner()
    owner.insert("a", "k", count=9)
    running = owner.take(limit=4)
    owner.arrange(of_keys(k=Share(concurrency=3)))
    assert owner.take() == []
    owner.end(running[0])
    assert owner.take() == []
    owner.end(running[1])
    assert len(owner.take(limit=9)) == 1
    owner.arrange(Shares())
    assert len(owner.take(limit=9)) == 4


def test_a_class_that_lost_its_types_counts_anew() -> None:
    """What runs under a class counts there only while its type is in it."""
    full = of_class(Share(concurrency=1), "a")
    owner = Owner(full)
    owner.insert("a")
    (number,) = owner.take()
    owner.arrange(of_class(Share(concurrency=1), "b"))
    owner.insert("b", count=2)
    (other,) = owner.take(limit=9)
    owner.end(number)
    owner.end(other)
    assert len(owner.take(limit=9)) == 1


def test_a_faster_rate_does_not_wait_for_the_slower_ones_timer() -> None:
    owner = Owner(of_types(a=Share(rate=5 / 3600, burst=1)))
    owner.insert("a", count=3)
    assert owner.take() == []
    owner.arrange(of_types(a=Share(rate=10.0, burst=1)))
    assert owner.take() == []
    wake = owner.scheduler.next_wake()
    assert wake is not None and wake <= owner.now + SECOND // 10
    owner.now = wake
    assert len(owner.take()) == 1


SLOW_KEY = of_keys(k=Share(rate=0.01, burst=4))


def _run_two_and_forget(owner: Owner) -> None:
    """Two jobs of a key have run, and its lane is not remembered any more."""
    owner.now += 1000 * SECOND
    owner.insert("a", "k", count=2)
    for number in owner.take(limit=2):
        owner.end(number)
    owner.now += 61 * SECOND
    assert owner.take() == []
    owner.insert("a", "other")
    owner.end(*owner.take())


def test_a_key_that_comes_back_does_not_wait_until_its_bucket_is_full() -> None:
    """Its limit is kept until then; but who comes earlier needs one token only."""
    owner = Owner(SLOW_KEY)
    _run_two_and_forget(owner)
    assert ("a", "k") not in {(lane.type, lane.key) for lane in lanes_of(owner.scheduler)}
    full = owner.scheduler.next_wake()
    assert full == owner.now + 139 * SECOND
    owner.insert("a", "k", count=9)
    assert len(owner.take(limit=9)) == 2
    wake = owner.scheduler.next_wake()
    assert wake == owner.now + 39 * SECOND
    owner.now = wake
    assert len(owner.take(limit=9)) == 1


def test_a_key_that_is_gone_is_forgotten_after_new_settings_too() -> None:
    owner = Owner(SLOW_KEY)
    _run_two_and_forget(owner)
    owner.arrange(SLOW_KEY)
    assert len(owner.scheduler.limits()) == 1
    owner.now += 139 * SECOND
    assert owner.take() == []
    assert owner.scheduler.limits() == []


def test_a_key_that_is_gone_keeps_its_bucket_until_it_is_full() -> None:
    owner = Owner(of_keys(k=Share(rate=1.0, burst=2)))
    owner.now += 100 * SECOND
    owner.insert("a", "k", count=2)
    for number in owner.take(limit=9):
        owner.end(number)
    owner.now += SECOND
    owner.insert("a", "k", count=9)
    (number,) = owner.take(limit=9)
    owner.end_all()
    owner.now += 200 * SECOND
    owner.take()
    owner.end(owner.running_at_start("a", "other"))
    assert owner.scheduler.limits() == []
    assert owner.scheduler.next_wake() is None


def test_a_limit_that_is_gone_leaves_nothing_behind() -> None:
    owner = Owner(of_class(Share(rate=1.0, burst=1), "a"))
    owner.pause("a")
    owner.insert("a", count=2)
    assert owner.take() == []
    owner.arrange(Shares())
    owner.now += 10 * SECOND
    assert owner.take() == []
    check_insides(owner.scheduler)
    assert owner.scheduler.next_wake() is None


def test_weights_change() -> None:
    owner = Owner()
    for key in "kl":
        owner.insert("a", key, count=9)
    served(owner, 100)
    owner.arrange(of_keys(k=Share(weight=3.0)))
    assert Counter(served(owner, 100))["k"] == pytest.approx(75, abs=2)
