"""The embedded engine's memory: every live job, by number, and where it is in its life.

No I/O and no clock. Live operation and replay change it through the same methods, so what a restart rebuilds
is what was there. Methods set values and never compute them: what to set was decided, and journaled, before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from heapq import heappop, heappush
from typing import Any

from msgspec import Struct

from ...core.job import JobOptions
from ...core.lifecycle import Event, State, step
from ...core.ready import ReadyQueue
from ...core.recent import Recent
from ...core.timers import DeadlineWheel

READY = State.READY
RESERVED = State.RESERVED
DELAYED = State.DELAYED
BURIED = State.BURIED
DONE = State.DONE

HISTORY = 10_000
SETTLED = 50_000


class LiveJob(Struct, gc=False):
    """One job.

    ``gc=False``: it refers to nothing that could refer back; the collector need not visit millions of them.

    Attributes:
        number: its id within this journal, and its place in line.
        segment, offset, size: where its accept entry lies.
        data_start: where the payload starts in that entry; it ends 4 bytes before the entry's end.
        entry: the entry, while it is kept in memory.
        inserted, due, expires: microseconds since 1970.
        ttr: milliseconds.
        nonce: of the current lease; 0 when there is none.
        error: the last one, as shown, or None.
    """

    number: int
    type: str
    state: State
    prio: int
    flags: int
    inserted: int
    due: int
    ttr: int
    segment: int
    offset: int
    size: int
    data_start: int
    entry: bytes | None
    options: JobOptions
    attempt: int = 0
    deaths: int = 0
    nonce: int = 0
    leased: int = 0
    expires: int = 0
    finished: int = 0
    local: bool = False
    holder: str = ""
    outcome: str = ""
    error: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None


def receipt_of(job: LiveJob) -> str:
    """The receipt of a job's current lease: job, attempt, and a nonce that holds the epoch."""
    return f"{job.number}-{job.attempt}-{job.nonce:x}"


class Index:
    """All live jobs, and a memory of the latest that are done."""

    def __init__(self) -> None:
        self.live: dict[int, LiveJob] = {}
        self.leases: dict[str, LiveJob] = {}
        self.counts: dict[str, list[int]] = {}
        self.in_segment: dict[int, int] = {}
        self.history: Recent[int, LiveJob] = Recent(HISTORY)
        self.settled: Recent[str, str] = Recent(SETTLED)
        self._ready = ReadyQueue()
        self._delayed: list[tuple[int, int]] = []
        self._expiry = DeadlineWheel()

    # -- moving ---------------------------------------------------------------------------------

    def _leave(self, job: LiveJob) -> list[int]:
        """Take a job out of its state's books; returns its type's counters."""
        counts = self.counts[job.type]
        counts[job.state] -= 1
        if job.state is RESERVED:
            self._expiry.remove(job.number, job.expires)
            del self.leases[receipt_of(job)]
            job.nonce = 0
            job.holder = ""
            job.local = False
            job.progress = None
        return counts

    def _enter(self, job: LiveJob, state: State, counts: list[int]) -> None:
        job.state = state
        counts[state] += 1
        if state is READY:
            self._ready.push(job.prio, job.type, job.number)
        elif state is DELAYED:
            heappush(self._delayed, (job.due, job.number))

    def add(self, job: LiveJob) -> None:
        """A job was accepted; its ``state`` says whether it waits or is ready."""
        number = job.number
        self.live[number] = job
        segment = job.segment
        try:
            self.in_segment[segment] += 1
        except KeyError:
            self.in_segment[segment] = 1
        counts = self.counts.get(job.type)
        if counts is None:
            counts = self.counts[job.type] = [0] * 6
        state = job.state
        counts[state] += 1
        if state is READY:
            self._ready.push(job.prio, job.type, number)
        else:
            heappush(self._delayed, (job.due, number))

    def lease(
        self, job: LiveJob, now: int, attempt: int, nonce: int, expires: int, holder: str, local: bool
    ) -> None:
        """A ready job goes to a worker."""
        step(job.state, Event.LEASE)
        self.counts[job.type][READY] -= 1
        job.state = RESERVED
        self.counts[job.type][RESERVED] += 1
        job.attempt = attempt
        job.nonce = nonce
        job.leased = now
        job.expires = expires
        job.holder = holder
        job.local = local
        self._expiry.add(job.number, expires)
        self.leases[receipt_of(job)] = job

    def renew(self, job: LiveJob, expires: int) -> None:
        """A lease lasts longer."""
        self._expiry.remove(job.number, job.expires)
        job.expires = expires
        self._expiry.add(job.number, expires)

    def finish(self, job: LiveJob, event: Event, now: int, outcome: str) -> None:
        """A job ends: acked or deleted."""
        after = step(job.state, event)
        if job.state is RESERVED:
            self.settled[receipt_of(job)] = outcome
        counts = self._leave(job)
        job.state = after
        counts[DONE] += 1
        job.finished = now
        job.outcome = outcome
        job.entry = None
        del self.live[job.number]
        self.in_segment[job.segment] -= 1
        self.history[job.number] = job

    def move(
        self,
        job: LiveJob,
        event: Event,
        *,
        due: int,
        delayed: bool,
        attempt: int,
        prio: int,
        deaths: int,
        error: dict[str, Any] | None,
        outcome: str,
    ) -> None:
        """Any other event: the job waits again, is parked, or is brought back.

        Args:
            due: when it may run, microseconds.
            delayed: whether that is still to come.
            attempt, prio, deaths: the values after the event.
            error: the new last error, or None to keep the old one.
            outcome: remembered for the receipt, when there was a lease.

        Raises:
            Conflict: the state forbids it; nothing changed.
        """
        after = step(job.state, event, delayed=delayed)
        if job.state is RESERVED and outcome:
            self.settled[receipt_of(job)] = outcome
        counts = self._leave(job)
        job.due = due
        job.attempt = attempt
        job.prio = prio
        job.deaths = deaths
        if error is not None:
            job.error = error
        self._enter(job, after, counts)

    def release_due(self, now: int) -> list[LiveJob]:
        """Delayed jobs whose time has come are ready now; returns them in the order they came due."""
        released = []
        while self._delayed and self._delayed[0][0] <= now:
            due, number = heappop(self._delayed)
            job = self.live.get(number)
            if job is None or job.state is not DELAYED or job.due != due:
                continue
            self._enter(job, step(DELAYED, Event.DUE), self._leave(job))
            released.append(job)
        return released

    def pop_expired(self, now: int) -> list[LiveJob]:
        """Leases that are over. Each is told once; the job stays reserved until it is rescued or settled."""
        return [self.live[number] for number in self._expiry.pop_due(now)]

    # -- asking ---------------------------------------------------------------------------------

    def take(self, types: Collection[str], limit: int) -> list[LiveJob]:
        """The next jobs to lease; the caller leases every one of them."""
        live = self.live
        taken: dict[int, LiveJob] = {}

        def still_ready(number: int, prio: int) -> bool:
            job = live.get(number)
            # A job that was queued, left and came back stands in the queue twice.
            if job is None or job.state is not READY or job.prio != prio or number in taken:
                return False
            taken[number] = job
            return True

        self._ready.pop(types, limit, still_ready)
        return list(taken.values())

    def next_wake(self) -> int | None:
        """The earliest time :meth:`release_due` or :meth:`pop_expired` has something to do."""
        while self._delayed:
            due, number = self._delayed[0]
            job = self.live.get(number)
            if job is not None and job.state is DELAYED and job.due == due:
                break
            heappop(self._delayed)
        expiry = self._expiry.next_wake()
        if not self._delayed:
            return expiry
        due = self._delayed[0][0]
        return due if expiry is None else min(due, expiry)

    def oldest_ready(self) -> LiveJob | None:
        """The ready job that was inserted first among the heads of all lanes."""
        best: LiveJob | None = None
        for number in self._ready.heads():
            job = self.live.get(number)
            if job is not None and job.state is READY and (best is None or number < best.number):
                best = job
        return best

    def held_by(self, holder: str) -> Iterator[str]:
        """Receipts of a worker's leases, oldest lease first."""
        return (receipt for receipt, job in self.leases.items() if job.holder == holder)
