"""Who gets how much worker time: the real scheduler, with workers and a clock that are only numbers.

``python -m kqs.testing.fairness`` prints the table of docs/fair-share.md. A run is the same each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Final, Literal, NamedTuple, TypeAlias

from ..core.fairshare import Scheduler
from ..core.job import SECOND
from ..core.lanes import Lane
from ..core.shares import NO_SHARE, Share, Shares

MS: Final = SECOND // 1000
_PRIO: Final = 2

Order: TypeAlias = Literal["fair", "fifo"]
RunTime: TypeAlias = Callable[[Random], int]


def always(time: int) -> RunTime:
    """Each job takes the same time."""
    return lambda random: time


def heavy_tailed(low: int, high: int) -> RunTime:
    """Half take less than twice ``low``, and few take most of the time (Pareto, exponent 1, cut off)."""
    return lambda random: min(high, int(low / (1.0 - random.random())))


@dataclass(frozen=True)
class Tenant:
    """Whose jobs stand in one lane.

    Attributes:
        name: its fairness key.
        run: how long its jobs take, microseconds.
        queued: jobs it keeps waiting: one that is taken is replaced.
        once: jobs it inserts besides and does not replace: when (microseconds), and how many.
        share: weight and limits of its key.
    """

    name: str
    run: RunTime
    queued: int = 0
    once: Sequence[tuple[int, int]] = ()
    share: Share = NO_SHARE


@dataclass(frozen=True)
class Scenario:
    """What is run.

    Attributes:
        tenants: whose jobs there are.
        window: how long worker time is summed up, microseconds.
        windows: how many of those to run for.
        workers: jobs that run at a time.
        batch: jobs a worker takes at once; it runs them one after the other.
        order: as the setting.
        seed: of the jobs' run times.
    """

    tenants: Sequence[Tenant]
    window: int
    windows: int = 1
    workers: int = 1
    batch: int = 1
    order: Order = "fair"
    seed: int = 1


class Report:
    """What came out.

    Attributes:
        scenario: what was run.
        windows: worker time of each tenant, window by window, microseconds.
        jobs: how many jobs of each tenant began.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.windows = [[0] * len(scenario.tenants) for _ in range(scenario.windows)]
        self.jobs = [0] * len(scenario.tenants)

    def worked(self, start: int, end: int, tenant: int) -> None:
        """A worker has a tenant's job between two times."""
        window = self.scenario.window
        while start < end and (at := start // window) < len(self.windows):
            until = min(end, (at + 1) * window)
            self.windows[at][tenant] += until - start
            start = until

    def shares(self) -> list[list[float]]:
        """Each tenant's part of all the worker time there was, window by window."""
        whole = self.scenario.window * self.scenario.workers
        return [[time / whole for time in times] for times in self.windows]

    def index(self) -> float:
        """Jain's index of worker time by weight, in the window where it is lowest."""
        weights = [tenant.share.weight for tenant in self.scenario.tenants]
        return min(
            jain([time / weight for time, weight in zip(times, weights, strict=True)])
            for times in self.windows
        )

    def off(self) -> float:
        """How far a tenant's worker time is from its part by weight, at most, as a fraction of that part."""
        weights = [tenant.share.weight for tenant in self.scenario.tenants]
        return max(
            abs(time * sum(weights) / (weight * sum(times)) - 1)
            for times in self.windows
            for time, weight in zip(times, weights, strict=True)
        )


def jain(times: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all have the same, 1/n when one of n has everything.

    R. Jain, D. Chiu, W. Hawe: "A Quantitative Measure of Fairness and Discrimination for Resource Allocation
    in Shared Computer Systems", DEC-TR-301, 1984.
    """
    return sum(times) ** 2 / (len(times) * sum(time * time for time in times))


def simulate(scenario: Scenario) -> Report:
    """Let workers run what the scheduler gives them."""
    return _Simulation(scenario).run()


class _Run(NamedTuple):
    """A job that a worker took."""

    tenant: int
    lane: Lane
    charged: float
    time: int


class _Worker:
    def __init__(self) -> None:
        self.taken: Iterator[_Run] = iter(())
        self.run: _Run | None = None


class _Simulation:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._tenants = scenario.tenants
        self._random = Random(scenario.seed)
        self._report = Report(scenario)
        shares = {tenant.name: tenant.share for tenant in self._tenants}
        self._scheduler = Scheduler()
        self._scheduler.arrange(Shares(order=scenario.order, of_key=shares.__getitem__), 0)
        self._lanes = [self._scheduler.lane("job", tenant.name) for tenant in self._tenants]
        self._inserted = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._idle = [_Worker() for _ in range(scenario.workers)]

    def _at(self, time: int, event: Callable[[], None]) -> None:
        self._order += 1
        heappush(self._events, (time, self._order, event))

    def _insert(self, tenant: int, count: int) -> None:
        """A job's number says when it was inserted, and whose it is."""
        first, step = self._inserted, len(self._tenants)
        self._inserted += count
        numbers = list(range(first * step + tenant, self._inserted * step, step))
        self._lanes[tenant].live += count
        self._scheduler.extend(_PRIO, self._lanes[tenant], numbers)

    def run(self) -> Report:
        for number, tenant in enumerate(self._tenants):
            if tenant.queued:
                self._insert(number, tenant.queued)
            for time, count in tenant.once:
                self._at(time, lambda number=number, count=count: self._insert(number, count))  # type: ignore[misc]
        now, end = 0, self._scenario.window * self._scenario.windows
        while now < end:
            self._occupy(now)
            wake = self._scheduler.next_wake() if self._idle else None
            if wake is not None and (not self._events or wake < self._events[0][0]):
                now = wake
            elif self._events:
                now, _, event = heappop(self._events)
                event()
            else:
                break
        return self._report

    def _occupy(self, now: int) -> None:
        """Whoever has nothing to do goes on with what it took, or takes more."""
        idle, self._idle = self._idle, []
        for worker in idle:
            worker.run = next(worker.taken, None)
            if worker.run is None:
                worker.taken = iter(self._take(now))
                worker.run = next(worker.taken, None)
            if worker.run is None:
                self._idle.append(worker)
                continue
            until = now + worker.run.time
            self._report.worked(now, until, worker.run.tenant)
            self._at(until, lambda worker=worker: self._over(worker))  # type: ignore[misc]

    def _take(self, now: int) -> list[_Run]:
        numbers = self._scheduler.take((), self._scenario.batch, now, lambda number, prio: True)
        taken = []
        for at in [number % len(self._tenants) for number in numbers]:
            tenant, lane = self._tenants[at], self._lanes[at]
            self._report.jobs[at] += 1
            taken.append(_Run(at, lane, lane.charge, tenant.run(self._random)))
            if tenant.queued:
                self._insert(at, 1)
        return taken

    def _over(self, worker: _Worker) -> None:
        run = worker.run
        assert run is not None
        self._scheduler.ended(run.lane, _PRIO, run.charged, run.time)
        run.lane.live -= 1
        self._idle.append(worker)


# -- what docs/fair-share.md shows ------------------------------------------------------------------


def _many_and_few(workers: int, batch: int, order: Order = "fair") -> Scenario:
    queued = {"many": 1_000_000, "some": 1_000, "few": batch}  # fewer than a batch is no backlog
    lanes = [Tenant(name, always(10 * MS), count) for name, count in queued.items()]
    return Scenario(lanes, 300 * 10 * MS // workers, 5, workers, batch, order)


def _slow_and_fast(workers: int, batch: int, order: Order = "fair") -> Scenario:
    lanes = [Tenant("slow", always(SECOND), 100), Tenant("fast", always(MS), 100)]
    return Scenario(lanes, 200 * SECOND // workers, 1, workers, batch, order)


def _heavy_tails(workers: int, batch: int, order: Order = "fair") -> Scenario:
    lanes = [Tenant(name, heavy_tailed(MS, SECOND), 100) for name in "abcd"]
    return Scenario(lanes, 400 * SECOND // workers, 1, workers, batch, order)


def _weights(workers: int, batch: int, order: Order = "fair") -> Scenario:
    lanes = [
        Tenant(f"weight {weight}", always(5 * MS + 5 * MS * weight), 100, share=Share(weight=weight))
        for weight in (1, 2, 4)
    ]
    return Scenario(lanes, 700 * 25 * MS // workers, 3, workers, batch, order)


#: What is compared, and the scenario for so many workers and so large batches.
SCENARIOS: Final[dict[str, Callable[..., Scenario]]] = {
    "jobs waiting 1,000,000 : 1,000 : one batch": _many_and_few,
    "run times 1 s : 1 ms": _slow_and_fast,
    "four lanes, heavy tails of 1 ms to 1 s": _heavy_tails,
    "weights 1 : 2 : 4": _weights,
}


def row(name: str, report: Report) -> str:
    """A line of the table."""
    scenario = report.scenario
    figures = f"{report.index():.4f} | {report.off():.1%}"
    return f"| {name} | {scenario.order} | {scenario.workers} | {scenario.batch} | {figures} |"


HEAD: Final = (
    "| lanes | order | workers | batch | Jain's index | furthest from its part |\n"
    "| --- | --- | --- | --- | --- | --- |"
)

#: Order, workers and batch of each scenario's lines.
CASES: Final[list[tuple[Order, int, int]]] = [
    ("fifo", 4, 1),
    *(("fair", workers, batch) for workers in (1, 4, 16) for batch in (1, 8)),
]

if __name__ == "__main__":
    print(HEAD)
    for name in SCENARIOS:
        for order, workers, batch in CASES:
            print(row(name, simulate(SCENARIOS[name](workers, batch, order))))
