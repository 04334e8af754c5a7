"""The embedded engine: an index over the journal, in one process, no other server.

Accepting is: encode, journal, wait for the sync, then into the index. A job is in nobody's sight before it
is durable, so no id or receipt of it can be out when a crash takes it back (G8). Ending a lease is: into the
index at once, so that the receipt counts only once (G4), journal, wait for the sync, reply (G1). A crash
between restores the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate, islice
from typing import Any

import msgspec

from ...core import record
from ...core.job import NO_OPTIONS, PRIO_NUMBER, SECOND, NewJob
from ...core.lifecycle import Event, State
from ...core.outcome import Reason, Settlement
from ...core.record import FLAG_BINARY, FLAG_LOCAL, Damaged, Newer
from ...core.retry import RetryPolicy, attempts_left, retry_delay
from ...errors import Busy, Conflict, DamagedJournal, DiskFull, Internal, NotFound, ShuttingDown
from ...journal.log import Journal, Location
from ...journal.recovery import Apply
from ...ports import BulkStore, Clock, Expired, Inserted, Lease, Refusal
from .accept import Batch
from .compaction import Compactor
from .index import BURIED, DONE, READY, RESERVED, Finished, Index
from .job import LiveJob, load, receipt_of
from .keys import KEY_BYTES, KeyIndex
from .replay import EventOptions, Replay, event_options
from .show import iso, shown
from .table import Row

#: A job that killed its worker this often is buried.
POISON_DEATHS = 3
#: Bytes of payload kept in memory; what is over it is read back from the segments.
PAYLOAD_WINDOW = 64 * 1024 * 1024
#: Bytes of everything an engine keeps in memory; inserts are refused beyond it.
MEMORY_LIMIT = 1 << 30
#: How long idempotency keys are remembered, seconds, and how many at most.
KEY_WINDOW, KEY_CAP = 86_400.0, 500_000
#: Most jobs looked at by one ``jobs`` call between two turns of the loop.
_SCAN = 20_000
#: Bytes of journal that must stay free for each live job: its ack or delete, and one more lease.
_RESERVE = 160
#: How often a full disk is asked again, microseconds.
_RESERVE_EVERY = SECOND // 2
_DEFAULT_RETRY = RetryPolicy()
_CONTROL = {"kick": Event.KICK, "bury": Event.BURY, "delete": Event.DELETE}


class EmbeddedEngine:
    """See :class:`kqs.ports.Engine`.

    Args:
        open_journal: opens the journal, replaying its frames into the callback it is given.
        clock: time.
        random: draws from [0, 1), for jitter.
        nonce: draws 40 random bits, for receipts.
        bulk: where oversize payloads of its jobs lie; told when they are not needed any more.
        payload_window: bytes of payload kept in memory.
        memory_limit: bytes of everything kept in memory, estimated; inserts get ``busy`` beyond it.
        key_window: seconds an idempotency key is remembered.
        key_cap: most idempotency keys remembered.
    """

    name = "embedded"
    capabilities = frozenset({"inspect", "idempotency"})

    def __init__(
        self,
        open_journal: Callable[[Apply], Journal],
        clock: Clock,
        *,
        random: Callable[[], float],
        nonce: Callable[[int], int],
        bulk: BulkStore | None = None,
        payload_window: int = PAYLOAD_WINDOW,
        memory_limit: int = MEMORY_LIMIT,
        key_window: float = KEY_WINDOW,
        key_cap: int = KEY_CAP,
    ) -> None:
        self._clock = clock
        self._random = random
        self._nonce = nonce
        self._bulk = bulk
        self._window = payload_window
        self._memory_limit = memory_limit
        self._entries: dict[int, bytes] = {}
        self._cached = 0
        self.index = Index()
        self.keys = KeyIndex(key_window, key_cap)
        self._errors: dict[int, tuple[int, EventOptions]] = {}
        self._failed: list[tuple[int, int]] = []
        self._keys_pending: dict[str, asyncio.Future[int]] = {}
        self._notify: Callable[[Sequence[str]], None] = lambda types: None
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False
        self._held_back = False
        self._reserved_at = 0
        replay = Replay(self.index, self.keys)
        self.journal = open_journal(replay.frame)
        replay.finish(self._read)
        self.keys.settle(clock.now())
        self._prefix = f"{self.journal.journal_id[:8]}-"
        self._epoch = self.journal.epoch << 40
        self._compactor = Compactor(self)
        self._reserve()
        self.index.release_due(clock.now())
        self._release_local()

    def now(self) -> int:
        """The clock's time, microseconds since 1970."""
        return self._clock.now()

    def on_ready(self, notify: Callable[[Sequence[str]], None]) -> None:
        self._notify = notify

    # -- accepting ------------------------------------------------------------------------------

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        await self._make_room()
        self._admit()
        if any(job.options.key is not None for job in jobs):
            return await self._put_keyed(jobs)
        first = await self._put(jobs)
        prefix = self._prefix
        return Inserted([f"{prefix}{number}" for number in range(first, first + len(jobs))])

    async def _make_room(self) -> None:
        """Wait for the next spare segment when space is short, rather than refuse at once."""
        if not self.journal.accepting:
            self._reserve()
            await self.journal.make_room()

    def _admit(self) -> None:
        """Refuse what there is no room for, before anything is done."""
        if self._closing:
            raise ShuttingDown("the server is shutting down; insert at another one or later")
        if not self.journal.accepting:
            raise DiskFull("the disk is full: no new jobs until space is free; jobs still run and finish")
        if self.memory >= self._memory_limit:
            raise Busy(
                f"the backlog fills the memory limit of {self._memory_limit} bytes; try again when jobs are "
                f"done, or raise memory_limit"
            )

    @property
    def memory(self) -> int:
        """Estimated bytes kept in memory because of jobs."""
        return self.index.memory + self._cached + len(self.keys) * KEY_BYTES

    async def _put(self, jobs: Sequence[NewJob]) -> int:
        """Journal new jobs; when they are durable, into the index. Returns the first one's number."""
        first = self.journal.take_sequences(len(jobs))
        batch = Batch(jobs, first, self._clock.now(), self.index)
        if not self.journal.has_room_for(batch.size):
            raise DiskFull("the disk has no room for a batch of this size")

        def enter(location: Location) -> None:
            batch.enter(self.keys, location)
            self._keep(first, batch)
            if batch.ready:
                self._notify(list(batch.ready))

        await self.journal.append(batch.entries, first, enter)
        return first

    def _keep(self, first: int, batch: Batch) -> None:
        """Keep entries in memory while the window has room: they are likely to be leased next."""
        room = self._window - self._cached
        if batch.size <= room:
            self._entries.update(zip(range(first, first + len(batch.entries)), batch.entries, strict=True))
            self._cached += batch.size
            return
        for number, entry in enumerate(batch.entries, first):
            room -= len(entry)
            if room < 0:
                break
            self._entries[number] = entry
            self._cached += len(entry)

    async def _put_keyed(self, jobs: Sequence[NewJob]) -> Inserted:
        """Insert the jobs whose key is new; the others get the id of the job that used theirs first."""
        now = self._clock.now()
        numbers: list[int | asyncio.Future[int]] = []
        fresh: list[NewJob] = []
        own: list[tuple[str, asyncio.Future[int]]] = []
        duplicates: list[int] = []
        for position, job in enumerate(jobs):
            key = job.options.key
            known = None if key is None else self._keys_pending.get(key) or self.keys.find(key, now)
            if known is not None:
                duplicates.append(position)
                numbers.append(known)
                continue
            number: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            own.append((key or "", number))
            if key is not None:
                self._keys_pending[key] = number
            fresh.append(job)
            numbers.append(number)
        await self._put_fresh(fresh, own)
        ids = [f"{self._prefix}{number if isinstance(number, int) else await number}" for number in numbers]
        return Inserted(ids, tuple(duplicates))

    async def _put_fresh(self, jobs: list[NewJob], own: list[tuple[str, asyncio.Future[int]]]) -> None:
        """Insert jobs and tell their numbers to who waits for them, the same key's later callers too."""
        try:
            first = await self._put(jobs) if jobs else 0
        except BaseException as error:
            for _key, number in own:
                number.set_exception(error)
                number.exception()
            raise
        else:
            for value, (_key, number) in enumerate(own, first):
                number.set_result(value)
        finally:
            for key, _number in own:
                self._keys_pending.pop(key, None)

    # -- leasing --------------------------------------------------------------------------------

    async def reserve(
        self, types: Collection[str], limit: int, *, holder: str, local: bool = False
    ) -> list[Lease]:
        if self._closing:
            return []
        await self._make_room()
        if not self.journal.has_reserve:
            self._held_back = True
            return []
        index, journal = self.index, self.journal
        jobs: list[tuple[LiveJob, bytes]] = []
        for number in index.take(types, limit):
            row = index.row(number)
            try:
                loaded = index.load(row, self.entry(row, keep=False))
                jobs.append((loaded.job, loaded.payload))
            except (DamagedJournal, Damaged, Newer) as damage:
                self._bury_unreadable(row, damage)
        if not jobs:
            return []
        now = self._clock.now()
        options = msgspec.json.encode(EventOptions(holder=holder))
        flags = FLAG_LOCAL if local else 0
        parts: list[bytes] = []
        leases: list[Lease] = []
        first = sequence = journal.take_sequences(len(jobs))
        for job, payload in jobs:
            attempt = job.attempt + 1
            nonce = self._epoch | self._nonce(40)
            expires = now + job.ttr * 1000
            index.lease(job, now, attempt, nonce, expires, holder, local)
            parts.append(
                record.encode_event(
                    record.LEASE,
                    sequence,
                    flags,
                    job.number,
                    now,
                    expires,
                    nonce,
                    attempt,
                    job.prio,
                    job.deaths,
                    options,
                )
            )
            sequence += 1
            leases.append(
                Lease(
                    receipt_of(job),
                    f"{self._prefix}{job.number}",
                    job.type,
                    attempt,
                    job.prio,
                    job.ttr / 1000,
                    payload,
                    bool(job.flags & FLAG_BINARY),
                    job.options.bulk,
                    job.inserted,
                    expires,
                )
            )
        journal.append_unwaited(parts, first)
        return leases

    def _bury_unreadable(self, row: Row, damage: Exception) -> None:
        """A payload that does not read back is never handed out, and its job is not lost silently (G6).

        Nobody waits for the sync: :meth:`reserve` must not pause while it holds jobs that are neither queued
        nor leased, and a crash that takes this back only makes the next one find the damage again.
        """
        sequence = self.journal.next_sequence
        job = self.unreadable(row, damage)
        options = EventOptions(error=job.error)
        self._note_error(job.number, sequence, options)
        text = msgspec.json.encode(options)
        self._submit([self._event(Event.BURY, sequence, job, self._clock.now(), job.due, text)])

    def unreadable(self, row: Row, damage: Exception) -> LiveJob:
        """A job whose entry does not read back, buried, with what its row tells of it."""
        chunk, at = row
        number, index = chunk.number[at], self.index
        job = index.leased.get(number) or LiveJob(
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
            NO_OPTIONS,
            chunk.attempt[at],
            chunk.deaths[at],
        )
        now = self._clock.now()
        error = _error(Reason(str(damage), "damaged"), now, "damaged")
        if job.state is BURIED:
            job.error = error
        else:
            same = {"attempt": job.attempt, "prio": job.prio, "deaths": job.deaths}
            index.move(job, Event.BURY, due=now, delayed=False, error=error, outcome="", **same)
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
            entry = self._read(place, chunk.size[at])
            if not keep:
                self.journal.read_ahead(place >> 32, (place & 0xFFFFFFFF) + len(entry))
        elif not keep:
            self._forget_entry(number)
        return entry

    def _read(self, place: int, size: int | None = None) -> bytes:
        return self.journal.read(place >> 32, place & 0xFFFFFFFF, size)

    def _forget_entry(self, number: int) -> None:
        entry = self._entries.pop(number, None)
        if entry is not None:
            self._cached -= len(entry)

    def add_error(self, row: Row, job: LiveJob) -> None:
        """Complete a job by its last error, read back from the event it stands in, if it stands in one."""
        if (pending := self._errors.get(job.number)) is not None:
            options = pending[1]
        elif place := row.chunk.error[row.at]:
            options = event_options.decode(record.decode_event(self._read(place)).options)
        else:
            return
        job.error = options.error or job.error
        job.leased = job.leased or options.leased

    async def renew(self, receipts: Sequence[str], progress: dict[str, Any] | None = None) -> list[bool]:
        index, journal = self.index, self.journal
        now = self._clock.now()
        jobs = [index.leases.get(receipt) for receipt in receipts]
        current = [job for job in jobs if job is not None]
        if current:
            first = sequence = journal.take_sequences(len(current))
            parts = []
            for job in current:
                index.renew(job, now + job.ttr * 1000)
                if progress is not None:
                    job.progress = progress
                parts.append(self._event(record.RENEW, sequence, job, now, job.expires))
                sequence += 1
            journal.append_unwaited(parts, first)
        return [job is not None for job in jobs]

    @staticmethod
    def _event(kind: int, sequence: int, job: LiveJob, now: int, due: int, options: bytes = b"") -> bytes:
        """An event entry with the job's values as they are now."""
        return record.encode_event(
            kind, sequence, 0, job.number, now, due, job.nonce, job.attempt, job.prio, job.deaths, options
        )

    # -- settling -------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> list[Refusal]:
        await self._make_room()
        refused: list[Refusal] = []
        parts: list[bytes] = []
        index, journal = self.index, self.journal
        leases = index.leases
        now = self._clock.now()
        first = journal.next_sequence
        ready: dict[str, None] = {}
        repeated = False
        for position, settlement in enumerate(settlements):
            job = leases.get(settlement.receipt)
            if job is None:
                # The same settlement again, after a lost reply, is fine: it was done (G2).
                if index.settled.get(settlement.receipt) == settlement.outcome:
                    repeated = True
                else:
                    refused.append(Refusal(position, "stale_receipt"))
                continue
            outcome = settlement.outcome
            if outcome == "ok":
                parts.append(self._event(4, first + len(parts), job, now, now, _OK))
                self._finish(job, Event.ACK, now, "ok")
            elif outcome == "again" and not journal.accepting:
                refused.append(Refusal(position, "disk_full"))  # a retry frees nothing
            else:
                parts.append(self._unfinished(job, settlement, first + len(parts), now))
                if job.state is READY:
                    ready[job.type] = None
        if parts:
            await self._append(parts, ready)
        elif repeated:
            await journal.sync()  # it may have come before the first one's sync
        return refused

    def _finish(self, job: LiveJob, event: Event, now: int, outcome: str) -> None:
        self._forget_entry(job.number)
        self.index.finish(job, event, now, outcome)
        if job.options.bulk is not None and self._bulk is not None:
            self._spawn(self._delete_bulk(job))
        if not self.index.in_segment[job.place >> 32]:
            self._compactor.poke()

    async def _delete_bulk(self, job: LiveJob) -> None:
        """Delete a payload once the end of its job is durable."""
        await self.journal.sync()
        if job.options.bulk is not None and self._bulk is not None:
            await self._bulk.delete([job.options.bulk])

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _unfinished(self, job: LiveJob, settlement: Settlement, sequence: int, now: int) -> bytes:
        """Decide and apply what follows an attempt that did not succeed; returns the entry."""
        outcome, options = settlement.outcome, job.options
        prio = job.prio if settlement.prio is None else PRIO_NUMBER[settlement.prio]
        if outcome == "release":
            due = now + int((settlement.delay or 0) * SECOND)
            return self._move(
                job,
                Event.RELEASE,
                sequence,
                now,
                due=due,
                attempt=job.attempt - 1,
                prio=prio,
                outcome=outcome,
            )
        error = _error(settlement.reason, now, "fail" if outcome == "fail" else "again")
        if outcome == "again" and attempts_left(options.max_attempts, job.attempt):
            return self._move(
                job,
                Event.RETRY,
                sequence,
                now,
                due=now + self._retry_delay(job, settlement.delay),
                prio=prio,
                error=error,
                outcome=outcome,
            )
        if outcome == "again":
            error["message"] = f"attempt {job.attempt} of {options.max_attempts} failed: {error['message']}"
        return self._move(job, Event.BURY, sequence, now, error=error, outcome=outcome)

    def _retry_delay(self, job: LiveJob, delay: float | None) -> int:
        if delay is None:
            policy = job.options.retry or _DEFAULT_RETRY
            delay = retry_delay(policy, job.attempt, self._random())
        return int(delay * SECOND)

    def _move(
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
        """Apply an event to the index and return its entry; values not given stay as they are."""
        nonce = job.nonce
        due = now if due is None else due
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
        text = msgspec.json.encode(options) if outcome or error else b""
        return record.encode_event(
            event, sequence, 0, job.number, now, due, nonce, job.attempt, job.prio, job.deaths, text
        )

    async def rescue(self, receipts: Sequence[str], *, died: bool = False, reason: str = "") -> None:
        parts: list[bytes] = []
        first, now = self.journal.next_sequence, self._clock.now()
        ready: dict[str, None] = {}
        for receipt in receipts:
            job = self.index.leases.get(receipt)
            if job is None:
                continue
            sequence = first + len(parts)
            deaths = job.deaths + 1 if died else job.deaths
            error = _error(Reason(reason, "worker_died" if died else "ttr"), now, "again")
            if deaths >= POISON_DEATHS and died:
                error["message"] = f"buried as poison after {deaths} worker deaths: {reason}"
                parts.append(self._move(job, Event.BURY, sequence, now, deaths=deaths, error=error))
            elif not attempts_left(job.options.max_attempts, job.attempt):
                parts.append(self._move(job, Event.BURY, sequence, now, deaths=deaths, error=error))
            else:
                due = now + self._retry_delay(job, None) if died else now
                parts.append(
                    self._move(job, Event.RESCUE, sequence, now, due=due, deaths=deaths, error=error)
                )
                ready[job.type] = None
        await self._append(parts, ready)

    async def _append(self, parts: list[bytes], ready: Collection[str] = ()) -> None:
        """Journal entries whose sequences count up from ``next_sequence``; returns when durable.

        Args:
            parts: the entries.
            ready: types to tell of.
        """
        if not parts:
            return
        done = self._submit(parts)
        if ready:
            self._notify(list(ready))
        await done

    def _submit(self, parts: list[bytes]) -> asyncio.Future[Location]:
        """Journal entries; where the errors among them stand is noted when that is known."""
        first = self.journal.take_sequences(len(parts))
        if not self._failed:
            return self.journal.append(parts, first)
        failed, self._failed = self._failed, []
        sizes = list(map(len, parts))

        def place_errors(location: Location) -> None:
            places = list(accumulate(sizes, initial=location.segment << 32 | location.offset))
            for number, sequence in failed:
                row = self.index.table.row(number)
                if row is not None:
                    row.chunk.error[row.at] = places[sequence - first]
                if self._errors.get(number, (0,))[0] == sequence:
                    del self._errors[number]

        return self.journal.append(parts, first, place_errors)

    def _note_error(self, number: int, sequence: int, options: EventOptions) -> None:
        """A job's new last error, which the entry with this sequence holds, once that is submitted."""
        self._errors[number] = (sequence, options)
        self._failed.append((number, sequence))

    def _release_local(self) -> None:
        """After a restart: workers that died with the server hold nothing any more."""
        now = self._clock.now()
        parts = [
            self._move(
                job,
                Event.RELEASE,
                self.journal.next_sequence + position,
                now,
                attempt=job.attempt - 1,
            )
            for position, job in enumerate([job for job in self.index.leases.values() if job.local])
        ]
        if parts:
            self.journal.append_unwaited(parts, self.journal.take_sequences(len(parts)))

    def held_by(self, holder: str) -> list[str]:
        return list(self.index.held_by(holder))

    # -- control and inspection -----------------------------------------------------------------

    def _find(self, id: str) -> LiveJob:
        """The job with an id, live or finished lately.

        Raises:
            NotFound: there is none.
            DamagedJournal: its entry does not read back.
        """
        prefix, _, text = id.rpartition("-")
        if f"{prefix}-" == self._prefix and text.isascii() and text.isdigit() and len(text) < 20:
            number = int(text)
            if (row := self.index.table.row(number)) is not None:
                return self._job(row)
            if (ended := self._ended(self.index.history.get(number))) is not None:
                return ended
        raise NotFound(f"no job {id!r} here; finished jobs are forgotten after a while", field="id")

    def _job(self, row: Row) -> LiveJob:
        """A live job with all that is shown of it."""
        job = self.index.leased.get(row.chunk.number[row.at])
        if job is None:
            try:
                job = self.index.load(row, self.entry(row)).job
            except (Damaged, Newer) as damage:
                raise Internal(f"job {row.chunk.number[row.at]}: {damage}") from None
        self.add_error(row, job)
        return job

    def _ended(self, found: LiveJob | Finished | None) -> LiveJob | None:
        """A finished job; one that ended before the last start is loaded while its segment is there."""
        if not isinstance(found, Finished):
            return found
        if found.place >> 32 < self.journal.oldest_segment:
            return None
        job = load(self._read(found.place, found.size), found.place).job
        event = found.event
        job.state, job.finished, job.attempt = State.DONE, event.at, event.attempt
        job.prio, job.deaths = event.prio, event.deaths
        job.outcome = event_options.decode(event.options or b"{}").outcome
        return job

    async def control(self, verb: str, ids: Sequence[str]) -> int:
        event = _CONTROL[verb]
        jobs = list({job.number: job for job in map(self._find, ids)}.values())
        for job in jobs:
            if job.state is DONE:
                raise Conflict(f"job {self._prefix}{job.number} is done already", field="id")
            if (verb == "kick" and job.state in (READY, RESERVED)) or (
                verb == "bury" and job.state is BURIED
            ):
                raise Conflict(f"a {job.state.name.lower()} job can't be {verb}ed", field="id")
        now = self._clock.now()
        parts: list[bytes] = []
        ready: dict[str, None] = {}
        first = self.journal.next_sequence
        for job in jobs:
            if event is Event.DELETE:
                options = msgspec.json.encode(EventOptions(outcome="deleted"))
                parts.append(self._event(event, first + len(parts), job, now, now, options))
                self._finish(job, event, now, "deleted")
            else:
                error = _error("buried by hand", now, "bury") if event is Event.BURY else None
                parts.append(self._move(job, event, first + len(parts), now, error=error))
                ready[job.type] = None
        await self._append(parts, ready)
        return len(jobs)

    async def job(self, id: str, *, data: bool = False) -> dict[str, Any]:
        job = self._find(id)
        payload = None
        if data and job.state is not DONE:
            bulk = job.options.bulk
            if bulk is None:
                payload = load(self.entry(self.index.row(job.number)), job.place).payload
            elif self._bulk is not None:
                payload = await self._bulk.get(bulk)
        return shown(job, f"{self._prefix}{job.number}", payload)

    async def jobs(
        self, *, state: str | None, type: str | None, limit: int, after: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        start = self._number_after(after)
        if state == "done":
            return self._done_jobs(start, type, limit)
        found: list[LiveJob] = []
        wanted = None if state is None else State[state.upper()]
        while True:
            rows = list(islice(self.index.table.rows(start), _SCAN))
            for row in rows:
                if (wanted is None or self.index.state_of(row) is wanted) and (
                    type is None or self.index.type_of(row) == type
                ):
                    if len(found) == limit:
                        return self._page(found), f"{self._prefix}{found[-1].number}"
                    found.append(self._job(row))
            if len(rows) < _SCAN:
                return self._page(found), None
            start = rows[-1].chunk.number[rows[-1].at] + 1
            await asyncio.sleep(0)  # a sparse page must not hold up everybody else

    def _done_jobs(self, start: int, type: str | None, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        latest = {found.number: found for found in self.index.history.values()}
        numbers = sorted(number for number in latest if number >= start)
        found: list[LiveJob] = []
        for number in numbers:
            job = self._ended(latest[number])
            if job is not None and (type is None or job.type == type):
                if len(found) == limit:
                    return self._page(found), f"{self._prefix}{found[-1].number}"
                found.append(job)
        return self._page(found), None

    def _page(self, jobs: list[LiveJob]) -> list[dict[str, Any]]:
        return [shown(job, f"{self._prefix}{job.number}") for job in jobs]

    def _number_after(self, after: str | None) -> int:
        if after is None:
            return 0
        prefix, _, number = after.rpartition("-")
        if f"{prefix}-" != self._prefix or not (number.isascii() and number.isdigit() and len(number) < 20):
            raise NotFound(f"after: {after!r} is no id of this server", field="after")
        return int(number) + 1

    def stats(self, type: str | None = None) -> dict[str, Any]:
        names = ("delayed", "ready", "reserved", "buried", "done")
        counts = self.index.counts
        types = {
            name: dict(zip(names, values[1:], strict=True))
            for name, values in counts.items()
            if type is None or name == type
        }
        totals = dict.fromkeys(names, 0)
        for values in types.values():
            for name in names:
                totals[name] += values[name]
        oldest = self.index.oldest_ready()
        age = None if oldest is None else max(0, self._clock.now() - oldest.chunk.due[oldest.at]) / SECOND
        return {
            "jobs": totals,
            "types": types,
            "oldest_ready_age": age,
            "journal": self.journal.stats(),
            "memory": {"bytes": self.memory, "limit": self._memory_limit, "payload_bytes": self._cached},
            "keys": len(self.keys),
        }

    def bulk_names(self) -> set[str]:
        """Names of all payloads in the bulk store that live jobs refer to."""
        return {ref.name for ref in self.index.bulk.values()}

    @property
    def longest_ttr(self) -> float:
        """The longest ttr of the leases that are out, seconds; 0 when none is."""
        return max((job.ttr for job in self.index.leases.values()), default=0) / 1000

    def ready_types(self) -> dict[str, int]:
        """How many jobs are ready, by type, of the types that have any."""
        return {name: counts[READY] for name, counts in self.index.counts.items() if counts[READY]}

    # -- time -----------------------------------------------------------------------------------

    def tick(self) -> list[Expired]:
        now = self._clock.now()
        released = self.index.release_due(now)
        if released:
            self._notify(released)
        self._reserve()
        self._compactor.poke()
        return [
            Expired(receipt_of(job), f"{self._prefix}{job.number}", job.holder, job.ttr / 1000)
            for job in self.index.pop_expired(now)
        ]

    def next_wake(self) -> int | None:
        return self.index.next_wake()

    def _reserve(self) -> None:
        """Keep space for the ends of all live jobs free (DESIGN section 5, rule 6)."""
        now = self._clock.now()
        retry = now - self._reserved_at >= _RESERVE_EVERY
        if retry:
            self._reserved_at = now
        self.journal.reserve(len(self.index.table) * _RESERVE, retry=retry)
        if self._held_back and self.journal.has_reserve:
            self._held_back = False
            self._notify(list(self.ready_types()))

    async def close(self) -> None:
        self._closing = True
        await self._compactor.stop()
        if self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        await self.journal.close()


_OK = msgspec.json.encode(EventOptions(outcome="ok"))


def _error(reason: str | Reason | None, now: int, kind: str) -> dict[str, Any]:
    """A job's last error as shown.

    Ensures: it can be written as JSON and fits an entry's options (65,535 bytes) even if JSON escapes every
    character, which takes 6 bytes each.
    """
    if not isinstance(reason, Reason):
        reason = Reason(reason or kind, kind)
    error: dict[str, Any] = {
        "message": _unicode(reason.message[:4000]),
        "kind": _unicode((reason.kind or kind)[:200]),
        "at": iso(now),
    }
    if reason.traceback:
        error["traceback"] = _unicode(reason.traceback[-6000:])
    return error


def _unicode(text: str) -> str:
    """The text without lone surrogates, which file names in exceptions may have."""
    return text.encode("utf-8", "replace").decode()
