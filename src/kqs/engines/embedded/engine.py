"""The embedded engine: an index over the journal, in one process, no other server.

Accepting is: encode, journal, wait for the sync, then into the index. A job is in nobody's sight before it
is durable, so no id or receipt of it can be out when a crash takes it back (G8). Ending a lease is: into the
index at once, so that the receipt counts only once (G4), journal, wait for the sync, reply (G1). A crash
between restores the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from ...core import record
from ...core.job import NO_OPTIONS, PRIO_NUMBER, SECOND, NewJob
from ...core.lifecycle import Event, State
from ...core.outcome import Reason, Settlement
from ...core.record import FLAG_BINARY, FLAG_BULK, FLAG_LOCAL
from ...core.retry import RetryPolicy, attempts_left, retry_delay
from ...errors import Conflict, DamagedJournal, DiskFull, NotFound, ShuttingDown
from ...journal.log import Journal
from ...journal.recovery import Apply
from ...ports import BulkStore, Clock, Expired, Inserted, Lease, Refusal
from .index import BURIED, READY, RESERVED, Index, LiveJob, receipt_of
from .replay import EventOptions, Replay
from .show import iso, shown

#: A job that killed its worker this often is buried.
POISON_DEATHS = 3
#: Bytes of payload kept in memory; what is over it is read back from the segments.
PAYLOAD_WINDOW = 64 * 1024 * 1024
#: Most jobs looked at by one ``jobs`` call between two turns of the loop.
_SCAN = 50_000
_DEFAULT_RETRY = RetryPolicy()
_CONTROL = {"kick": Event.KICK, "bury": Event.BURY, "delete": Event.DELETE}


class EmbeddedEngine:
    """See :class:`kqs.ports.Engine`.

    Args:
        open_journal: opens the journal, replaying its entries into the callback it is given.
        clock: time.
        random: draws from [0, 1), for jitter.
        nonce: draws 40 random bits, for receipts.
        bulk: where oversize payloads of its jobs lie; told when they are not needed any more.
        payload_window: bytes of payload kept in memory.
    """

    name = "embedded"
    capabilities = frozenset({"inspect"})

    def __init__(
        self,
        open_journal: Callable[[Apply], Journal],
        clock: Clock,
        *,
        random: Callable[[], float],
        nonce: Callable[[int], int],
        bulk: BulkStore | None = None,
        payload_window: int = PAYLOAD_WINDOW,
    ) -> None:
        self._clock = clock
        self._random = random
        self._nonce = nonce
        self._bulk = bulk
        self._window = payload_window
        self._cached = 0
        self._index = Index()
        self._notify: Callable[[Sequence[str]], None] = lambda types: None
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False
        replay = Replay(self._index, payload_window)
        self.journal = open_journal(replay.apply)
        self._cached = sum(job.size for job in self._index.live.values() if job.entry is not None)
        self._prefix = f"{self.journal.journal_id[:8]}-"
        self._epoch = self.journal.epoch << 40
        self._reclaim()
        self._index.release_due(clock.now())
        self._release_local()

    def on_ready(self, notify: Callable[[Sequence[str]], None]) -> None:
        self._notify = notify

    # -- accepting ------------------------------------------------------------------------------

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        journal = self.journal
        if self._closing:
            raise ShuttingDown("the server is shutting down; insert at another one or later")
        if not journal.accepting:
            journal.retry_spare()
            raise DiskFull("the disk is full: no new jobs until space is free; jobs still run and finish")
        first = journal.take_sequences(len(jobs))
        now = self._clock.now()
        parts: list[bytes] = []
        add = parts.append
        encode = record.encode_accept
        accepts: list[tuple[NewJob, bytes, int]] = []
        sequence = first
        for job in jobs:
            flags = FLAG_BINARY if job.binary else 0
            options = b""
            if job.options is not NO_OPTIONS:
                options = msgspec.json.encode(job.options)
                if job.options.bulk is not None:
                    flags |= FLAG_BULK
            type_ = job.type.encode()
            entry = encode(sequence, flags, now, now + job.delay, job.ttr, job.prio, type_, options, job.data)
            add(entry)
            accepts.append((job, entry, record.ACCEPT_FIXED + len(type_) + len(options)))
            sequence += 1
        segment, offset = await journal.append(parts, first)
        self._add(accepts, first, now, segment, offset)
        prefix = self._prefix
        return Inserted([f"{prefix}{number}" for number in range(first, sequence)])

    def _add(
        self, accepts: list[tuple[NewJob, bytes, int]], number: int, now: int, segment: int, offset: int
    ) -> None:
        """Put durable jobs into the index and tell who waits for them."""
        index_add = self._index.add
        ready: dict[str, None] = {}
        room = self._window - self._cached
        for job, entry, data_start in accepts:
            size = len(entry)
            kept = entry if size <= room else None
            if kept is not None:
                room -= size
            delay = job.delay
            if not delay:
                ready[job.type] = None
            index_add(
                LiveJob(
                    number,
                    job.type,
                    State.DELAYED if delay else READY,
                    job.prio,
                    FLAG_BINARY if job.binary else 0,
                    now,
                    now + delay,
                    job.ttr,
                    segment,
                    offset,
                    size,
                    data_start,
                    kept,
                    job.options,
                )
            )
            number += 1
            offset += size
        self._cached = self._window - room
        if ready:
            self._notify(list(ready))

    # -- leasing --------------------------------------------------------------------------------

    async def reserve(
        self, types: Collection[str], limit: int, *, holder: str, local: bool = False
    ) -> list[Lease]:
        if self._closing:
            return []
        index, journal = self._index, self.journal
        jobs: list[tuple[LiveJob, bytes]] = []
        for job in index.take(types, limit):
            try:
                jobs.append((job, self._payload(job)))
            except DamagedJournal as damage:
                self._bury_damaged(job, damage)
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

    def _bury_damaged(self, job: LiveJob, damage: DamagedJournal) -> None:
        """A payload that does not read back is never handed out, and its job is not lost silently (G6).

        Nobody waits for the sync: :meth:`reserve` must not pause while it holds jobs that are neither queued
        nor leased, and a crash that takes this back only makes the next one find the damage again.
        """
        now = self._clock.now()
        error = _error(Reason(str(damage), "damaged"), now, "damaged")
        sequence = self.journal.take_sequences(1)
        self.journal.append_unwaited([self._move(job, Event.BURY, sequence, now, error=error)], sequence)

    def _payload(self, job: LiveJob) -> bytes:
        """The job's payload, from memory or read back from its segment and verified."""
        entry = job.entry
        if entry is None:
            entry = self.journal.read(job.segment, job.offset, job.size)
        return entry[job.data_start : -4]

    async def renew(self, receipts: Sequence[str], progress: dict[str, Any] | None = None) -> list[bool]:
        index, journal = self._index, self.journal
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
        refused: list[Refusal] = []
        parts: list[bytes] = []
        index, journal = self._index, self.journal
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
            else:
                parts.append(self._unfinished(job, settlement, first + len(parts), now))
                if job.state is READY:
                    ready[job.type] = None
        if parts:
            journal.take_sequences(len(parts))
            done = journal.append(parts, first)
            if ready:
                self._notify(list(ready))
            await done
        elif repeated:
            await journal.sync()  # it may have come before the first one's sync
        return refused

    def _finish(self, job: LiveJob, event: Event, now: int, outcome: str) -> None:
        if job.entry is not None:
            self._cached -= job.size
        self._index.finish(job, event, now, outcome)
        if job.options.bulk is not None and self._bulk is not None:
            self._spawn(self._delete_bulk(job))
        if self._index.in_segment[job.segment] == 0:
            self._reclaim()

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
        self._index.move(
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
        options = msgspec.json.encode(EventOptions(outcome=outcome, error=error)) if outcome or error else b""
        return record.encode_event(
            event, sequence, 0, job.number, now, due, nonce, job.attempt, job.prio, job.deaths, options
        )

    async def rescue(self, receipts: Sequence[str], *, died: bool = False, reason: str = "") -> None:
        parts: list[bytes] = []
        first, now = self.journal.next_sequence, self._clock.now()
        ready: dict[str, None] = {}
        for receipt in receipts:
            job = self._index.leases.get(receipt)
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
        """Journal entries whose sequences count up from ``next_sequence``; returns when durable."""
        if not parts:
            return
        done = self.journal.append(parts, self.journal.take_sequences(len(parts)))
        if ready:
            self._notify(list(ready))
        await done

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
            for position, job in enumerate([job for job in self._index.leases.values() if job.local])
        ]
        if parts:
            self.journal.append_unwaited(parts, self.journal.take_sequences(len(parts)))

    def held_by(self, holder: str) -> list[str]:
        return list(self._index.held_by(holder))

    # -- control and inspection -----------------------------------------------------------------

    def _find(self, id: str) -> LiveJob:
        prefix, _, number = id.rpartition("-")
        if f"{prefix}-" == self._prefix and number.isascii() and number.isdigit() and len(number) < 20:
            job = self._index.live.get(int(number)) or self._index.history.get(int(number))
            if job is not None:
                return job
        raise NotFound(f"no job {id!r} here; finished jobs are forgotten after a while", field="id")

    async def control(self, verb: str, ids: Sequence[str]) -> int:
        event = _CONTROL[verb]
        jobs = list({job.number: job for job in map(self._find, ids)}.values())
        for job in jobs:
            if job.state is State.DONE:
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
        if data and job.state is not State.DONE:
            bulk = job.options.bulk
            if bulk is None:
                payload = self._payload(job)
            elif self._bulk is not None:
                payload = await self._bulk.get(bulk)
        return shown(job, f"{self._prefix}{job.number}", payload)

    async def jobs(
        self, *, state: str | None, type: str | None, limit: int, after: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        start = self._number_after(after)
        found: list[LiveJob] = []
        if state == "done":
            source = {job.number: job for job in self._index.history.values()}
            numbers: Collection[int] = sorted(number for number in source if number >= start)
        else:
            source = self._index.live
            numbers = range(max(start, next(iter(source), 0)), self.journal.next_sequence)
            if len(numbers) > 2 * len(source):  # after a torn tail, or when most jobs in between are done
                numbers = sorted(number for number in source if number >= start)
        for looked, number in enumerate(numbers, 1):
            job = source.get(number)
            if job is not None and (
                (state is None or job.state.name.lower() == state) and (type is None or job.type == type)
            ):
                if len(found) == limit:
                    break
                found.append(job)
            if looked % _SCAN == 0:
                await asyncio.sleep(0)  # a sparse page must not hold up everybody else
        else:
            return [shown(job, f"{self._prefix}{job.number}") for job in found], None
        return [
            shown(job, f"{self._prefix}{job.number}") for job in found
        ], f"{self._prefix}{found[-1].number}"

    def _number_after(self, after: str | None) -> int:
        if after is None:
            return 0
        prefix, _, number = after.rpartition("-")
        if f"{prefix}-" != self._prefix or not (number.isascii() and number.isdigit() and len(number) < 20):
            raise NotFound(f"after: {after!r} is no id of this server", field="after")
        return int(number) + 1

    def stats(self, type: str | None = None) -> dict[str, Any]:
        names = ("delayed", "ready", "reserved", "buried", "done")
        counts = self._index.counts
        types = {
            name: dict(zip(names, values[1:], strict=True))
            for name, values in counts.items()
            if type is None or name == type
        }
        totals = dict.fromkeys(names, 0)
        for values in types.values():
            for name in names:
                totals[name] += values[name]
        oldest = self._index.oldest_ready()
        age = max(0, self._clock.now() - oldest.due) / SECOND if oldest is not None else None
        return {
            "jobs": totals,
            "types": types,
            "oldest_ready_age": age,
            "journal": self.journal.stats(),
            "payload_bytes_in_memory": self._cached,
        }

    def bulk_names(self) -> set[str]:
        """Names of all payloads in the bulk store that live jobs refer to."""
        live = self._index.live.values()
        return {job.options.bulk.name for job in live if job.options.bulk is not None}

    @property
    def longest_ttr(self) -> float:
        """The longest ttr of the leases that are out, seconds; 0 when none is."""
        return max((job.ttr for job in self._index.leases.values()), default=0) / 1000

    def ready_types(self) -> dict[str, int]:
        """How many jobs are ready, by type, of the types that have any."""
        return {name: counts[READY] for name, counts in self._index.counts.items() if counts[READY]}

    # -- time -----------------------------------------------------------------------------------

    def tick(self) -> list[Expired]:
        now = self._clock.now()
        released = self._index.release_due(now)
        if released:
            self._notify(list({job.type: None for job in released}))
        return [
            Expired(receipt_of(job), f"{self._prefix}{job.number}", job.holder, job.ttr / 1000)
            for job in self._index.pop_expired(now)
        ]

    def next_wake(self) -> int | None:
        return self._index.next_wake()

    def _reclaim(self) -> None:
        """Give up the oldest segments while no live job is in them."""
        live = self._index.in_segment
        for segment in [number for number, count in live.items() if count == 0]:
            del live[segment]
        oldest = min(live, default=self.journal.open_segment)
        self.journal.drop_before(min(oldest, self.journal.open_segment))

    async def close(self) -> None:
        self._closing = True
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
