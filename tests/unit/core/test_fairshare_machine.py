"""The scheduler against a naive account of what it may do: any calls, in any order."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kqs.core.job import SECOND
from kqs.core.lanes import PRIORITIES
from kqs.core.shares import NO_SHARE, Share, Shares

from .owner import Owner, check_insides

TYPES = ["a", "b", "c", "d"]
KEYS = [None, None, "k", "l", "m"]
prios = st.integers(0, PRIORITIES - 1)
types = st.sampled_from(TYPES)

#: Rates whose intervals are whole nanoseconds, so that the account is exact.
limited = st.builds(
    Share,
    weight=st.sampled_from([1.0, 1.0, 0.5, 3.0]),
    concurrency=st.sampled_from([0, 0, 1, 2, 3]),
    rate=st.sampled_from([0.0, 0.0, 0.5, 2.0, 50.0]),
    burst=st.sampled_from([0, 1, 3]),
)
some = st.one_of(st.just(NO_SHARE), limited)


@st.composite
def arrangements(draw: st.DrawFn) -> Shares:
    of_type = {name: (draw(st.sampled_from([None, "x", "y"])), draw(some)) for name in TYPES}
    of_key = {key: draw(some) for key in KEYS if key}
    classes = {name: draw(some) for name in ("x", "y")}
    return Shares(
        order=draw(st.sampled_from(["fair", "fair", "fifo"])),
        priority=draw(st.sampled_from(["strict", "strict", "weighted"])),
        of_type=lambda name: of_type.get(name, (None, NO_SHARE)),
        classes={name: share for name, share in classes.items() if share.limited or draw(st.booleans())},
        of_key=lambda key: of_key.get(key, NO_SHARE),
    )


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.owner = Owner()

    def _some(self, data: st.DataObject, state: str) -> int:
        numbers = sorted(job.number for job in self.owner.jobs.values() if job.state == state)
        return data.draw(st.sampled_from(numbers))

    def _any(self, state: str) -> bool:
        return any(job.state == state for job in self.owner.jobs.values())

    @rule(type_=types, key=st.sampled_from(KEYS), prio=prios, count=st.integers(1, 4))
    def insert(self, type_: str, key: str | None, prio: int, count: int) -> None:
        self.owner.insert(type_, key, prio, count)

    @rule(type_=types, key=st.sampled_from(KEYS), prio=prios)
    def resumed(self, type_: str, key: str | None, prio: int) -> None:
        self.owner.running_at_start(type_, key, prio)

    @rule(wanted=st.sets(st.sampled_from([*TYPES, "none"])), limit=st.integers(1, 5))
    def take(self, wanted: set[str], limit: int) -> None:
        self.owner.take(wanted, limit)

    @rule(limit=st.integers(1, 5))
    def take_any(self, limit: int) -> None:
        self.owner.take((), limit)
        self.owner.check_wake()

    @precondition(lambda self: self._any("running"))
    @rule(
        data=st.data(),
        cost=st.sampled_from([-1, 0, 1, 1000, 10**6, 10**9]),
        learn=st.booleans(),
    )
    def end(self, data: st.DataObject, cost: int, learn: bool) -> None:
        self.owner.end(self._some(data, "running"), cost, learn)

    @precondition(lambda self: self._any("running"))
    @rule(data=st.data(), cost=st.sampled_from([1, 10**6]), prio=st.one_of(st.none(), prios))
    def again(self, data: st.DataObject, cost: int, prio: int | None) -> None:
        self.owner.again(self._some(data, "running"), cost, prio)

    @precondition(lambda self: self._any("running"))
    @rule(data=st.data())
    def untake(self, data: st.DataObject) -> None:
        self.owner.untake(self._some(data, "running"))

    @precondition(lambda self: self._any("ready"))
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        self.owner.park(self._some(data, "ready"))

    @precondition(lambda self: self._any("parked"))
    @rule(data=st.data(), prio=st.one_of(st.none(), prios))
    def kick(self, data: st.DataObject, prio: int | None) -> None:
        self.owner.kick(self._some(data, "parked"), prio)

    @precondition(lambda self: self._any("ready"))
    @rule(data=st.data())
    def delete_ready(self, data: st.DataObject) -> None:
        self.owner.delete(self._some(data, "ready"))

    @precondition(lambda self: self._any("parked"))
    @rule(data=st.data())
    def delete_parked(self, data: st.DataObject) -> None:
        self.owner.delete(self._some(data, "parked"))

    @rule(type_=types)
    def pause(self, type_: str) -> None:
        self.owner.pause(type_)

    @rule(type_=types)
    def resume(self, type_: str) -> None:
        self.owner.resume(type_)

    @rule(shares=arrangements())
    def arrange(self, shares: Shares) -> None:
        self.owner.arrange(shares)

    @rule(by=st.sampled_from([1, 20_000, 100_000, SECOND, 3 * SECOND, 70 * SECOND]))
    def time_passes(self, by: int) -> None:
        self.owner.now += by
        self.owner.scheduler.tick(self.owner.now)

    @rule()
    def until_the_next_wake(self) -> None:
        wake = self.owner.scheduler.next_wake()
        if wake is not None:
            self.owner.now = max(self.owner.now, wake)

    @rule()
    def oldest(self) -> None:
        ready = [job.number for job in self.owner.jobs.values() if job.state == "ready"]
        assert self.owner.scheduler.oldest(self.owner.still_ready) == min(ready, default=None)

    @invariant()
    def insides(self) -> None:
        check_insides(self.owner.scheduler)

    def teardown(self) -> None:
        """Without limits and pauses all that is ready can go, and then nothing is left."""
        owner = self.owner
        for type_ in list(owner.paused):
            owner.resume(type_)
        owner.arrange(Shares())
        owner.take((), len(owner.jobs) + 1)
        owner.end_all()
        owner.now += 100 * SECOND
        assert owner.take() == []
        owner.end(owner.running_at_start("a", "last"))
        check_insides(owner.scheduler)
        lanes = {(lane.type, lane.key) for lane in owner.scheduler._lanes if lane}
        assert lanes <= {("a", "last"), *((name, None) for name in TYPES)}


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
