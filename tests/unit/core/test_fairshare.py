"""The scheduler: order, shares, what a decision costs.

Pauses and limits: test_limits.py; any sequence: test_fairshare_machine.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kqs.core import lanes, limits
from kqs.core.fairshare import PRIORITY_WEIGHTS, Scheduler
from kqs.core.job import SECOND
from kqs.core.lanes import FIRST_COST, PRIORITIES
from kqs.core.shares import NO_SHARE, Share, Shares

from .owner import Owner, check_insides, lanes_of, of_keys, served

# -- order ------------------------------------------------------------------------------------------


def test_an_empty_scheduler() -> None:
    owner = Owner()
    assert owner.take(limit=10) == []
    assert len(owner.scheduler) == len(owner.scheduler._kinds) == 0
    assert owner.scheduler.next_wake() is None
    assert owner.scheduler.oldest(owner.still_ready) is None


def test_priority_first_whoever_is_behind() -> None:
    owner = Owner()
    bulk = owner.insert("a", "new", 4)
    served_before = owner.insert("a", "old", 3, 10)
    owner.take(limit=5)
    urgent = owner.insert("a", "old", 0)
    normal = owner.insert("b", None, 2)
    assert owner.take(limit=99) == [*urgent, *normal, *served_before[5:], *bulk]


def test_older_jobs_that_come_together_are_before_younger_ones() -> None:
    scheduler = Scheduler()
    scheduler.arrange(Shares(order="fifo"), 0)
    scheduler.push(2, scheduler.lane("a", "k"), 10)
    scheduler.push(2, scheduler.lane("a", "l"), 5)
    assert scheduler.take((), 0, 0, lambda number, prio: True) == []
    scheduler.extend(2, scheduler.lane("a", "k"), [1, 2])
    assert scheduler.take((), 9, 0, lambda number, prio: True) == [1, 2, 5, 10]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_a_lane_is_first_in_first_out_wherever_the_limit_cuts(limit: int) -> None:
    owner = Owner()
    numbers = owner.insert("a", "k", 2, 30)
    got: list[int] = []
    while part := owner.take(limit=limit):
        assert len(part) <= limit
        got += part
    assert got == numbers


def test_no_job_is_asked_for() -> None:
    owner = Owner()
    owner.insert("a")
    assert owner.take(limit=0) == []


def test_a_job_that_comes_back_is_before_younger_ones() -> None:
    owner = Owner()
    first, second, third = owner.insert("a", count=3)
    assert owner.take(limit=2) == [first, second]
    owner.again(first)
    assert owner.take(limit=9) == [first, third]


def test_only_the_types_asked_for() -> None:
    owner = Owner()
    (a,), (b,), (c,) = owner.insert("a", None, 0), owner.insert("b", None, 1), owner.insert("c", None, 1)
    assert owner.take({"b", "c", "x"}, 9) == [b, c]
    assert owner.take({"b"}, 9) == []
    assert owner.take({f"t{number}" for number in range(100)} | {"a"}, 9) == [a]


def test_fifo_is_first_in_first_out_across_lanes() -> None:
    owner = Owner(Shares(order="fifo"))
    numbers = [owner.insert("ab"[n % 2], ["k", "l", None][n % 3], 2)[0] for n in range(20)]
    for number in numbers[:10]:
        assert owner.take() == [number]
        owner.end(number, 10**6 if number % 2 else 10)
    assert owner.take(limit=99) == numbers[10:]


def test_fifo_and_back() -> None:
    owner = Owner()
    owner.insert("a", "many", 2, 100)
    for number in owner.take(limit=50):
        owner.end(number)
    owner.insert("a", "few", 2, 2)
    owner.arrange(Shares(order="fifo"))
    assert [owner.jobs[number].key for number in owner.take(limit=10)] == ["many"] * 10
    owner.arrange(Shares())
    assert sorted(owner.jobs[number].key or "" for number in owner.take(limit=2)) == ["few", "many"]


def test_equal_lanes_take_turns() -> None:
    owner = Owner()
    for key in "kl":
        owner.insert("a", key, 2, 100)
    counts = Counter(served(owner, 100))
    assert counts == {"k": 50, "l": 50}


def test_lanes_of_types_and_of_keys_are_alike() -> None:
    owner = Owner()
    owner.insert("a", "k", count=100)
    owner.insert("a", count=100)
    owner.insert("b", count=100)
    assert Counter(served(owner, 300)) == {"k": 100, "a": 100, "b": 100}


@pytest.mark.parametrize("skew", [10, 1000])
def test_what_is_shared_is_time(skew: int) -> None:
    owner = Owner()
    owner.insert("slow", count=10)
    owner.insert("fast", count=10 * skew)
    counts = Counter(served(owner, 5 * skew + 5, lambda type_, _key: 1000 * (skew if type_ == "slow" else 1)))
    assert counts["slow"] * skew / counts["fast"] == pytest.approx(1, rel=0.25)


def test_weights() -> None:
    owner = Owner(of_keys(one=Share(weight=1.0), two=Share(weight=2.0), four=Share(weight=4.0)))
    for key in ("one", "two", "four"):
        owner.insert("a", key, count=5)
    assert Counter(served(owner, 700)) == {
        "one": pytest.approx(100, abs=2),
        "two": pytest.approx(200, abs=2),
        "four": pytest.approx(400, abs=2),
    }


def test_weights_of_type_and_key_multiply() -> None:
    shares = Shares(
        of_type=lambda name: (None, Share(weight=3.0 if name == "a" else 1.0)),
        of_key=lambda key: Share(weight=2.0),
    )
    owner = Owner(shares)
    owner.insert("a", "k", count=9)
    owner.insert("b", count=9)
    counts = Counter(served(owner, 700))
    assert counts["k"] == pytest.approx(600, abs=3)


def test_weighted_priorities_get_their_parts() -> None:
    owner = Owner(Shares(priority="weighted"))
    for prio in range(PRIORITIES):
        owner.insert("a", f"p{prio}", prio, 9)
    served(owner, 1000)  # what they cost is known now
    counts = Counter(served(owner, 3100))
    for prio, weight in enumerate(PRIORITY_WEIGHTS):
        assert counts[f"p{prio}"] == pytest.approx(100 * weight, rel=0.02)


def test_a_weighted_priority_that_was_empty_has_saved_nothing() -> None:
    owner = Owner(Shares(priority="weighted"))
    owner.insert("a", "p2", 2, 5)
    served(owner, 1000)
    owner.insert("a", "p1", 1, 5)
    counts = Counter(served(owner, 120))
    assert counts["p1"] == pytest.approx(80, abs=2)


@pytest.mark.parametrize("priority", ["strict", "weighted"])
@pytest.mark.parametrize("costs", [[3600 * SECOND], [3600 * SECOND, -1]])
def test_when_nobody_waited_nobody_is_behind(priority: Any, costs: list[int]) -> None:
    """An hour's job is paid for while others wait, not when there were none; whether it is known or not."""
    owner = Owner(Shares(priority=priority))
    owner.insert("a", "runs on")
    owner.take()
    owner.insert("a", "long", count=len(costs))
    owner.scheduler.lane("a", "long").live += 1  # the lane stays
    for cost in costs:
        owner.end(*owner.take(), cost)
    assert owner.take() == []
    owner.insert("a", "other", count=50)
    owner.insert("a", "long", count=50)
    counts = Counter(served(owner, 20))
    assert counts["long"] == pytest.approx(10, abs=1)


# -- starvation -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 100_000)), min_size=50, max_size=300))
@settings(max_examples=30, deadline=None)
def test_every_lane_is_served_within_a_bounded_number_of_decisions(costs: list[tuple[int, int]]) -> None:
    """Ten lanes, and whatever runs takes whatever it takes: none is ahead by more than two long jobs."""
    owner = Owner()
    for key in range(10):
        owner.insert("a", str(key), count=3)
    spent: Counter[str | None] = Counter()
    longest = max(FIRST_COST, *(cost for _lane, cost in costs))
    for _lane, cost in costs:
        (number,) = owner.take(checked=False)
        job = owner.jobs[number]
        assert job.key is not None
        owner.end(number, cost)
        owner.insert("a", job.key)
        spent[job.key] += cost
        times = [spent[str(key)] for key in range(10)]
        assert max(times) - min(times) <= 2 * longest


@pytest.mark.parametrize("queued", [1, 2, 20])
@pytest.mark.parametrize("workers", [1, 4])
def test_lanes_that_come_and_go_do_not_starve_one_that_waits(queued: int, workers: int) -> None:
    """Some client gives each job a key of its own: it gets no more than so many lanes may have."""
    owner = Owner()
    owner.insert("a", "waits", count=3000)
    last, running = 0, []
    turns = []
    for turn in range(3000):
        while sum(job.key != "waits" and job.state == "ready" for job in owner.jobs.values()) < queued:
            owner.insert("a", f"new{last}")
            last += 1
        running += owner.take(checked=False)
        if owner.jobs[running[-1]].key == "waits":
            turns.append(turn)
        if len(running) >= workers:
            owner.end(running.pop(0))
    part = 1 / (queued + workers + 1)
    assert len(turns) / 3000 >= part / 2
    assert max(b - a for a, b in pairwise(turns[5:])) <= 4 / part


def test_a_lane_that_comes_back_gets_no_credit() -> None:
    owner = Owner()
    owner.insert("a", "k", count=3)
    owner.insert("a", "idle")
    served(owner, 10)
    for number in [number for number, job in owner.jobs.items() if job.key == "idle"]:
        owner.delete(number)
    served(owner, 1000)
    owner.insert("a", "idle", count=100)
    assert Counter(served(owner, 40))["idle"] == pytest.approx(20, abs=2)


def test_a_lane_that_leaves_and_comes_back_is_still_behind() -> None:
    """Whoever queues one job at a time, only when the last one is over, must not get more than its part."""
    owner = Owner()
    owner.insert("a", "many", count=5000)
    times: Counter[str] = Counter()
    owner.insert("a", "sly")
    for _ in range(2000):
        (number,) = owner.take(checked=False)
        key = owner.jobs[number].key or ""
        cost = 50_000 if key == "sly" else 1000
        owner.end(number, cost)
        times[key] += cost
        if key == "sly":
            owner.insert("a", "sly")
    assert times["sly"] <= times["many"] + 2 * 50_000


def test_who_queues_one_at_a_time_gets_a_part_too() -> None:
    owner = Owner()
    owner.insert("a", "many", count=5000)
    owner.insert("a", "one")
    counts: Counter[str | None] = Counter()
    for _ in range(1000):
        (number,) = owner.take(checked=False)
        job = owner.jobs[number]
        owner.end(number)
        if job.key == "one":
            owner.insert("a", "one")
        counts[job.key] += 1
    assert counts["one"] == pytest.approx(500, rel=0.05)


# -- many sets of types -----------------------------------------------------------------------------


def test_overlapping_sets_of_types() -> None:
    """Whoever takes more types shares them; nobody is served twice or never."""
    owner = Owner()
    for name in "abc":
        owner.insert(name, count=300)
    sets = [{"a"}, {"a", "b"}, {"b", "c"}, set(), {"c"}]
    for turn in range(180):
        for number in owner.take(sets[turn % 5], 1 + turn % 3):
            owner.end(number)
    check_insides(owner.scheduler)
    assert sorted(owner.take(limit=999)) == sorted(owner.jobs)


def test_more_sets_of_types_than_are_remembered() -> None:
    owner = Owner()
    for name in range(70):
        owner.insert(f"t{name}", "k", count=4)
    for round_ in range(2):
        for name in range(70):
            types = {f"t{name}", f"t{(name + 1) % 70}", f"t{(name + round_) % 70}"}
            owner.end(*owner.take(types, 1))
        check_insides(owner.scheduler)
    assert len(owner.scheduler._views) == 64
    assert len(owner.take(limit=999)) == 140


def test_a_set_of_types_that_is_forgotten_is_forgotten_by_gates_too() -> None:
    owner = Owner()
    owner.pause("a")
    owner.insert("a", count=2)
    for name in range(70):
        assert owner.take({"a", f"none{name}"}) == []
    check_insides(owner.scheduler)
    owner.resume("a")
    assert len(owner.take({"a", "none0"}, 9)) == 2


def test_a_set_of_types_that_was_forgotten_does_not_set_the_clock_back() -> None:
    owner = Owner()
    owner.insert("a", "old", count=5000)
    for _ in range(1000):
        owner.end(owner.take({"a"}, checked=False)[0], 10**6)
    for number in range(100):
        owner.take({f"none{number}"})
    owner.insert("a", "new", count=5000)
    counts = Counter(served(owner, 200, lambda *_: 10**6))
    assert counts["old"] == pytest.approx(100, abs=10)


def test_new_workers_of_more_types_start_where_the_furthest_are() -> None:
    """Two types had workers of their own; then some take both. Neither type pays for what was before."""
    owner = Owner()
    owner.insert("busy", count=5000)
    owner.insert("calm", count=5000)
    for _ in range(1000):
        owner.end(owner.take({"busy"}, checked=False)[0], 10**5)
    for _ in range(10):
        owner.end(owner.take({"calm"}, checked=False)[0], 10**5)
    counts = Counter(served(owner, 100, lambda *_: 10**5))
    assert counts["busy"] > 25


def test_idle_workers_of_one_type_do_not_move_others_ahead() -> None:
    """Who has had much time in one set of types is not paid for by a newcomer in another."""
    owner = Owner()
    owner.insert("many", "k", count=500)
    owner.insert("many", "l", count=500)
    for cost in (3600 * SECOND, 1000, 1000):
        owner.end(owner.take(checked=False)[0], cost)
    assert owner.take({"rare"}) == []
    owner.insert("rare", count=3)
    assert "rare" in served(owner, 6)
    assert owner.take({"rare"}) == [number for number, job in owner.jobs.items() if job.type == "rare"][:1]


# -- hints ------------------------------------------------------------------------------------------


def test_jobs_that_are_over_are_passed_and_cost_nothing() -> None:
    owner = Owner()
    dead = owner.insert("a", "k", count=50)
    alive = owner.insert("a", "k", count=2)
    other = owner.insert("a", "l", count=2)
    for number in dead:
        owner.delete(number)
    assert owner.take(limit=4) == [alive[0], other[0], alive[1], other[1]]
    assert owner.scheduler.lane("a", "k").running == 2


def test_a_job_that_was_parked_and_kicked_runs_once() -> None:
    owner = Owner()
    number, other = owner.insert("a", count=2)
    owner.park(number)
    owner.kick(number)
    assert owner.take(limit=9) == [number, other]
    assert owner.take() == []


def test_a_changed_priority() -> None:
    owner = Owner()
    first, second = owner.insert("a", None, 0, 2)
    owner.park(first)
    owner.kick(first, 4)
    assert owner.take(limit=9) == [second, first]


def test_the_oldest_is_found_in_one_pass() -> None:
    """Jobs that are not ready are looked at once, and only where they would be the oldest."""
    owner = Owner()
    parked = owner.insert("a", "k", count=50)
    (oldest,) = owner.insert("a", "l")
    later = owner.insert("b", "k", count=50)
    for number in [*parked, *later]:
        owner.park(number)
    asked = []

    def still_ready(number: int, prio: int) -> bool:
        asked.append(number)
        return owner.still_ready(number, prio)

    assert owner.scheduler.oldest(still_ready) == oldest
    assert asked == [*parked, oldest]
    owner.park(oldest)
    assert owner.scheduler.oldest(owner.still_ready) is None
    check_insides(owner.scheduler)


def test_untaken_jobs_are_not_charged() -> None:
    owner = Owner()
    owner.insert("a", "k", count=100)
    owner.insert("a", "l", count=100)
    taken = owner.take(limit=60)
    assert len(taken) == 60
    for number in taken:
        owner.untake(number)
    lane = owner.scheduler.lane("a", "k")
    assert lane.running == 0 and lane.lines[2] is not None and lane.lines[2].tag == pytest.approx(0)
    assert sorted(owner.take(limit=60)) == sorted(taken)


# -- lanes come and go ------------------------------------------------------------------------------


def test_lanes_of_keys_are_dropped_and_their_numbers_used_again() -> None:
    owner = Owner()
    for turn in range(1000):
        owner.insert("a", f"k{turn}")
        owner.end(*owner.take())
        owner.now += SECOND
    assert len(owner.scheduler) <= 62
    assert len(owner.scheduler._lanes) <= 63
    check_insides(owner.scheduler)


def test_a_number_used_again_is_a_new_lane() -> None:
    owner = Owner()
    old = owner.scheduler.lane("a", "old")
    owner.scheduler.leave(old)
    new = owner.scheduler.lane("b", "new")
    assert new.id == old.id and new is not old
    assert owner.scheduler.lane_at(new.id) is new
    assert owner.scheduler.lane("a", "old") is not old
    owner.scheduler.leave(old)  # a second time: it is not there any more
    assert owner.scheduler.lane_at(new.id) is new


def test_lanes_that_rest_are_no_more_than_so_many() -> None:
    owner = Owner()
    owner.insert("a", "many", count=20)
    for turn in range(10_500):
        owner.insert("a", f"k{turn}")
    for number in owner.take(limit=10_520, checked=False):
        if owner.jobs[number].key != "many":
            owner.end(number, 10**6)
    assert 9_000 <= len(owner.scheduler) <= 10_001


def test_nothing_grows_when_jobs_come_and_go() -> None:
    """Retries, dead hints, limits that open and close, for a long time."""
    shares = Shares(
        of_type=lambda name: ("x", NO_SHARE),
        classes={"x": Share(concurrency=3)},
        of_key=lambda key: Share(concurrency=1, rate=50.0),
    )
    owner = Owner(shares)
    for key in range(20):
        owner.insert("ab"[key % 2], str(key), count=2)
    for turn in range(5000):
        owner.now += 7_000
        for number in owner.take(({"a"}, {"b"}, set())[turn % 3], 2, checked=False):
            if turn % 3:
                owner.again(number, 1 + turn % 5000, turn % PRIORITIES)
            else:
                job = owner.jobs[number]
                owner.end(number)
                owner.insert(job.type, job.key, job.prio)
        if turn % 7 == 0:
            number = min(number for number, job in owner.jobs.items() if job.state == "ready")
            job = owner.jobs[number]
            owner.delete(number)
            owner.insert(job.type, job.key, job.prio)
    check_insides(owner.scheduler)
    assert len(owner.jobs) == 40
    assert len(owner.scheduler) <= 22
    assert len(owner.scheduler._limits._timers) <= 20
    for lane in lanes_of(owner.scheduler):
        for limit in lane.limits:
            assert len(limit.held) <= 200


# -- what a decision costs --------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts heap operations, each as the compares it may need: the depth of its heap."""
    found: Counter[str] = Counter()

    def counting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(heap: list[Any], *entry: Any) -> Any:
            found["steps"] += len(heap).bit_length()
            return operation(heap, *entry)

        return counted

    for name in ("heappush", "heappop", "heapreplace"):
        monkeypatch.setattr(lanes, name, counting(getattr(lanes, name)))
    heapify = lanes.heapify

    def counted_heapify(heap: list[Any]) -> None:
        found["steps"] += len(heap)
        heapify(heap)

    monkeypatch.setattr(lanes, "heapify", counted_heapify)
    monkeypatch.setattr(limits, "heappush", counting(limits.heappush))
    monkeypatch.setattr(limits, "heappop", counting(limits.heappop))
    yield found


KINDS: dict[str, Callable[[int], tuple[str, str | None]]] = {
    "keys": lambda number: ("t", f"k{number}"),
    "types": lambda number: (f"t{number}", None),
}


@pytest.mark.parametrize("count", [10, 1_000, 100_000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decision_costs_the_logarithm_of_the_lanes(kind: str, count: int, steps: Counter[str]) -> None:
    """A job is taken, ends and is replaced, 2,000 times; every lane has one that is ready."""
    scheduler = Scheduler()
    owner = {}
    for number in range(count):
        owner[number] = scheduler.lane(*KINDS[kind](number))
        scheduler.push(2, owner[number], number)
    assert scheduler.take(frozenset(), 1, 0, lambda number, prio: False) == []
    for number, lane in owner.items():
        scheduler.push(2, lane, number)
    steps.clear()
    turns = 2_000
    for turn in range(turns):
        (number,) = scheduler.take(frozenset(), 1, turn, lambda number, prio: True)
        lane = owner.pop(number)
        scheduler.ended(lane, 2, lane.charge, 1000 + turn % 977)
        owner[count + turn] = lane
        scheduler.push(2, lane, count + turn)
    assert turns <= steps["steps"] <= 5 * turns * (count.bit_length() + 2)


def test_lanes_that_are_held_back_are_not_looked_at_again(steps: Counter[str]) -> None:
    owner = Owner(Shares(of_key=lambda key: Share(concurrency=1) if key != "free" else NO_SHARE))
    for key in range(1000):
        owner.insert("a", str(key), count=2)
    owner.insert("a", "free", count=200)
    owner.take(limit=1000, checked=False)
    owner.take(limit=1, checked=False)
    steps.clear()
    for _ in range(100):
        (number,) = owner.take(checked=False)
        assert owner.jobs[number].key == "free"
    assert steps["steps"] <= 100 * 10
