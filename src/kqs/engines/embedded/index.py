"""The embedded engine's memory: every live job, by number, and where it is in its life.

No I/O and no clock. Live operation and replay change it through the same methods, so what a restart rebuilds
is what was there. Methods set values and never compute them: what to set was decided, and journaled, before.

Every live job has a row in the :class:`~.table.JobTable`; a job that is leased has its :class:`~.job.LiveJob`
in memory as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

from ...core.fairshare import Scheduler
from ...core.job import BulkRef
from ...core.lanes import Lane
from ...core.lifecycle import Event, State, step
from ...core.recent import Lateness, Recent
from ...core.record import Damaged, EventRecord
from ...core.timers import DeadlineWheel, DueCalendar
from ..marks import CronIndex, Paused
from .job import LiveJob, Loaded, load, receipt_of
from .results import RESULT_BYTES, ResultIndex
from .table import LANE_SHIFT, PRIO_MASK, ROW_BYTES, STATE_BITS, STATE_MASK, JobTable, Row, pack_meta
from .unique import UniqueIndex

READY: Final = State.READY
RESERVED: Final = State.RESERVED
DELAYED: Final = State.DELAYED
BURIED: Final = State.BURIED
DONE: Final = State.DONE

HISTORY: Final = 10_000
SETTLED: Final = 50_000
#: Delayed jobs released in one go, so that others get their turn between.
RELEASED_AT_ONCE: Final = 2000
#: Estimates of memory: a row with its place in line, a lease, a job type, a lane.
_ROW: Final = ROW_BYTES + 16
_LEASE: Final = 1200
_TYPE: Final = 600
_LANE: Final = 900
#: An expiry: two dict entries and a place in the calendar.
_EXPIRY: Final = 150


class Finished(NamedTuple):
    """A job that ended before the last start: enough to load it as long as its segment is there.

    Attributes:
        number: the job.
        place, size: of its entry.
        event: what ended it.
        error_place: as in :class:`~.job.LiveJob`.
    """

    number: int
    place: int
    size: int
    event: EventRecord
    error_place: int


class Index:
    """All live jobs, and a memory of the latest that are done.

    Args:
        now: the time of the start, microseconds.
    """

    def __init__(self, now: int = 0) -> None:
        self.table = JobTable()
        self.leases: dict[str, LiveJob] = {}
        self.leased: dict[int, LiveJob] = {}
        self.holders: dict[str, dict[int, LiveJob]] = {}
        self.counts: dict[str, list[int]] = {}
        self.in_segment: dict[int, int] = {}
        self.live_bytes = 0
        self.bulk: dict[int, BulkRef] = {}
        self.expires: dict[int, int] = {}
        self.results = ResultIndex()
        self.unique = UniqueIndex()
        self.crons = CronIndex()
        self.paused: dict[str, Paused] = {}
        self.history: Recent[int, LiveJob | Finished] = Recent(HISTORY)
        self.settled: Recent[str, str] = Recent(SETTLED)
        self.scheduler = Scheduler(now)
        self._delayed = DueCalendar(self._due_of_delayed)
        self._expiry = DeadlineWheel()
        self._expiries = DueCalendar(self.expires.get)
        self.lateness = Lateness()

    # -- rows -----------------------------------------------------------------------------------

    def lane(self, type_: str, key: str | None = None) -> Lane:
        """The lane of a type and fairness key; one without live jobs may be gone at the next turn."""
        lane = self.scheduler.lane(type_, key)
        if not lane.kind.counts:
            lane.kind.counts = self.counts[type_] = [0] * 6
        return lane

    def join(self, groups: dict[int, list[int]]) -> None:
        """Jobs are about to be entered: their lanes stay.

        Args:
            groups: numbers, by ``meta``.
        """
        lane_at = self.scheduler.lane_at
        for meta, numbers in groups.items():
            lane_at(meta >> LANE_SHIFT).live += len(numbers)

    def lane_of(self, row: Row) -> Lane:
        return self.scheduler.lane_at(row.chunk.meta[row.at] >> LANE_SHIFT)

    def type_of(self, row: Row) -> str:
        return self.lane_of(row).type

    @staticmethod
    def state_of(row: Row) -> State:
        return State(row.chunk.meta[row.at] & STATE_MASK)

    @staticmethod
    def prio_of(row: Row) -> int:
        return row.chunk.meta[row.at] >> STATE_BITS & PRIO_MASK

    def _due_of_delayed(self, number: int) -> int | None:
        row = self.table.row(number)
        if row is None or row.chunk.meta[row.at] & STATE_MASK != DELAYED:
            return None
        return row.chunk.due[row.at]

    @property
    def memory(self) -> int:
        """Estimated bytes of everything here that grows with the backlog."""
        return (
            len(self.table) * _ROW
            + len(self.leases) * _LEASE
            + len(self.counts) * _TYPE
            + len(self.scheduler) * _LANE
            + len(self.expires) * _EXPIRY
            + len(self.results) * RESULT_BYTES
            + self.unique.memory
        )

    # -- moving ---------------------------------------------------------------------------------

    def lease(
        self, job: LiveJob, now: int, attempt: int, nonce: int, expires: int, holder: str, local: bool
    ) -> None:
        """A ready job that was taken goes to a worker."""
        row = self.row(job.number)
        step(job.state, Event.LEASE)
        assert job.lane is not None
        job.charged = job.lane.charge
        self._set_state(row, job, RESERVED)
        job.attempt = row.chunk.attempt[row.at] = attempt
        job.nonce = nonce
        job.leased = now
        job.expires = expires
        job.holder = holder
        job.local = local
        self._hold(job)

    def hold(self, job: LiveJob) -> None:
        """Enter a job that was reserved before the start into the books of leases."""
        assert job.lane is not None
        self.scheduler.resumed(job.lane)
        self._hold(job)

    def _hold(self, job: LiveJob) -> None:
        self._expiry.add(job.number, job.expires)
        job.receipt = receipt_of(job)
        self.leases[job.receipt] = job
        self.leased[job.number] = job
        self.holders.setdefault(job.holder, {})[job.number] = job

    def row(self, number: int) -> Row:
        """Where a live job's columns are; the job is known to be live."""
        row = self.table.row(number)
        assert row is not None
        return row

    def _set_state(self, row: Row, job: LiveJob, state: State) -> None:
        meta = row.chunk.meta[row.at]
        counts = self.lane_of(row).kind.counts
        counts[meta & STATE_MASK] -= 1
        counts[state] += 1
        job.state = state
        row.chunk.meta[row.at] = pack_meta(meta >> LANE_SHIFT, job.prio, state)
        if self.unique:
            self.unique.moved(job.number, state)

    def drop_lease(self, job: LiveJob) -> None:
        """Take a reserved job out of the books of leases; its lane is charged what it cost."""
        assert job.lane is not None
        self.scheduler.ended(job.lane, job.prio, job.charged, job.cost, learn=job.cost > 0)
        job.charged, job.cost = 0.0, -1
        self._expiry.remove(job.number, job.expires)
        del self.leases[job.receipt]
        del self.leased[job.number]
        held = self.holders[job.holder]
        del held[job.number]
        if not held:
            del self.holders[job.holder]
        job.nonce = 0
        job.receipt = ""
        job.holder = ""
        job.local = False
        job.cancelled = False
        job.progress = None

    def renew(self, job: LiveJob, expires: int) -> None:
        """A lease lasts longer."""
        self._expiry.remove(job.number, job.expires)
        job.expires = expires
        self._expiry.add(job.number, expires)

    def finish(self, job: LiveJob, event: Event, now: int, outcome: str, said: str = "") -> None:
        """A job ends: acked, deleted or cancelled.

        Args:
            outcome: as shown.
            said: by its worker, when that differs.
        """
        row = self.row(job.number)
        after = step(job.state, event)
        if job.state is RESERVED:
            self.settled[job.receipt] = said or outcome
            self.drop_lease(job)
        self._set_state(row, job, after)
        job.finished = now
        job.outcome = outcome
        job.error_place = row.chunk.error[row.at]
        self.forget(row)
        job.lane = None
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
        row = self.row(job.number)
        after = step(self.state_of(row), event, delayed=delayed)
        if job.state is RESERVED:
            if outcome:
                self.settled[job.receipt] = outcome
            self.drop_lease(job)
        job.due = row.chunk.due[row.at] = due
        job.attempt = row.chunk.attempt[row.at] = attempt
        job.deaths = row.chunk.deaths[row.at] = min(deaths, 255)
        job.prio = prio
        if error is not None:
            job.error = error
        if event is Event.KICK:
            self.expires.pop(job.number, None)  # a person wants it run
        self._set_state(row, job, after)
        self.wait(after, job.prio, self.lane_of(row), job.number, due)

    def wait(self, state: State, prio: int, lane: Lane, number: int, due: int) -> None:
        if state is READY:
            self.scheduler.push(prio, lane, number)
        elif state is DELAYED:
            self._delayed.add(number, due)

    def release_due(self, now: int) -> list[str]:
        """Delayed jobs whose time has come are ready now, some of them; returns their types."""
        types: dict[str, None] = {}
        for number in self._delayed.pop_due(now, RELEASED_AT_ONCE):
            row = self.row(number)
            self.lateness.add(now - row.chunk.due[row.at])
            meta = row.chunk.meta[row.at]
            lane, prio = self.lane_of(row), meta >> STATE_BITS & PRIO_MASK
            state = step(State(meta & STATE_MASK), Event.DUE)
            row.chunk.meta[row.at] = pack_meta(lane.id, prio, state)
            counts = lane.kind.counts
            counts[DELAYED] -= 1
            counts[READY] += 1
            self.scheduler.push(prio, lane, number)
            types[lane.type] = None
        return list(types)

    @property
    def behind(self) -> bool:
        """Whether more delayed jobs are due than were released in one go."""
        return self._delayed.behind

    def pop_expired(self, now: int) -> list[LiveJob]:
        """Leases that are over. Each is told once; the job stays reserved until it is rescued or settled."""
        return [self.leased[number] for number in self._expiry.pop_due(now)]

    def cancel(self, job: LiveJob) -> None:
        """A job that runs ends with its lease."""
        step(job.state, Event.CANCEL)
        job.cancelled = True

    # -- expiry and pauses ----------------------------------------------------------------------

    def expire(self, number: int, at: int) -> None:
        """A job is buried when it still waits at this time."""
        self.expires[number] = at
        self._expiries.add(number, at)

    def is_over(self, number: int, now: int) -> bool:
        """Whether a job's time to run is over."""
        return bool(self.expires) and self.expires.get(number, now + 1) <= now

    def pop_overdue(self, now: int, most: int) -> list[int]:
        """Waiting jobs whose time is over, some of them; those that run are looked at when they come back."""
        found: list[int] = []
        for number in self._expiries.pop_due(now, most):
            row = self.table.row(number)
            if row is not None and self.is_over(number, now) and self.state_of(row) in (READY, DELAYED):
                found.append(number)
        return found

    def pause(self, type_: str, paused: Paused) -> None:
        """Hand out no job of a type."""
        self.paused[type_] = paused
        self.scheduler.pause(type_)

    def resume(self, type_: str) -> None:
        """The end of a :meth:`pause`."""
        self.paused.pop(type_, None)
        self.scheduler.resume(type_)

    def carried(self, number: int, old: int, place: int, size: int, error: dict[str, Any] | None) -> None:
        """A job's state now stands in a carry entry, if the job has not ended meanwhile.

        Args:
            number: the job.
            old: the place of the entry it had.
            place, size: of the new one.
            error: the last error in it.
        """
        row = self.table.row(number)
        if row is None or row.chunk.place[row.at] != old:
            return
        self.live_bytes += size - row.chunk.size[row.at]
        row.chunk.place[row.at] = place
        row.chunk.size[row.at] = size
        if row.chunk.error[row.at] < place:
            row.chunk.error[row.at] = 0  # the carry entry has it
            if (job := self.leased.get(number)) is not None:
                job.error = error
        self.in_segment[old >> 32] -= 1
        self.in_segment[place >> 32] = self.in_segment.get(place >> 32, 0) + 1
        if (job := self.leased.get(number)) is not None:
            job.place, job.size = place, size

    # -- asking ---------------------------------------------------------------------------------

    def take(self, types: Collection[str], limit: int, now: int) -> list[int]:
        """The numbers of the next jobs to lease; the caller leases each, or :meth:`untake`s it."""
        seen: set[int] = set()  # a job that was parked and kicked stands in line twice

        def still_ready(number: int, prio: int) -> bool:
            if number in seen or not self._still_ready(number, prio):
                return False
            seen.add(number)
            return True

        return self.scheduler.take(types, limit, now, still_ready)

    def untake(self, numbers: Collection[int]) -> None:
        """Jobs that were taken are not leased: those that are ready stand in line again."""
        for number in numbers:
            row = self.row(number)
            lane, prio = self.lane_of(row), self.prio_of(row)
            self.scheduler.untaken(lane, prio)
            if self.state_of(row) is READY:
                self.scheduler.push(prio, lane, number)

    def _still_ready(self, number: int, prio: int) -> bool:
        row = self.table.row(number)
        if row is None:
            return False
        meta = row.chunk.meta[row.at]
        return meta & STATE_MASK == READY and meta >> STATE_BITS & PRIO_MASK == prio

    def next_wake(self) -> int | None:
        """The earliest time a delay, a lease, an expiry or a limit's wait is over."""
        books = (self._delayed, self._expiry, self._expiries, self.scheduler)
        wakes = (book.next_wake() for book in books)
        return min((time for time in wakes if time is not None), default=None)

    def oldest_ready(self) -> Row | None:
        """The ready job that was inserted first."""
        number = self.scheduler.oldest(self._still_ready)
        return None if number is None else self.row(number)

    def held_by(self, holder: str) -> Iterator[str]:
        """Receipts of a worker's leases, oldest lease first."""
        return (job.receipt for job in self.holders.get(holder, {}).values())

    # -- replay ---------------------------------------------------------------------------------

    def restore(self, job: LiveJob) -> None:
        """A job's whole state, from a carry entry: it replaces what is known of the job, if anything is."""
        row = self.table.row(job.number)
        if row is not None:
            if (leased := self.leased.get(job.number)) is not None:
                self.drop_lease(leased)
            self.counts[self.type_of(row)][self.state_of(row)] -= 1
            self.in_segment[row.chunk.place[row.at] >> 32] -= 1
            self.live_bytes -= row.chunk.size[row.at]
            self.lane_of(row).live -= 1
            self.table.remove(row)
        lane = self.lane(job.type, job.options.fair)
        lane.live += 1
        job.lane = lane
        meta = pack_meta(lane.id, job.prio, job.state)
        row = self.table.add(job.number, job.place, job.size, job.due, meta)
        row.chunk.attempt[row.at] = job.attempt
        row.chunk.deaths[row.at] = job.deaths
        segment = job.place >> 32
        self.in_segment[segment] = self.in_segment.get(segment, 0) + 1
        self.live_bytes += job.size
        self.counts[job.type][job.state] += 1
        if job.options.bulk is not None:
            self.bulk[job.number] = job.options.bulk
        if job.options.expires:
            self.expire(job.number, job.inserted + job.options.expires)
        if job.options.unique is not None:
            self.unique.add(job.number, job.type, job.options.unique)
        if job.state is RESERVED:
            self.hold(job)
        else:
            self.wait(job.state, job.prio, lane, job.number, job.due)

    def extend(
        self,
        first: int,
        places: list[int],
        sizes: list[int],
        dues: list[int],
        metas: list[int],
        groups: dict[int, list[int]],
        segment: int,
    ) -> None:
        r"""New jobs whose numbers count up from ``first``, which :meth:`join`\ ed before.

        Args:
            first: the first one's number; above all before it.
            places, sizes, dues, metas: the columns; a place is segment << 32 | offset of the entry.
            groups: the numbers, by ``meta``.
            segment: where all their entries lie.
        """
        self.table.extend(list(range(first, first + len(places))), places, sizes, dues, metas)
        self.in_segment[segment] = self.in_segment.get(segment, 0) + len(places)
        self.live_bytes += sum(sizes)
        for meta, numbers in groups.items():
            lane, state = self.scheduler.lane_at(meta >> LANE_SHIFT), meta & STATE_MASK
            lane.kind.counts[state] += len(numbers)
            if state == READY:
                self.scheduler.extend(meta >> STATE_BITS & PRIO_MASK, lane, numbers)
            else:
                for number in numbers:
                    self._delayed.add(number, dues[number - first])

    def forget(self, row: Row) -> None:
        """A job that ended goes from the table and the sums."""
        chunk, at = row
        self.in_segment[chunk.place[at] >> 32] -= 1
        self.live_bytes -= chunk.size[at]
        self.bulk.pop(chunk.number[at], None)
        if self.expires:
            self.expires.pop(chunk.number[at], None)
        if self.unique:
            self.unique.ended(chunk.number[at])
        lane = self.lane_of(row)
        self.table.remove(row)
        lane.live -= 1
        if not lane.live:
            self.scheduler.leave(lane)

    def load(self, row: Row, entry: bytes) -> Loaded:
        """The job of a row, made from its entry, and its payload.

        Raises:
            Damaged, Newer: the entry is not what was written.
        """
        chunk, at = row
        loaded = load(entry, chunk.place[at])
        job = loaded.job
        if job.number != chunk.number[at]:
            raise Damaged(0, "the entry is another job's")
        job.lane = self.lane_of(row)
        job.state = self.state_of(row)
        job.prio = self.prio_of(row)
        job.due = chunk.due[at]
        job.attempt = chunk.attempt[at]
        job.deaths = chunk.deaths[at]
        return loaded
