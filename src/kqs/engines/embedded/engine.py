"""The embedded engine: an index over the journal, in one process, no other server.

Accepting is: encode, journal, wait for the sync, then into the index. A job is in nobody's sight before it
is durable, so no id or receipt of it can be out when a crash takes it back (G8). Ending a lease is: into the
index at once, so that the receipt counts only once (G4), journal, wait for the sync, reply (G1). A crash
between restores the lease.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import msgspec
import structlog

from ...core import record
from ...core.job import SECOND, NewJob
from ...core.outcome import Settlement
from ...core.record import FLAG_BINARY, FLAG_LOCAL, Damaged, Newer
from ...core.shares import Shares
from ...errors import Busy, DamagedJournal
from ...journal.log import Journal
from ...journal.scan import Apply
from ...ports import (
    BulkStore,
    Clock,
    CronMark,
    Expired,
    Inserted,
    JobEvent,
    Lease,
    Refusal,
    Renewal,
    Revoked,
    Selection,
)
from .accept import Acceptor
from .compaction import Compactor
from .control import Controller
from .crons import Crons
from .export import Kept, live
from .index import READY
from .inspect import Inspector
from .job import LiveJob
from .ledger import Ledger
from .replay import EventOptions
from .settle import Settler
from .why import Explainer

#: Bytes of payload kept in memory; what is over it is read back from the segments.
PAYLOAD_WINDOW: Final = 64 * 1024 * 1024
#: Bytes of everything an engine keeps in memory; inserts are refused beyond it.
MEMORY_LIMIT: Final = 1 << 30
#: How long idempotency keys are remembered, seconds, and how many at most.
KEY_WINDOW: Final = 86_400.0
KEY_CAP: Final = 500_000
#: How often a full disk is asked again, microseconds.
_RESERVE_EVERY: Final = SECOND // 2
#: How often it is logged that jobs wait because the system lacks something, microseconds.
_TELL_EVERY: Final = 60 * SECOND


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
    max_payload = 1 << 30
    capabilities = frozenset(
        {"cancel", "cron", "expiry", "fair_share", "idempotency", "inspect", "leases", "pause"}
        | {"results", "unique", "watch"}
    )

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
        self._ledger = ledger = Ledger(
            open_journal, clock, payload_window=payload_window, key_window=key_window, key_cap=key_cap
        )
        self.journal = ledger.journal
        self._index = ledger.index
        self._nonce = nonce
        self._epoch = self.journal.epoch << 40
        self._acceptor = Acceptor(ledger, self._make_space, memory_limit)
        self._settler = Settler(ledger, random, bulk)
        self._inspector = Inspector(ledger, bulk)
        self._controller = Controller(ledger, self._settler)
        self._explainer = Explainer(ledger, lambda: not self.journal.has_reserve)
        self._crons = Crons(ledger, self._acceptor)
        self._compactor = Compactor(ledger, self._controller.carry, self._crons.carry)
        self._closing = False
        self._held_back = False
        self._reserved_at = self._lack_told = 0
        self._reserve()
        self._index.release_due(clock.now())
        self._settler.release_local()

    def on_ready(self, notify: Callable[[Sequence[str]], None]) -> None:
        self._ledger.notify = notify

    def on_revoked(self, notify: Callable[[Sequence[Revoked]], None]) -> None:
        self._ledger.revoked = notify

    def arrange(self, shares: Shares) -> None:
        self._index.scheduler.arrange(shares, self._ledger.now())
        self._ledger.tell_reopened()

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        return await self._acceptor.put(jobs)

    async def fire(self, name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        return await self._crons.fire(name, upto, jobs)

    async def fired(self) -> dict[str, CronMark]:
        return dict(self._index.crons.marks)

    async def forget_cron(self, name: str) -> None:
        await self._crons.forget(name)

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
        index, journal = self._index, self.journal
        options = msgspec.json.encode(EventOptions(holder=holder))
        jobs = self._load(index.take(types, limit, self._ledger.now()))
        if not jobs:
            return []
        now = self._ledger.now()
        if index.expires and (over := [job for job, _payload in jobs if index.is_over(job.number, now)]):
            self._settler.bury_expired(over)  # the tick comes a little late
            index.untake([job.number for job in over])
            jobs = [(job, payload) for job, payload in jobs if job.state is READY]
            if not jobs:
                return []
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
                    job.receipt,
                    self._ledger.id_of(job.number),
                    job.type,
                    attempt,
                    job.prio,
                    job.ttr / 1000,
                    payload,
                    bool(job.flags & FLAG_BINARY),
                    job.options.bulk,
                    job.inserted,
                    expires,
                    job.deaths,
                    job.options.result_ttl > 0,
                )
            )
        journal.append_unwaited(parts, first)
        if self._ledger.watchers:
            self._ledger.happened_now("reserved", (job for job, _payload in jobs))
        return leases

    def _load(self, numbers: list[int]) -> list[tuple[LiveJob, bytes]]:
        """Jobs that were taken, and their payloads; those that can't be had now stand in line again."""
        index = self._index
        jobs: list[tuple[LiveJob, bytes]] = []
        left = dict.fromkeys(numbers)
        try:
            for number in numbers:
                row = index.row(number)
                try:
                    loaded = index.load(row, self._ledger.entry(row, keep=False))
                    jobs.append((loaded.job, loaded.payload))
                except (DamagedJournal, Damaged, Newer) as damage:
                    self._ledger.bury_unreadable(row, damage)
                    index.untake([number])
                    del left[number]
        except Busy as busy:
            index.untake(numbers[numbers.index(number) :])
            self._held_back = True
            if (now := self._ledger.now()) - self._lack_told >= _TELL_EVERY:
                self._lack_told = now
                structlog.get_logger().warning("jobs wait: their payloads can't be read", reason=str(busy))
        except BaseException:
            index.untake(left)
            raise
        return jobs

    async def renew(self, receipts: Sequence[str], progress: dict[str, Any] | None = None) -> list[Renewal]:
        index, journal = self._index, self.journal
        now = self._ledger.now()
        jobs = [index.leases.get(receipt) for receipt in receipts]
        current = [job for job in jobs if job is not None]
        if current:
            first = sequence = journal.take_sequences(len(current))
            parts = []
            for job in current:
                index.renew(job, now + job.ttr * 1000)
                if progress is not None:
                    job.progress = progress
                parts.append(self._ledger.event(record.RENEW, sequence, job, now, job.expires))
                sequence += 1
            journal.append_unwaited(parts, first)
            if progress is not None and self._ledger.watchers:
                self._ledger.happened_now("progress", current)
        return ["lost" if job is None else "cancelled" if job.cancelled else "renewed" for job in jobs]

    async def settle(self, settlements: Sequence[Settlement]) -> list[Refusal]:
        await self._make_room()
        return await self._settler.settle(settlements)

    async def rescue(
        self,
        receipts: Sequence[str],
        *,
        overdue: bool = False,
        died: bool = False,
        alone: bool = True,
        reason: str = "",
    ) -> None:
        await self._settler.rescue(receipts, overdue=overdue, died=died, alone=alone, reason=reason)

    def held_by(self, holder: str) -> list[str]:
        return list(self._index.held_by(holder))

    # -- control and inspection -----------------------------------------------------------------

    async def control(self, verb: str, selection: Selection) -> int:
        return await self._controller.control(verb, selection)

    async def pause(self, type: str, paused: bool, *, by: str = "") -> None:
        await self._controller.pause(type, paused, by)

    async def paused(self) -> list[str]:
        return sorted(self._index.paused)

    def watch(
        self, listener: Callable[[JobEvent], None], *, id: str | None = None, type: str | None = None
    ) -> Callable[[], None]:
        number = None if id is None else self._ledger.number_of(id)
        return self._ledger.watchers.add(listener, number, type)

    async def job(self, id: str, *, data: bool = False) -> dict[str, Any]:
        return await self._inspector.job(id, data=data)

    async def jobs(
        self, *, state: str | None, type: str | None, fair: str | None = None, limit: int, after: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        return await self._inspector.jobs(state=state, type=type, fair=fair, limit=limit, after=after)

    async def why(self, id: str) -> dict[str, Any]:
        return self._explainer.why(id)

    async def stats(self, type: str | None = None) -> dict[str, Any]:
        acceptor = self._acceptor
        return {
            **self._inspector.counts(type),
            "journal": {**self.journal.stats(), "carried": self._compactor.carried},
            "memory": {
                "bytes": acceptor.memory,
                "limit": acceptor.memory_limit,
                "payload_bytes": self._ledger.cached,
            },
            "keys": len(self._ledger.keys),
            "results": len(self._index.results),
            "paused": await self.paused(),
            "delays": self._index.lateness.shown(),
            "lanes": len(self._index.scheduler),
            "limits": self._index.scheduler.limits(),
        }

    def live(self) -> Iterator[Kept]:
        """All live jobs, as they would be inserted into another engine; nothing may change meanwhile."""
        return live(self._ledger, self._ledger.now())

    async def bulk_names(self) -> set[str]:
        return {ref.name for ref in self._index.bulk.values()} | self._index.results.bulk_names()

    @property
    def accepting(self) -> bool:
        return self.journal.accepting

    @property
    def longest_ttr(self) -> float:
        return max((job.ttr for job in self._index.leases.values()), default=0) / 1000

    async def ready_types(self, among: Callable[[str], bool] | None = None) -> Iterator[tuple[str, int]]:
        return self._ready_types(among)

    def _ready_types(self, among: Callable[[str], bool] | None = None) -> Iterator[tuple[str, int]]:
        held_back = self._index.scheduler.held_back
        for name, counts in self._index.counts.items():
            if counts[READY] and (among is None or among(name)) and not held_back(name):
                yield name, counts[READY]

    # -- time and space -------------------------------------------------------------------------

    async def tick(self) -> list[Expired]:
        now = self._ledger.now()
        released = self._index.release_due(now)
        self._index.scheduler.tick(now)
        self._ledger.tell_reopened()
        if released:
            self._ledger.notify(released)
        self._settler.tidy()
        self._reserve()
        self._compactor.poke()
        return [
            Expired(job.receipt, self._ledger.id_of(job.number), job.holder, job.ttr / 1000)
            for job in self._index.pop_expired(now)
        ]

    def next_wake(self) -> int | None:
        return self._index.next_wake()

    @property
    def behind(self) -> bool:
        """Whether a :meth:`tick` should follow soon: more was due than it does in one go."""
        return self._index.behind

    async def _make_room(self) -> None:
        """Wait for the next spare segment when space is short, rather than refuse at once.

        Raises:
            JournalFailed: a journal that has failed is not short of space.
        """
        if not self.journal.accepting:
            await self._make_space()
        if self.journal.failed is not None:
            raise self.journal.failed

    async def _make_space(self) -> bool:
        self._reserve()
        return await self.journal.make_room()

    def _reserve(self) -> None:
        """Keep space for the ends of all live jobs free (DESIGN section 5, rule 6)."""
        now = self._ledger.now()
        retry = now - self._reserved_at >= _RESERVE_EVERY
        if retry:
            self._reserved_at = now
        self._ledger.reserve(retry=retry)
        if self._held_back and self.journal.has_reserve:
            self._held_back = False
            self._ledger.notify([name for name, _count in self._ready_types()])

    async def close(self) -> None:
        self._closing = self._acceptor.closing = True
        await self._compactor.stop()
        await self._settler.close()
        await self.journal.close()
