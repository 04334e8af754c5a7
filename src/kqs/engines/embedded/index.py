"""The embedded engine's memory: every live job, by number, and where it is in its life.

No I/O and no clock. Live operation and replay change it through the same methods, so what a restart rebuilds
is what was there. Methods set values and never compute them: what to set was decided, and journaled, before.

Every live job has a row in the :class:`~.table.JobTable`; a job that is leased has its :class:`~.job.LiveJob`
in memory as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

from ...core.job import BulkRef
from ...core.lifecycle import Event, State, step
from ...core.ready import ReadyQueue
from ...core.recent import Recent
from ...core.record import Damaged, EventRecord
from ...core.timers import DeadlineWheel, DueCalendar
from .job import LiveJob, Loaded, load, receipt_of
from .results import RESULT_BYTES, ResultIndex
from .table import PRIO_MASK, ROW_BYTES, STATE_BITS, STATE_MASK, TYPE_SHIFT, JobTable, Row, pack_meta

READY: Final = State.READY
RESERVED: Final = State.RESERVED
DELAYED: Final = State.DELAYED
BURIED: Final = State.BURIED
DONE: Final = State.DONE

HISTORY: Final = 10_000
SETTLED: Final = 50_000
#: Estimates of memory, measured by bench/memory.py: a row with its place in line, a lease, a job type.
_ROW: Final = ROW_BYTES + 16
_LEASE: Final = 1200
_TYPE: Final = 600
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
    """All live jobs, and a memory of the latest that are done."""

    def __init__(self) -> None:
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
        self.paused: dict[str, int] = {}
        self.history: Recent[int, LiveJob | Finished] = Recent(HISTORY)
        self.settled: Recent[str, str] = Recent(SETTLED)
        self._types: list[str] = []
        self._type_ids: dict[str, int] = {}
        self._ready = ReadyQueue()
        self._delayed = DueCalendar(self._due_of_delayed)
        self._expiry = DeadlineWheel()
        self._expiries = DueCalendar(self.expires.get)
        self._overdue: deque[int] = deque()

    # -- rows -----------------------------------------------------------------------------------

    def type_id(self, type_: str) -> int:
        """The number a type has here."""
        found = self._type_ids.get(type_)
        if found is None:
            found = self._type_ids[type_] = len(self._types)
            self._types.append(type_)
            self.counts[type_] = [0] * 6
        return found

    def type_of(self, row: Row) -> str:
        return self._types[row.chunk.meta[row.at] >> TYPE_SHIFT]

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
            + len(self._types) * _TYPE
            + len(self.expires) * _EXPIRY
            + len(self.results) * RESULT_BYTES
        )

    # -- moving ---------------------------------------------------------------------------------

    def add(self, number: int, type_: str, prio: int, due: int, delayed: bool, place: int, size: int) -> Row:
        """A job was accepted.

        Args:
            number: its number.
            type_, prio, due: as accepted.
            delayed: whether ``due`` is still to come.
            place, size: of its entry.
        """
        type_id = self._type_ids.get(type_)
        if type_id is None:
            type_id = self.type_id(type_)
        state = DELAYED if delayed else READY
        row = self.table.add(number, place, size, due, type_id << TYPE_SHIFT | prio << STATE_BITS | state)
        segment = place >> 32
        try:
            self.in_segment[segment] += 1
        except KeyError:
            self.in_segment[segment] = 1
        self.live_bytes += size
        self.counts[type_][state] += 1
        if delayed:
            self._delayed.add(number, due)
        else:
            self._ready.push(prio, type_, number)
        return row

    def lease(
        self, job: LiveJob, now: int, attempt: int, nonce: int, expires: int, holder: str, local: bool
    ) -> None:
        """A ready job goes to a worker."""
        row = self.row(job.number)
        step(self.state_of(row), Event.LEASE)
        self._set_state(row, job, RESERVED)
        job.attempt = row.chunk.attempt[row.at] = attempt
        job.nonce = nonce
        job.leased = now
        job.expires = expires
        job.holder = holder
        job.local = local
        self.hold(job)

    def hold(self, job: LiveJob) -> None:
        """Enter a reserved job into the books of leases."""
        self._expiry.add(job.number, job.expires)
        self.leases[receipt_of(job)] = job
        self.leased[job.number] = job
        self.holders.setdefault(job.holder, {})[job.number] = job

    def row(self, number: int) -> Row:
        """Where a live job's columns are; the job is known to be live."""
        row = self.table.row(number)
        assert row is not None
        return row

    def _set_state(self, row: Row, job: LiveJob, state: State) -> None:
        meta = row.chunk.meta[row.at]
        counts = self.counts[job.type]
        counts[meta & STATE_MASK] -= 1
        counts[state] += 1
        job.state = state
        row.chunk.meta[row.at] = pack_meta(meta >> TYPE_SHIFT, job.prio, state)

    def drop_lease(self, job: LiveJob) -> None:
        """Take a reserved job out of the books of leases."""
        self._expiry.remove(job.number, job.expires)
        del self.leases[receipt_of(job)]
        del self.leased[job.number]
        held = self.holders[job.holder]
        del held[job.number]
        if not held:
            del self.holders[job.holder]
        job.nonce = 0
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
        after = step(self.state_of(row), event)
        if job.state is RESERVED:
            self.settled[receipt_of(job)] = said or outcome
            self.drop_lease(job)
        self._set_state(row, job, after)
        job.finished = now
        job.outcome = outcome
        job.error_place = row.chunk.error[row.at]
        self.forget(row)
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
                self.settled[receipt_of(job)] = outcome
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
        self.wait(after, job.prio, job.type, job.number, due)

    def wait(self, state: State, prio: int, type_: str, number: int, due: int) -> None:
        if state is READY:
            self._ready.push(prio, type_, number)
        elif state is DELAYED:
            self._delayed.add(number, due)

    def release_due(self, now: int) -> list[str]:
        """Delayed jobs whose time has come are ready now; returns their types."""
        types: dict[str, None] = {}
        for number in self._delayed.pop_due(now):
            row = self.row(number)
            meta = row.chunk.meta[row.at]
            type_, prio = self._types[meta >> TYPE_SHIFT], meta >> STATE_BITS & PRIO_MASK
            state = step(State(meta & STATE_MASK), Event.DUE)
            row.chunk.meta[row.at] = pack_meta(meta >> TYPE_SHIFT, prio, state)
            counts = self.counts[type_]
            counts[DELAYED] -= 1
            counts[READY] += 1
            self._ready.push(prio, type_, number)
            types[type_] = None
        return list(types)

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
        self._overdue.extend(self._expiries.pop_due(now))
        found: list[int] = []
        while self._overdue and len(found) < most:
            number = self._overdue.popleft()
            row = self.table.row(number)
            if row is not None and self.is_over(number, now) and self.state_of(row) in (READY, DELAYED):
                found.append(number)
        return found

    def pause(self, type_: str, segment: int) -> None:
        """Hand out no job of a type.

        Args:
            segment: where that stands.
        """
        self.paused[type_] = segment
        self._ready.hold(type_)

    def resume(self, type_: str) -> None:
        """The end of a :meth:`pause`."""
        self.paused.pop(type_, None)
        self._ready.let_go(type_)

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

    def take(self, types: Collection[str], limit: int) -> list[int]:
        """The numbers of the next jobs to lease; the caller leases every one of them."""
        seen: set[int] = set()  # a job that was parked and kicked stands in line twice

        def still_ready(number: int, prio: int) -> bool:
            if number in seen or not self._still_ready(number, prio):
                return False
            seen.add(number)
            return True

        return self._ready.pop(types, limit, still_ready)

    def _still_ready(self, number: int, prio: int) -> bool:
        row = self.table.row(number)
        if row is None:
            return False
        meta = row.chunk.meta[row.at]
        return meta & STATE_MASK == READY and meta >> STATE_BITS & PRIO_MASK == prio

    def next_wake(self) -> int | None:
        """The earliest time :meth:`release_due` or :meth:`pop_expired` has something to do."""
        wakes = (self._delayed.next_wake(), self._expiry.next_wake(), self._expiries.next_wake())
        return min((time for time in wakes if time is not None), default=None)

    def oldest_ready(self) -> Row | None:
        """The ready job that was inserted first."""
        oldest = min(self._ready.heads(self._still_ready), default=None)
        return None if oldest is None else self.table.row(oldest)

    def held_by(self, holder: str) -> Iterator[str]:
        """Receipts of a worker's leases, oldest lease first."""
        return map(receipt_of, self.holders.get(holder, {}).values())

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
            self.table.remove(row)
        meta = pack_meta(self.type_id(job.type), job.prio, job.state)
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
        if job.state is RESERVED:
            self.hold(job)
        else:
            self.wait(job.state, job.prio, job.type, job.number, job.due)

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
        """:meth:`add` for many new jobs whose numbers count up from ``first``.

        Args:
            first: the first one's number; above all before it.
            places, sizes, dues, metas: the columns.
            groups: the numbers, by ``meta``.
            segment: where all their entries lie.
        """
        self.table.extend(list(range(first, first + len(places))), places, sizes, dues, metas)
        self.in_segment[segment] = self.in_segment.get(segment, 0) + len(places)
        self.live_bytes += sum(sizes)
        for meta, numbers in groups.items():
            type_, prio = self._types[meta >> TYPE_SHIFT], meta >> STATE_BITS & PRIO_MASK
            state = State(meta & STATE_MASK)
            self.counts[type_][state] += len(numbers)
            if state is READY:
                self._ready.extend(prio, type_, numbers)
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
        self.table.remove(row)

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
        job.state = self.state_of(row)
        job.prio = self.prio_of(row)
        job.due = chunk.due[at]
        job.attempt = chunk.attempt[at]
        job.deaths = chunk.deaths[at]
        return loaded
