"""What an engine does, as a dict of jobs and nothing else: the oracle of ``engine_machine``.

Written from the port and the calls, not from any engine's code. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from kqs.core.job import PRIOS, Unique
from kqs.core.outcome import Settlement

POISON_DEATHS = 3


@dataclass
class ModelLease:
    """A lease that is out."""

    receipt: str
    holder: str
    local: bool
    expires: float
    told: bool = False
    cancelled: bool = False


@dataclass
class ModelJob:
    """A job; ``wait`` is its fixed retry delay."""

    id: str
    order: int
    type: str
    data: bytes
    binary: bool
    prio: int
    ttr: float
    max_attempts: int
    wait: float
    state: str
    due: float
    fair: str | None = None
    attempt: int = 0
    deaths: int = 0
    error: str | None = None
    expires: float | None = None
    result_ttl: float = 0
    result: int | None = None
    kept_until: float = 0
    lease: ModelLease | None = None
    unique: Unique | None = None
    reservations: int = 0


@dataclass
class Model:
    """All jobs by id, all receipts that were ever given, and the time.

    Attributes:
        lasting: leases, deaths and attempts that were given back outlive a restart.
        fair: order is promised within a lane only; else it is of all jobs of a priority.
    """

    now: float = 0
    jobs: dict[str, ModelJob] = field(default_factory=dict)
    receipts: list[str] = field(default_factory=list)
    #: What a receipt was settled with; forgotten over a restart, when either answer is right.
    settled: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, str] = field(default_factory=dict)
    leased: dict[str, ModelJob] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    lasting: bool = True
    fair: bool = True

    def in_state(self, *states: str) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state in states]

    def ready(self, types: frozenset[str]) -> list[ModelJob]:
        """All that may be handed out."""
        return [
            job
            for job in self.in_state("ready")
            if (not types or job.type in types) and job.type not in self.paused
        ]

    def may_be_next(self, types: frozenset[str]) -> list[str]:
        """The jobs whose turn it may be: the oldest of each lane, of the highest priority there is."""
        if not self.fair:
            return [job.id for job in sorted(self.ready(types), key=lambda job: (job.prio, job.order))[:1]]
        first: dict[tuple[int, str, str | None], ModelJob] = {}
        for job in self.ready(types):
            lane = job.prio, job.type, job.fair
            if lane not in first or job.order < first[lane].order:
                first[lane] = job
        highest = min((prio for prio, _type, _fair in first), default=0)
        return [job.id for job in first.values() if job.prio == highest]

    def standing(self, type: str, unique: Unique | None) -> ModelJob | None:
        """The job that stands with a type and unique key."""
        for job in self.in_state("delayed", "ready", "reserved"):
            if unique is None or job.unique is None or (job.type, job.unique.key) != (type, unique.key):
                continue
            if job.state != "reserved" or job.unique.scope == "queued_or_running":
                return job
        return None

    def _is_alone(self, job: ModelJob) -> bool:
        """Whether a job may wait: no other one with its unique key stands."""
        return self.standing(job.type, job.unique) in (None, job)

    def kickable(self, jobs: list[ModelJob], limit: int | None = None) -> list[ModelJob]:
        """Those of some jobs that can be kicked, one after the other."""
        found: list[ModelJob] = []
        for job in jobs:
            same = [(other.type, other.unique.key) for other in found if other.unique]
            taken = job.unique is not None and (job.type, job.unique.key) in same
            if len(found) != limit and self._is_alone(job) and not taken:
                found.append(job)
        return found

    # -- what happens ---------------------------------------------------------------------------

    def add(self, job: ModelJob) -> None:
        self.jobs[job.id] = job

    def lease(self, job: ModelJob, receipt: str, holder: str, local: bool) -> None:
        job.state = "reserved"
        job.attempt += 1
        job.reservations += 1
        job.lease = ModelLease(receipt, holder, local, self.now + job.ttr)
        self.receipts.append(receipt)
        self.leased[receipt] = job

    def _end_lease(self, job: ModelJob, state: str, outcome: str | None = None) -> None:
        if job.lease is not None:
            if outcome is not None:
                self.settled[job.lease.receipt] = outcome
            del self.leased[job.lease.receipt]
        job.lease = None
        job.state = state

    def _back(self, job: ModelJob, wait: float, outcome: str | None = None) -> None:
        if not self._is_alone(job):
            job.error = "same unique key"
            self._end_lease(job, "buried", outcome)
            return
        self._end_lease(job, "delayed" if wait > 0 else "ready", outcome)
        job.due = self.now + wait

    def settle(self, settlement: Settlement) -> set[str | None]:
        """Apply one settlement; returns the answers that are right (None: not refused)."""
        job = self.leased.get(settlement.receipt)
        outcome = settlement.outcome
        if job is None:
            if self.settled.get(settlement.receipt) == outcome:
                return {None}
            if self.earlier.get(settlement.receipt) == outcome:
                return {None, "stale_receipt"}
            return {"stale_receipt"}
        assert job.lease is not None
        if outcome == "ok":
            self._end_lease(job, "done", outcome)
            if job.result_ttl:
                job.result = msgspec.json.decode(settlement.result or b"null")
                job.kept_until = self.now + job.result_ttl
        elif job.lease.cancelled:
            self._end_lease(job, "done", outcome)
        elif outcome != "fail" and self._is_over(job):
            job.attempt -= outcome == "release"
            self._expire(job, outcome)
        elif outcome == "release":
            job.attempt -= 1
            self._change_prio(job, settlement)
            self._back(job, settlement.delay or 0, outcome)
        else:
            job.error = str(settlement.reason)
            if outcome == "fail" or (job.max_attempts and job.attempt >= job.max_attempts):
                self._end_lease(job, "buried", outcome)
            else:
                self._change_prio(job, settlement)
                self._back(job, job.wait if settlement.delay is None else settlement.delay, outcome)
        return {None}

    def _is_over(self, job: ModelJob) -> bool:
        return job.expires is not None and job.expires <= self.now

    def _expire(self, job: ModelJob, outcome: str | None = None) -> None:
        """A job that would wait, but whose time is over."""
        job.error = "expired"
        self._end_lease(job, "buried", outcome)

    @staticmethod
    def _change_prio(job: ModelJob, settlement: Settlement) -> None:
        if settlement.prio is not None:
            job.prio = PRIOS.index(settlement.prio)

    def renew(self, receipt: str) -> str:
        job = self.leased.get(receipt)
        if job is None or job.lease is None:
            return "lost"
        job.lease.expires = self.now + job.ttr
        job.lease.told = False
        return "cancelled" if job.lease.cancelled else "renewed"

    def rescue(self, receipt: str, died: bool, alone: bool, reason: str) -> None:
        job = self.leased.get(receipt)
        if job is None:
            return
        assert job.lease is not None
        if job.lease.cancelled:
            self._end_lease(job, "done")
            return
        if self._is_over(job):
            self._expire(job)
            return
        job.error = reason
        if died:
            job.deaths = job.deaths + 1 if alone else max(job.deaths, 1)
        poison = died and alone and job.deaths >= POISON_DEATHS
        if poison or (job.max_attempts and job.attempt >= job.max_attempts):
            self._end_lease(job, "buried")
        else:
            self._back(job, job.wait if died else 0)

    def allows(self, verb: str, job: ModelJob) -> bool:
        """Whether a verb of ``control`` fits the job's state."""
        return (
            job.state
            in {
                "kick": ("delayed", "buried"),
                "bury": ("delayed", "ready", "reserved"),
                "delete": ("delayed", "ready", "reserved", "buried"),
                "cancel": ("delayed", "ready", "reserved", "buried"),
            }[verb]
        )

    def control(self, verb: str, job: ModelJob) -> None:
        if verb == "kick":
            job.expires = None
            self._end_lease(job, "ready")
        elif verb == "cancel" and job.lease is not None:
            job.lease.cancelled = True
        elif verb == "bury":
            job.error = "buried by hand"
            job.reservations += job.state != "reserved"  # as beanstalkd does it
            self._end_lease(job, "buried")
        else:
            self._end_lease(job, "done")

    def advance(self, seconds: float) -> list[str]:
        """Let time pass; returns the receipts of the leases that end and were not told yet."""
        self.now += seconds
        for job in self.in_state("delayed"):
            if job.due <= self.now:
                job.state = "ready"
        for job in self.in_state("delayed", "ready"):
            if self._is_over(job):
                self._expire(job)
        for job in self.in_state("done"):
            if job.kept_until <= self.now:
                job.result_ttl = 0
        told = []
        for job in self.in_state("reserved"):
            assert job.lease is not None
            if job.lease.expires <= self.now and not job.lease.told:
                job.lease.told = True
                told.append(job.lease.receipt)
        return told

    def restart(self) -> list[str]:
        """The server stops and starts; returns the leases that are told (again) at once."""
        if not self.lasting:
            self.settled.clear()
            for job in self.in_state("reserved"):
                self._end_lease(job, "ready")
            for job in self.jobs.values():
                job.attempt, job.deaths = job.reservations, 0
            return []
        self.earlier.update(self.settled)
        self.settled.clear()
        for job in self.in_state("reserved"):
            assert job.lease is not None
            job.lease.told = False
            if job.lease.local and job.lease.cancelled:
                self._end_lease(job, "done")
            elif job.lease.local:
                job.attempt -= 1
                self._back(job, 0)
        return self.advance(0)
