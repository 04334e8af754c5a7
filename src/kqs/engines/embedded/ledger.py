"""The embedded engine's books: the index and the journal, changed together.

Every change is decided by the caller, applied to the index at once, and given to the journal in the same turn
of the loop, so that the order of the entries is the order of the changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from ...core import record
from ...core.job import NO_OPTIONS, JobOptions
from ...core.lifecycle import Event, State
from ...core.outcome import Reason
from ...core.record import Damaged, Newer
from ...errors import DamagedJournal, NotFound
from ...journal.log import Journal, Location
from ...journal.scan import Apply
from ...ports import Clock, JobEvent, Revoked
from ..rules import error_of
from .index import BURIED, Finished, Index
from .job import LiveJob, load
from .keys import KeyIndex
from .replay import EventOptions, Replay, event_options
from .show import shown
from .table import Row
from .watch import Listener, Watchers, deliver

#: Bytes of journal that must stay free for each live job: its ack or delete, and one more lease.
RESERVE = 160
#: With these a job waits again, unless another one with its unique key stands by then.
_COMES_BACK = (Event.RETRY, Event.RELEASE, Event.RESCUE)
#: What watchers call the events of the lifecycle.
_TOLD_AS = {
    Event.RETRY: "again",
    Event.BURY: "buried",
    Event.RELEASE: "released",
    Event.RESCUE: "rescued",
    Event.KICK: "kicked",
}


class Ledger:
    """Index, journal, idempotency keys, and the window of payloads kept in memory.

    Args:
        open_journal: opens the journal, replaying its frames into the callback it is given.
        clock: time.
        payload_window: bytes of payload kept in memory.
        key_window: seconds an idempotency key is remembered.
        key_cap: most idempotency keys remembered.

    Attributes:
        cached: bytes of payload in memory now.
        notify: told the types of jobs that became ready.
        revoked: told the leases that were taken from their workers.
        watchers: told of what happens to jobs.
    """

    def __init__(
        self,
        open_journal: Callable[[Apply], Journal],
        clock: Clock,
        *,
        payload_window: int,
        key_window: float,
        key_cap: int,
    ) -> None:
        self._clock = clock
        self._window = payload_window
        self._entries: dict[int, bytes] = {}
        self.cached = 0
        self._errors: dict[int, tuple[int, EventOptions]] = {}
        self._placing: list[tuple[int, Callable[[int], None]]] = []
        self._events: list[tuple[list[Listener], JobEvent]] = []
        self.watchers = Watchers()
        self.revoked: Callable[[Sequence[Revoked]], None] = lambda leases: None
        self.notify: Callable[[Sequence[str]], None] = lambda types: None
        self.index = Index(clock.now())
        self.keys = KeyIndex(key_window, key_cap)
        replay = Replay(self.index, self.keys)
        self.journal = open_journal(replay.frame)
        replay.finish(self.read)
        self.keys.settle(clock.now())
        self._shorten_leases(clock.now())
        self._prefix = f"{self.journal.journal_id[:8]}-"

    def _shorten_leases(self, now: int) -> None:
        """No lease lasts longer than its ttr from now on: the clock may have been set back since."""
        for job in self.index.leases.values():
            longest = now + job.ttr * 1000
            if job.expires > longest:
                self.index.renew(job, longest)

    def now(self) -> int:
        """The clock's time, microseconds since 1970."""
        return self._clock.now()

    def reserve(self, more: int = 0, *, retry: bool = False) -> None:
        """Keep space free for the ends of all live jobs (DESIGN section 5, rule 6).

        Args:
            more: jobs that are about to come.
            retry: try again where the disk was full.
        """
        self.journal.reserve((len(self.index.table) + more) * RESERVE, retry=retry)

    # -- ids ------------------------------------------------------------------------------------

    def id_of(self, number: int) -> str:
        """A job's id, as callers see it."""
        return f"{self._prefix}{number}"

    def ids(self, first: int, count: int) -> list[str]:
        """The ids of consecutive numbers."""
        prefix = self._prefix
        return [f"{prefix}{number}" for number in range(first, first + count)]

    def number_of(self, id: str) -> int | None:
        """The number in an id of this journal, or None."""
        text = id.removeprefix(self._prefix)
        if text.isascii() and text.isdigit() and len(text) < 20 and id == self.id_of(int(text)):
            return int(text)
        return None

    def find(self, id: str) -> LiveJob:
        """The job with an id, live or finished lately.

        Raises:
            NotFound: there is none.
            DamagedJournal: it has ended, and its entry does not read back.
        """
        number = self.number_of(id)
        if number is not None and id == self.id_of(number):
            if (row := self.index.table.row(number)) is not None:
                return self.job(row)
            if (ended := self.ended(self.index.history.get(number))) is not None:
                return ended
        raise NotFound(f"no job {id!r} here; finished jobs are forgotten after a while", field="id")

    # -- jobs from rows -------------------------------------------------------------------------

    def job(self, row: Row) -> LiveJob:
        """A live job with all that is shown of it.

        One whose entry does not read back is what its row tells, with the damage as its error: a person must
        be able to see and delete it, and a page of jobs must not fail for it (G6).
        """
        job = self.index.leased.get(row.chunk.number[row.at])
        if job is None:
            try:
                job = self.index.load(row, self.entry(row)).job
            except (DamagedJournal, Damaged, Newer) as damage:
                job = self._of_row(row)
                job.error = self._damage_error(damage)
        self.add_error(row, job)
        return job

    def _of_row(self, row: Row) -> LiveJob:
        """What a job's row alone tells of it: type, state, priority, attempts."""
        chunk, at = row
        number, index = chunk.number[at], self.index
        bulk = index.bulk.get(number)
        return LiveJob(
            number,
            index.type_of(row),
            index.state_of(row),
            index.prio_of(row),
            0,
            chunk.due[at],
            chunk.due[at],
            30_000,
            chunk.place[at],
            chunk.size[at],
            0,
            NO_OPTIONS if bulk is None else JobOptions(bulk=bulk),
            chunk.attempt[at],
            chunk.deaths[at],
        )

    def _damage_error(self, damage: Exception) -> dict[str, Any]:
        return error_of(Reason(str(damage), "damaged"), self.now(), "damaged")

    def ended(self, found: LiveJob | Finished | None) -> LiveJob | None:
        """A finished job; one that ended before the last start is loaded while its segment is there."""
        if not isinstance(found, Finished):
            if found is not None and found.error_place >> 32 >= self.journal.oldest_segment:
                self._read_error(found, found.error_place)
                found.error_place = 0
            return found
        if found.place >> 32 < self.journal.oldest_segment:
            return None
        job = load(self.read(found.place, found.size), found.place).job
        event = found.event
        job.state, job.finished, job.attempt = State.DONE, event.at, event.attempt
        job.prio, job.deaths = event.prio, event.deaths
        job.outcome = event_options.decode(event.options or b"{}").outcome
        if found.error_place:
            self._read_error(job, found.error_place)
        return job

    def entry(self, row: Row, *, keep: bool = True) -> bytes:
        """A job's entry, from memory or read back from its segment and verified.

        Args:
            row: the job's.
            keep: whether it stays in memory; else it will not be needed again soon.

        Raises:
            DamagedJournal: the disk gave back something else.
        """
        chunk, at = row
        number = chunk.number[at]
        entry = self._entries.get(number)
        if entry is None:
            place = chunk.place[at]
            entry = self.read(place, chunk.size[at])
            if not keep:
                self.journal.read_ahead(place >> 32, (place & 0xFFFFFFFF) + len(entry))
        elif not keep:
            self.forget_entry(number)
        return entry

    def read(self, place: int, size: int | None = None) -> bytes:
        return self.journal.read(place >> 32, place & 0xFFFFFFFF, size)

    def keep(self, first: int, parts: list[bytes], size: int) -> None:
        """Keep entries in memory while the window has room: they are likely to be leased next.

        Args:
            first: the first one's job; the others' follow.
            parts: the entries.
            size: bytes of them all.
        """
        room = self._window - self.cached
        if size <= room:
            self._entries.update(zip(range(first, first + len(parts)), parts, strict=True))
            self.cached += size
            return
        for number, entry in enumerate(parts, first):
            room -= len(entry)
            if room < 0:
                break
            self._entries[number] = entry
            self.cached += len(entry)

    def forget_entry(self, number: int) -> None:
        """Don't keep a job's entry in memory: it is not needed, or not the job's entry any more."""
        entry = self._entries.pop(number, None)
        if entry is not None:
            self.cached -= len(entry)

    def add_error(self, row: Row, job: LiveJob) -> None:
        """Complete a job by its last error, read back from the event it stands in, if it stands in one."""
        if (pending := self._errors.get(job.number)) is not None:
            self._set_error(job, pending[1])
        elif place := row.chunk.error[row.at]:
            self._read_error(job, place)

    def _read_error(self, job: LiveJob, place: int) -> None:
        self._set_error(job, event_options.decode(record.decode_event(self.read(place)).options))

    @staticmethod
    def _set_error(job: LiveJob, options: EventOptions) -> None:
        job.error = options.error or job.error
        job.leased = job.leased or options.leased

    def unreadable(self, row: Row, damage: Exception) -> LiveJob:
        """A job whose entry does not read back, buried, with what its row tells of it."""
        job = self.index.leased.get(row.chunk.number[row.at]) or self._of_row(row)
        error = self._damage_error(damage)
        if job.state is BURIED:
            job.error = error
        else:
            same = {"attempt": job.attempt, "prio": job.prio, "deaths": job.deaths}
            self.index.move(job, Event.BURY, due=self.now(), delayed=False, error=error, outcome="", **same)
        return job

    def bury_unreadable(self, row: Row, damage: Exception) -> None:
        """A payload that does not read back is never handed out, and its job is not lost silently (G6).

        Nobody waits for the sync: :meth:`reserve` must not pause while it holds jobs that are neither queued
        nor leased, and a crash that takes this back only makes the next one find the damage again.
        """
        sequence = self.journal.next_sequence
        job = self.unreadable(row, damage)
        options = EventOptions(error=job.error)
        self._note_error(job.number, sequence, options)
        text = msgspec.json.encode(options)
        self.submit([self.event(Event.BURY, sequence, job, self.now(), job.due, text)])

    # -- changes --------------------------------------------------------------------------------

    @staticmethod
    def event(kind: int, sequence: int, job: LiveJob, now: int, due: int, options: bytes = b"") -> bytes:
        """An event entry with the job's values as they are now."""
        return record.encode_event(
            kind, sequence, 0, job.number, now, due, job.nonce, job.attempt, job.prio, job.deaths, options
        )

    def move(
        self,
        job: LiveJob,
        event: Event,
        sequence: int,
        now: int,
        *,
        due: int | None = None,
        attempt: int | None = None,
        prio: int | None = None,
        deaths: int | None = None,
        error: dict[str, Any] | None = None,
        outcome: str = "",
    ) -> bytes:
        """Apply an event to the index and return its entry; values not given stay as they are.

        A unique job that can't come back to wait is buried instead, and so is its entry.
        """
        nonce = job.nonce
        due = now if due is None else due
        if self.index.unique and event in _COMES_BACK and (other := self.index.unique.other(job.number)):
            event, due, error = Event.BURY, now, self._not_unique(other, error or job.error, now)
        options = EventOptions(outcome=outcome, error=error, leased=job.leased if error else 0)
        if error is not None:
            self._note_error(job.number, sequence, options)
        self.index.move(
            job,
            event,
            due=due,
            delayed=due > now,
            attempt=job.attempt if attempt is None else attempt,
            prio=job.prio if prio is None else prio,
            deaths=job.deaths if deaths is None else deaths,
            error=error,
            outcome=outcome,
        )
        if self.watchers:
            self.happened(_TOLD_AS[event], job)
        text = msgspec.json.encode(options) if outcome or error else b""
        return record.encode_event(
            event, sequence, 0, job.number, now, due, nonce, job.attempt, job.prio, job.deaths, text
        )

    def _not_unique(self, other: int, last: dict[str, Any] | None, now: int) -> dict[str, Any]:
        """The error of a job that would wait again beside another one with its unique key."""
        message = f"{self.named(other)} has the same unique key and stands, so this one can't wait again"
        if last is None:
            return error_of(message, now, "unique")
        message += f"; its last error: {last['message']}"
        return error_of(Reason(message, "unique", last.get("traceback")), now, "unique")

    def named(self, number: int) -> str:
        """A job, in a message. The id of one that is not durable yet must not be out before it is (G8)."""
        if self.index.table.row(number) is None:
            return "a job that is being inserted"
        return f"job {self.id_of(number)}"

    def finish(self, job: LiveJob, event: Event, now: int, outcome: str, said: str = "") -> None:
        """A job ends: acked, deleted or cancelled; its entry is the caller's."""
        self.forget_entry(job.number)
        self.index.finish(job, event, now, outcome, said)
        if self.watchers:
            self.happened("done" if outcome == "ok" else outcome, job)

    async def append(self, parts: list[bytes], ready: Collection[str] = ()) -> None:
        """Journal entries whose sequences count up from ``next_sequence``; returns when durable.

        Args:
            parts: the entries.
            ready: types to tell of.
        """
        if not parts:
            return
        done = self.submit(parts)
        if ready:
            self.notify(list(ready))
        await done

    def submit(self, parts: list[bytes]) -> asyncio.Future[Location]:
        """Journal entries; when they are durable, tell who wants to know where they are or what happened."""
        first = self.journal.take_sequences(len(parts))
        self.tell_reopened()
        if not (self._placing or self._events):
            return self.journal.append(parts, first)
        placing, self._placing = self._placing, []
        events, self._events = self._events, []
        sizes = list(map(len, parts))

        def durable(location: Location) -> None:
            places = list(accumulate(sizes, initial=location.segment << 32 | location.offset))
            for sequence, placed in placing:
                placed(places[sequence - first])
            deliver(events)

        return self.journal.append(parts, first, durable)

    def tell_reopened(self) -> None:
        """Tell of the types that a limit let go."""
        if reopened := self.index.scheduler.reopened:
            self.notify(list(reopened))
            reopened.clear()

    def when_placed(self, sequence: int, placed: Callable[[int], None]) -> None:
        """Have a function told the place of the entry with this sequence, which is submitted next."""
        self._placing.append((sequence, placed))

    def _note_error(self, number: int, sequence: int, options: EventOptions) -> None:
        """A job's new last error, which the entry with this sequence holds, once that is submitted."""
        self._errors[number] = (sequence, options)

        def placed(place: int) -> None:
            row = self.index.table.row(number)
            if row is not None:
                row.chunk.error[row.at] = place
            if self._errors.get(number, (0,))[0] == sequence:
                del self._errors[number]

        self.when_placed(sequence, placed)

    # -- events ---------------------------------------------------------------------------------

    def happened(self, event: str, job: LiveJob) -> None:
        """Have watchers told when what is submitted next is durable."""
        if listeners := self.watchers.of(job.number, job.type):
            self._events.append((listeners, self._event_of(event, job)))

    def happened_now(self, event: str, jobs: Iterable[LiveJob]) -> None:
        """Tell watchers of what need not be durable, or is."""
        for job in jobs:
            if listeners := self.watchers.of(job.number, job.type):
                deliver([(listeners, self._event_of(event, job))])

    def _event_of(self, event: str, job: LiveJob) -> JobEvent:
        return JobEvent(event, self.now(), shown(job, self.id_of(job.number)))
