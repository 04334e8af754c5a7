"""The owner of a scheduler as the engine is one, with a naive account of what the scheduler may do.

It knows each job's state and goes over all of them at every decision, so what it says needs no heaps, gates
and timers. It does not say who must be next among lanes: the tests that need that look at the shares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from kqs.core.fairshare import Scheduler
from kqs.core.gates import Gate, Limit
from kqs.core.job import SECOND
from kqs.core.lanes import Fork, Group, Lane, Line
from kqs.core.shares import NO_SHARE, Share, Shares


@dataclass
class Job:
    number: int
    type: str
    key: str | None
    prio: int
    state: str = "ready"  # or running, parked
    charged: float = 0.0
    taken: int = 0  # its priority then


@dataclass
class Bucket:
    """What may begin under a rate: kept as the time when all tokens are back."""

    share: Share
    full: Fraction = field(default=Fraction(0))

    @property
    def interval(self) -> Fraction:
        return Fraction(SECOND) / Fraction(self.share.rate)

    @property
    def burst(self) -> int:
        return self.share.burst or max(1, round(self.share.rate / 10))

    def next_token(self) -> Fraction:
        return self.full - (self.burst - 1) * self.interval

    def start(self, now: int) -> None:
        self.full = max(self.full, Fraction(now)) + self.interval


class Owner:
    """Jobs in a scheduler, and who may run when."""

    def __init__(self, shares: Shares | None = None, now: int = SECOND) -> None:
        self.now = self.started = now
        self.scheduler = Scheduler(now)
        self.jobs: dict[int, Job] = {}
        self.last = 0
        self.paused: set[str] = set()
        self.shares = Shares()
        self.buckets: dict[tuple[str, str], Bucket] = {}
        if shares is not None:
            self.arrange(shares)

    # -- what the engine does -------------------------------------------------------------------

    def lane(self, job: Job) -> Lane:
        return self.scheduler.lane(job.type, job.key)

    def insert(self, type_: str, key: str | None = None, prio: int = 2, count: int = 1) -> list[int]:
        numbers = list(range(self.last + 1, self.last + 1 + count))
        self.last += count
        lane = self.scheduler.lane(type_, key)
        lane.live += count
        for number in numbers:
            self.jobs[number] = Job(number, type_, key, prio)
        if count == 1:
            self.scheduler.push(prio, lane, numbers[0])
        else:
            self.scheduler.extend(prio, lane, numbers)
        return numbers

    def running_at_start(self, type_: str, key: str | None = None, prio: int = 2) -> int:
        """A job whose lease was there already."""
        self.last += 1
        job = self.jobs[self.last] = Job(self.last, type_, key, prio, "running", 0.0, prio)
        lane = self.lane(job)
        lane.live += 1
        self.scheduler.resumed(lane)
        return self.last

    def still_ready(self, number: int, prio: int) -> bool:
        job = self.jobs.get(number)
        return job is not None and job.state == "ready" and job.prio == prio

    def take(self, types: Collection[str] = (), limit: int = 1, checked: bool = True) -> list[int]:
        """Take jobs; unless told otherwise, see that each was allowed and none was left that could go."""
        seen: set[int] = set()

        def still_ready(number: int, prio: int) -> bool:
            if number in seen or not self.still_ready(number, prio):
                return False
            seen.add(number)
            return True

        numbers = self.scheduler.take(frozenset(types), limit, self.now, still_ready)
        for number in numbers:
            job = self.jobs[number]
            if checked:
                self.check_choice(job, types)
            self.start(job)
        if checked and len(numbers) < limit:
            assert self.eligible(types) == [], "a job that may run was left"
        assert len(numbers) <= limit
        return numbers

    def start(self, job: Job) -> None:
        job.state, job.taken, job.charged = "running", job.prio, self.lane(job).charge
        for name, share in self.limits(job):
            if share.rate:
                self.bucket(name, share).start(self.now)

    def untake(self, number: int) -> None:
        job = self.jobs[number]
        job.state = "ready"
        self.scheduler.untaken(self.lane(job), job.taken)
        self.scheduler.push(job.prio, self.lane(job), number)

    def end(self, number: int, cost: int = 1000, learn: bool = True) -> None:
        """A job is over."""
        self._stop(number, cost, learn)
        self._forget(number)

    def end_all(self) -> None:
        """What runs is over, and what waits is deleted."""
        for number in list(self.jobs):
            if self.jobs[number].state == "running":
                self.end(number)
            else:
                self.delete(number)

    def again(self, number: int, cost: int = 1000, prio: int | None = None) -> None:
        """A job comes back, with its old number."""
        self._stop(number, cost, True)
        self.kick(number, prio)

    def _stop(self, number: int, cost: int, learn: bool) -> None:
        job = self.jobs[number]
        assert job.state == "running"
        job.state = "parked"
        self.scheduler.ended(self.lane(job), job.taken, job.charged, cost, learn)

    def park(self, number: int) -> None:
        """The scheduler is not told."""
        assert self.jobs[number].state == "ready"
        self.jobs[number].state = "parked"

    def kick(self, number: int, prio: int | None = None) -> None:
        job = self.jobs[number]
        job.state = "ready"
        job.prio = job.prio if prio is None else prio
        self.scheduler.push(job.prio, self.lane(job), number)

    def delete(self, number: int) -> None:
        """A job that waits is over: the scheduler is told only when its lane has none left."""
        assert self.jobs[number].state != "running"
        self._forget(number)

    def _forget(self, number: int) -> None:
        job = self.jobs.pop(number)
        lane = self.lane(job)
        lane.live -= 1
        if not lane.live:
            self.scheduler.leave(lane)

    def pause(self, type_: str) -> None:
        self.paused.add(type_)
        self.scheduler.pause(type_)

    def resume(self, type_: str) -> None:
        self.paused.discard(type_)
        self.scheduler.resume(type_)

    def arrange(self, shares: Shares) -> None:
        self.shares = shares
        self.scheduler.arrange(shares, self.now)
        self.buckets = {  # what is left in them is what it is
            (limit.kind, limit.name): Bucket(
                self._share(limit.kind, limit.name), Fraction(limit.full, SECOND // 1000)
            )
            for limit in limits_of(self.scheduler)
            if limit.rate
        }

    # -- what may run ---------------------------------------------------------------------------

    def _share(self, kind: str, name: str) -> Share:
        if kind == "class":
            return self.shares.classes.get(name, Share())
        return self.shares.of_key(name) if kind == "key" else self.shares.of_type(name)[1]

    def limits(self, job: Job) -> list[tuple[tuple[str, str], Share]]:
        """The names and shares of all that limits a job."""
        class_, share = self.shares.of_type(job.type)
        found = [(("type", job.type), share)]
        if class_ is not None:
            found.append((("class", class_), self._share("class", class_)))
        if job.key is not None:
            found.append((("key", job.key), self.shares.of_key(job.key)))
        return [(name, share) for name, share in found if share.limited]

    def bucket(self, name: tuple[str, str], share: Share) -> Bucket:
        bucket = self.buckets.get(name)
        if bucket is None:
            bucket = self.buckets[name] = Bucket(share)
            bucket.full = self.started + bucket.burst * bucket.interval
        return bucket

    def running(self, name: tuple[str, str]) -> int:
        return sum(
            job.state == "running" and any(name == other for other, _share in self.limits(job))
            for job in self.jobs.values()
        )

    def full_house(self, job: Job) -> bool:
        """Whether a concurrency keeps it out."""
        return any(
            share.concurrency and self.running(name) >= share.concurrency for name, share in self.limits(job)
        )

    def may_start(self, job: Job) -> Fraction:
        """When the rates let it."""
        rates = (self.bucket(name, share).next_token() for name, share in self.limits(job) if share.rate)
        return max(rates, default=Fraction(0))

    def eligible(self, types: Collection[str] = ()) -> list[Job]:
        return [
            job
            for job in self.jobs.values()
            if job.state == "ready"
            and (not types or job.type in types)
            and job.type not in self.paused
            and not self.full_house(job)
            and self.may_start(job) <= self.now
        ]

    def check_choice(self, chosen: Job, types: Collection[str]) -> None:
        eligible = self.eligible(types)
        assert chosen in eligible, "it may not run"
        if self.shares.priority == "strict":
            assert chosen.prio == min(job.prio for job in eligible)
        rivals = [job for job in eligible if job.prio == chosen.prio]
        if self.shares.order == "fair":
            rivals = [job for job in rivals if (job.type, job.key) == (chosen.type, chosen.key)]
        assert chosen.number == min(job.number for job in rivals)

    def check_wake(self) -> None:
        """Somebody looks when a rate lets the next one go. To be asked after a take."""
        times = [
            self.may_start(job)
            for job in self.jobs.values()
            if job.state == "ready" and job.type not in self.paused and not self.full_house(job)
        ]
        later = [time for time in times if time > self.now]
        if len(later) == len(times) and later:
            wake = self.scheduler.next_wake()
            assert wake is not None and wake <= min(later) + 1, "nobody will look when it can go"


# -- the scheduler's insides ------------------------------------------------------------------------


def of_types(**shares: Share) -> Shares:
    return Shares(of_type=lambda name: (None, shares.get(name, NO_SHARE)))


def of_keys(**shares: Share) -> Shares:
    return Shares(of_key=lambda key: shares.get(key, NO_SHARE))


def of_class(share: Share, *members: str) -> Shares:
    return Shares(of_type=lambda name: ("x" if name in members else None, NO_SHARE), classes={"x": share})


def served(owner: Owner, count: int, cost: Callable[[str, str | None], int] = lambda *_: 1000) -> list[Any]:
    """Run jobs one after the other; whose they were. A job that is over is replaced."""
    found = []
    for _ in range(count):
        (number,) = owner.take(checked=False)
        job = owner.jobs[number]
        owner.end(number, cost(job.type, job.key))
        owner.insert(job.type, job.key, job.prio)
        found.append(job.key or job.type)
    return found


def lanes_of(scheduler: Scheduler) -> list[Lane]:
    return [lane for lane in scheduler._lanes if lane is not None]


def forks_of(scheduler: Scheduler) -> Iterator[Fork]:
    for kind in scheduler._kinds.values():
        yield from (group for group in kind.groups if group is not None)
    for view in scheduler._views.values():
        for root in view.roots:
            yield root
            yield from root.classes.values()


def limits_of(scheduler: Scheduler) -> dict[Limit, None]:
    found = dict.fromkeys(scheduler._limits._classes.values()) | dict.fromkeys(
        scheduler._limits._keys.values()
    )
    return found | {kind.limit: None for kind in scheduler._kinds.values() if kind.limit is not None}


def _stands(fork: Fork, node: Line | Fork) -> bool:
    """Whether a node stands in line, no later than it should, or is kept out by a gate that will open."""
    if any(gate.closed and (fork, node) in gate.held for gate in node.gates):
        return True
    entry = fork._entered.get(node)
    return entry is not None and any(entry is other for other in fork._heap)


def _top(node: Line | Group) -> tuple[float, int] | None:
    """What a node has that can go, without touching it."""
    if any(gate.closed for gate in node.gates):
        return None
    if isinstance(node, Line):
        return None if node.head < 0 else (node.tag, node.head)
    tops = [top for line in node.waiting if (top := _top(line)) is not None]
    return min(tops, default=None)


def check_insides(scheduler: Scheduler) -> None:
    """Nothing is lost, nothing is left over."""
    live_gates: set[Gate] = set(limits_of(scheduler))
    forks = set(forks_of(scheduler))
    for lane in lanes_of(scheduler):
        assert scheduler.lane(lane.type, lane.key) is lane
        for prio, line in enumerate(lane.lines):
            if line is None:
                continue
            group = lane.kind.groups[prio]
            assert line.group is group, "a line in a group that is gone"
            assert (line in group.waiting) == (line.head >= 0)
            if line.head >= 0:
                assert _stands(group, line), "a line is lost"
    for kind in scheduler._kinds.values():
        live_gates |= set(kind.gates)
        for prio, group in enumerate(kind.groups):
            if group is None:
                continue
            members = [lane.lines[prio] for lane in kind.lanes.values() if lane.lines[prio] is not None]
            assert group.lines == len(members) > 0
            assert set(group.waiting) <= set(members), "a line of a lane that is gone"
            views = [view for view in scheduler._views.values() if not view.types or kind.name in view.types]
            assert set(group.roots) == {view.roots[prio] for view in views}
            assert len(group.roots) == len(group.parents) == len(views)
            if _top(group) is not None:
                for parent in group.parents:
                    assert _stands(parent, group), "a group is lost"
                    if parent not in group.roots:
                        assert all(_stands(up, parent) for up in parent.parents), "a class is lost"
    for view in scheduler._views.values():
        for prio, root in enumerate(view.roots):
            groups = (kind.groups[prio] for kind in scheduler._kinds.values())
            assert root.waiting == sum(
                len(group.waiting) for group in groups if group and root in group.roots
            )
    for fork in forks:
        assert len(fork._heap) <= 2 * len(fork._entered) + 65, "a heap of things that are gone"
        for node, entry in fork._entered.items():
            if isinstance(node, Line | Group) and (top := _top(node)) is not None:
                assert entry[:2] <= top, "it stands behind its place"
    for limit in limits_of(scheduler):
        under = [lane for lane in lanes_of(scheduler) if limit in lane.limits]
        assert limit.running == sum(lane.running for lane in under)
        if limit.kind == "key":
            assert limit.lanes == len(under)
    for gate in live_gates:
        for fork, node in gate.held:
            assert fork in forks, "kept for a heap that is gone"
            assert node in forks or node in node.group.waiting or node in node.lane.lines
    assert scheduler._running == sum(lane.running > 0 for lane in lanes_of(scheduler))
    awake = [limit for time, _number, limit in scheduler._limits._timers if limit.wake == time]
    assert len(awake) == len(set(awake)), "two timers for one limit"
