"""How attempts end: settled by their worker, or taken back from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec import UNSET

from ...core import record
from ...core.job import NULL, PRIO_NUMBER, SECOND, BulkRef
from ...core.lifecycle import Event
from ...core.outcome import Reason, Settlement
from ...core.retry import RetryPolicy, attempts_left, retry_delay
from ...core.wire import copy_raw
from ...errors import JournalFailed
from ...ports import BulkStore, Refusal
from ..rules import POISON_DEATHS, RESULT_INLINE, error_of
from .index import READY
from .job import LiveJob
from .ledger import Ledger
from .replay import EventOptions
from .results import Result

#: Kinds of a reason that tell of a worker's death.
_DEATHS: Final = ("worker_died", "suspect")
_DEFAULT_RETRY: Final = RetryPolicy()
#: Jobs whose time is over that are buried in one go.
_EXPIRED_AT_ONCE: Final = 1000
_OK: Final = msgspec.json.encode(EventOptions(outcome="ok"))
_CANCELLED: Final = msgspec.json.encode(EventOptions(outcome="cancelled"))


class Settler:
    """Ends leases.

    Args:
        ledger: the books.
        random: draws from [0, 1), for jitter.
        bulk: where oversize payloads lie; told when they are not needed any more.
    """

    def __init__(self, ledger: Ledger, random: Callable[[], float], bulk: BulkStore | None) -> None:
        self._ledger = ledger
        self._random = random
        self._bulk = bulk
        self._background: set[asyncio.Task[None]] = set()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Refusal]:
        stored = await self._store_results(settlements)
        refused: list[Refusal] = []
        parts: list[bytes] = []
        index, journal = self._ledger.index, self._ledger.journal
        leases = index.leases
        now = self._ledger.now()
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
            job.cost = _cost(settlement, now - job.leased)
            if outcome == "ok":
                parts.append(self._ledger.event(4, first + len(parts), job, now, now, _OK))
                self.finish(job, Event.ACK, now, "ok")
                if job.options.result_ttl:
                    bulk = stored.pop(settlement.receipt, None)
                    parts.append(self._keep_result(job, settlement, bulk, first + len(parts), now))
            elif job.cancelled:
                parts.append(self._cancelled(job, first + len(parts), now, outcome))
            elif outcome == "again" and not journal.accepting:
                refused.append(Refusal(position, "disk_full"))  # a retry frees nothing
            else:
                parts.append(self._unfinished(job, settlement, first + len(parts), now))
                if job.state is READY:
                    ready[job.type] = None
        if parts:
            await self._ledger.append(parts, ready)
        elif repeated:
            await journal.sync()  # it may have come before the first one's sync
        if stored and self._bulk is not None:
            await self._bulk.delete(list(stored.values()))  # of settlements that were refused
        return refused

    async def _store_results(self, settlements: Sequence[Settlement]) -> dict[str, BulkRef]:
        """Put oversize results that will be kept into the bulk store, before their jobs are done."""
        stored: dict[str, BulkRef] = {}
        for settlement in settlements:
            result = settlement.result
            if self._bulk is None or result is UNSET or len(copy_raw(result)) <= RESULT_INLINE:
                continue
            job = self._ledger.index.leases.get(settlement.receipt)
            if job is not None and job.options.result_ttl and settlement.outcome == "ok":
                stored[settlement.receipt] = await self._bulk.put(copy_raw(result))
        return stored

    def _keep_result(
        self, job: LiveJob, settlement: Settlement, bulk: BulkRef | None, sequence: int, now: int
    ) -> bytes:
        """Keep what a handler returned; returns the entry."""
        value = NULL if bulk is not None or settlement.result is UNSET else settlement.result
        until = now + job.options.result_ttl
        result = Result(job.number, job.type, now, until, msgspec.Raw(copy_raw(value)), bulk)
        entry = record.encode_data(record.RESULT, sequence, msgspec.json.encode(result))
        results = self._ledger.index.results
        results.add(result)
        self._ledger.when_placed(sequence, partial(results.placed, job.number, len(entry)))
        return entry

    def finish(self, job: LiveJob, event: Event, now: int, outcome: str, said: str = "") -> None:
        """A job ends; its payload goes from the bulk store when that is durable."""
        self._ledger.finish(job, event, now, outcome, said)
        if job.options.bulk is not None:
            self.delete_bulk([job.options.bulk])

    def _cancelled(self, job: LiveJob, sequence: int, now: int, said: str = "") -> bytes:
        """A cancelled job ends with its lease; returns the entry."""
        entry = self._ledger.event(Event.DELETE, sequence, job, now, now, _CANCELLED)
        self.finish(job, Event.DELETE, now, "cancelled", said)
        return entry

    def delete_bulk(self, refs: list[BulkRef]) -> None:
        """Delete from the bulk store what nothing refers to, once all that was done so far is durable."""
        if self._bulk is not None:
            self._spawn(self._delete_bulk(refs))

    async def _delete_bulk(self, refs: list[BulkRef]) -> None:
        try:
            await self._ledger.journal.sync()
        except JournalFailed:
            return  # the end may not be durable: what is stored stays
        if self._bulk is not None:
            await self._bulk.delete(refs)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _unfinished(self, job: LiveJob, settlement: Settlement, sequence: int, now: int) -> bytes:
        """Decide and apply what follows an attempt that did not succeed; returns the entry."""
        outcome, options = settlement.outcome, job.options
        if outcome != "fail" and self._ledger.index.is_over(job.number, now):
            return self._expired(job, sequence, now, outcome)
        prio = job.prio if settlement.prio is None else PRIO_NUMBER[settlement.prio]
        if outcome == "release":
            due, reason = now + int((settlement.delay or 0) * SECOND), settlement.reason
            away = isinstance(reason, Reason) and reason.kind == "bulk"  # its payload could not be had
            return self._ledger.move(
                job,
                Event.RELEASE,
                sequence,
                now,
                due=due,
                attempt=job.attempt - 1,
                prio=prio,
                error=error_of(reason, now, "bulk") if away else None,
                outcome=outcome,
            )
        error = error_of(settlement.reason, now, "fail" if outcome == "fail" else "again")
        if outcome == "again" and error["kind"] in _DEATHS:
            return self._died(job, sequence, now, error, alone=error["kind"] == "worker_died", said=outcome)
        if outcome == "again" and attempts_left(options.max_attempts, job.attempt):
            return self._ledger.move(
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
        return self._ledger.move(job, Event.BURY, sequence, now, error=error, outcome=outcome)

    def _retry_delay(self, job: LiveJob, delay: float | None) -> int:
        if delay is None:
            policy = job.options.retry or _DEFAULT_RETRY
            delay = retry_delay(policy, job.attempt, self._random())
        return int(delay * SECOND)

    async def rescue(
        self,
        receipts: Sequence[str],
        *,
        overdue: bool = False,
        died: bool = False,
        alone: bool = True,
        reason: str = "",
    ) -> None:
        parts: list[bytes] = []
        first, now = self._ledger.journal.next_sequence, self._ledger.now()
        ready: dict[str, None] = {}
        for receipt in receipts:
            job = self._ledger.index.leases.get(receipt)
            if job is None or (overdue and job.expires > now):
                continue
            job.cost = now - job.leased
            sequence = first + len(parts)
            if job.cancelled:
                parts.append(self._cancelled(job, sequence, now))
            elif self._ledger.index.is_over(job.number, now):
                parts.append(self._expired(job, sequence, now))
            elif died:
                error = error_of(Reason(reason, "worker_died" if alone else "suspect"), now, "again")
                parts.append(self._died(job, sequence, now, error, alone=alone))
            else:
                error = error_of(Reason(reason, "ttr"), now, "again")
                parts.append(self._back(job, Event.RESCUE, sequence, now, error, due=now))
            if job.state is READY:
                ready[job.type] = None
        await self._ledger.append(parts, ready)

    def _back(
        self, job: LiveJob, event: Event, sequence: int, now: int, error: dict[str, Any], **rest: Any
    ) -> bytes:
        """A job waits for its next attempt, or is buried when it has none; returns the entry."""
        if attempts_left(job.options.max_attempts, job.attempt):
            return self._ledger.move(job, event, sequence, now, error=error, **rest)
        rest.pop("due")
        return self._ledger.move(job, Event.BURY, sequence, now, error=error, **rest)

    def _died(
        self, job: LiveJob, sequence: int, now: int, error: dict[str, Any], *, alone: bool, said: str = ""
    ) -> bytes:
        """A job's worker died running it; returns the entry.

        Of several that ran, nobody knows which did it: each is a suspect, as if it had killed one worker.
        Suspects run alone from then on, and only what runs alone counts further.
        """
        deaths = job.deaths + 1 if alone else max(job.deaths, 1)
        if deaths >= POISON_DEATHS and alone:
            error["message"] = f"buried as poison after {deaths} worker deaths: {error['message']}"
            return self._ledger.move(job, Event.BURY, sequence, now, deaths=deaths, error=error, outcome=said)
        due = now + self._retry_delay(job, None)
        return self._back(job, Event.RESCUE, sequence, now, error, due=due, deaths=deaths, outcome=said)

    def _expired(self, job: LiveJob, sequence: int, now: int, said: str = "") -> bytes:
        """A job's time to run is over: it is buried; returns the entry."""
        last = f"; its last error: {job.error['message']}" if job.error is not None else ""
        message = f"expired {job.options.expires / SECOND:g} s after it was inserted{last}"
        error = error_of(Reason(message, "expired"), now, "expired")
        return self._ledger.move(
            job,
            Event.BURY,
            sequence,
            now,
            error=error,
            attempt=job.attempt - (said == "release"),
            outcome=said,
        )

    def bury_expired(self, jobs: Sequence[LiveJob]) -> None:
        """Bury waiting jobs whose time is over. Nobody waits for the disk: a restart finds it again."""
        now, first = self._ledger.now(), self._ledger.journal.next_sequence
        self._ledger.submit([self._expired(job, first + at, now) for at, job in enumerate(jobs)])

    def tidy(self) -> None:
        """Bury jobs whose time to run is over, forget results whose time is."""
        index, now = self._ledger.index, self._ledger.now()
        if index.expires and (overdue := index.pop_overdue(now, _EXPIRED_AT_ONCE)):
            self.bury_expired([self._ledger.job(index.row(number)) for number in overdue])
        if len(index.results) and (unused := index.results.forget_due(now)):
            self.delete_bulk(unused)

    def release_local(self) -> None:
        """After a restart: workers that died with the server hold nothing any more."""
        now, first = self._ledger.now(), self._ledger.journal.next_sequence
        parts: list[bytes] = []
        local = [job for job in self._ledger.index.leases.values() if job.local]
        for job in sorted(local, key=attrgetter("number")):  # of unique ones the first comes back
            sequence = first + len(parts)
            if job.cancelled:
                parts.append(self._cancelled(job, sequence, now))
            else:
                parts.append(self._ledger.move(job, Event.RELEASE, sequence, now, attempt=job.attempt - 1))
        if parts:
            self._ledger.submit(parts)

    async def close(self) -> None:
        """Return when what goes on in the background is done."""
        if self._background:
            await asyncio.gather(*self._background, return_exceptions=True)


def _cost(settlement: Settlement, held: int) -> int:
    """How long an attempt ran: what its worker says, but not more than it held the lease; microseconds."""
    if settlement.outcome == "release":
        return 0
    return max(1, held if settlement.took is None else min(int(settlement.took * SECOND), held))
