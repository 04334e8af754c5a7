"""How attempts end: settled by their worker, or taken back from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ...core.job import PRIO_NUMBER, SECOND
from ...core.lifecycle import Event
from ...core.outcome import Reason, Settlement
from ...core.retry import RetryPolicy, attempts_left, retry_delay
from ...ports import BulkStore, Refusal
from .index import READY
from .job import LiveJob
from .ledger import Ledger, error_of
from .replay import EventOptions

#: A job that killed its worker this often is buried.
POISON_DEATHS: Final = 3
_DEFAULT_RETRY: Final = RetryPolicy()
_OK: Final = msgspec.json.encode(EventOptions(outcome="ok"))


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
            if outcome == "ok":
                parts.append(self._ledger.event(4, first + len(parts), job, now, now, _OK))
                self.finish(job, Event.ACK, now, "ok")
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
        return refused

    def finish(self, job: LiveJob, event: Event, now: int, outcome: str) -> None:
        """A job ends; its payload goes from the bulk store when that is durable."""
        self._ledger.finish(job, event, now, outcome)
        if job.options.bulk is not None and self._bulk is not None:
            self._spawn(self._delete_bulk(job))

    async def _delete_bulk(self, job: LiveJob) -> None:
        """Delete a payload once the end of its job is durable."""
        await self._ledger.journal.sync()
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
            return self._ledger.move(
                job,
                Event.RELEASE,
                sequence,
                now,
                due=due,
                attempt=job.attempt - 1,
                prio=prio,
                outcome=outcome,
            )
        error = error_of(settlement.reason, now, "fail" if outcome == "fail" else "again")
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
        self, receipts: Sequence[str], *, overdue: bool = False, died: bool = False, reason: str = ""
    ) -> None:
        parts: list[bytes] = []
        first, now = self._ledger.journal.next_sequence, self._ledger.now()
        ready: dict[str, None] = {}
        for receipt in receipts:
            job = self._ledger.index.leases.get(receipt)
            if job is None or (overdue and job.expires > now):
                continue
            sequence = first + len(parts)
            deaths = job.deaths + 1 if died else job.deaths
            error = error_of(Reason(reason, "worker_died" if died else "ttr"), now, "again")
            if deaths >= POISON_DEATHS and died:
                error["message"] = f"buried as poison after {deaths} worker deaths: {reason}"
                parts.append(self._ledger.move(job, Event.BURY, sequence, now, deaths=deaths, error=error))
            elif not attempts_left(job.options.max_attempts, job.attempt):
                parts.append(self._ledger.move(job, Event.BURY, sequence, now, deaths=deaths, error=error))
            else:
                due = now + self._retry_delay(job, None) if died else now
                parts.append(
                    self._ledger.move(job, Event.RESCUE, sequence, now, due=due, deaths=deaths, error=error)
                )
                ready[job.type] = None
        await self._ledger.append(parts, ready)

    def release_local(self) -> None:
        """After a restart: workers that died with the server hold nothing any more."""
        now = self._ledger.now()
        parts = [
            self._ledger.move(
                job,
                Event.RELEASE,
                self._ledger.journal.next_sequence + position,
                now,
                attempt=job.attempt - 1,
            )
            for position, job in enumerate([job for job in self._ledger.index.leases.values() if job.local])
        ]
        if parts:
            self._ledger.journal.append_unwaited(parts, self._ledger.journal.take_sequences(len(parts)))

    async def close(self) -> None:
        """Return when what goes on in the background is done."""
        if self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
