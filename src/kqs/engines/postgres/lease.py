"""Leases: what the scheduler picks is claimed in the database, which decides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import Any, Final

import msgspec
from psycopg.rows import TupleRow

from ...core.job import SECOND
from ...core.lifecycle import State
from ...core.outcome import Reason
from ...core.record import FLAG_BINARY
from ...errors import Busy, DiskFull
from ...ports import Clock, Lease, Renewal, Revoked
from ..rules import error_of
from .changes import Changed, Changes
from .database import Connection, Database
from .due import Due
from .gates import CLAIMABLE, Gates
from .rows import COLUMNS, EXPIRES, MOST, Row, job_of, number_of_receipt
from .settle import Decider

_CLAIM: Final = f"""
UPDATE job SET state = 3, attempt = least(job.attempt, {MOST - 1}) + 1, nonce = %s, leased = %s,
    expires = {EXPIRES}, holder = %s, local = %s, server = %s
FROM ({CLAIMABLE}) AS free
WHERE job.id = free.id RETURNING {COLUMNS.replace("id,", "job.id,", 1)}, 0::bigint, '', data
"""
#: Seconds after which a claim without an answer has come to its end in the database, whatever it was.
_LATE: Final = 60.0
#: Microseconds after which a lease is compared with the tables.
_OLD: Final = 5 * SECOND


class Leaser:
    """Gives leases.

    Args:
        database, clock: where, and time.
        changes: applies what a claim finds out.
        due: told when leases end.
        gates: the limits.
        nonce: draws random bits, for receipts.
        server: the number of this server.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        changes: Changes,
        due: Due,
        gates: Gates,
        nonce: Callable[[int], int],
        server: Callable[[], int],
    ) -> None:
        self._database, self._clock, self._changes, self._due = database, clock, changes, due
        self._nonce, self._server = nonce, server
        self._candidates = changes.candidates
        self._gates = gates
        self.closing = False
        self._failed = False
        self._unanswered: dict[int, float] = {}
        self._missing: set[str] = set()

    async def reserve(
        self, types: Collection[str], limit: int, *, holder: str, local: bool = False
    ) -> list[Lease]:
        if self.closing:
            return []
        leases: list[Lease] = []
        try:
            if self._candidates.dirty:
                await self._candidates.load(self._database)
            while len(leases) < limit:
                taken = self._candidates.take(types, limit - len(leases), self._clock.now())
                if not taken:
                    if not self._candidates.dirty:
                        break
                    await self._candidates.load(self._database)
                    continue
                await self._claim(taken, holder, local, leases)
        except (Busy, DiskFull):
            self._failed = True
        return leases

    async def _claim(self, taken: list[int], holder: str, local: bool, leases: list[Lease]) -> None:
        """Claim jobs; what is leased is added to ``leases``, whatever happens after."""
        now, nonce = self._clock.now(), self._nonce(62)
        limited = [(n, lane) for n in taken if (lane := self._candidates.lane_of(n)).limits]
        kept: set[int] = set()
        try:
            if limited:
                async with self._database.connection(soon=True) as connection, connection.transaction():
                    admitted, there = await self._gates.admit(connection, self._server(), limited, now)
                    kept = there.difference(admitted)
                    free = [n for n in taken if n not in kept]
                    rows = await self._write_claim(connection, free, now, nonce, holder, local)
            else:
                async with self._database.connection(soon=True) as connection:
                    rows = await self._write_claim(connection, taken, now, nonce, holder, local)
        except BaseException:
            self._unanswered[nonce] = monotonic()
            for number in taken:
                self._candidates.missed(number, keep=True)
            raise
        jobs: list[Row] = []
        broken: list[Row] = []
        for number in taken:
            if (row := rows.get(number)) is None:
                self._candidates.missed(number, keep=number in kept)
                continue
            job = job_of(row)
            held = (now, job.expires, job.ttr, holder, job.receipt)
            self._candidates.claimed(number, held)
            if job.broken:
                broken.append(job)
                continue
            self._due.ends(job.expires, job.receipt)
            jobs.append(job)
            leases.append(_lease(job, self._changes.ids.of(number), row[25]))
        if self._changes.watchers:
            self._changes.happened(("reserved", job) for job in jobs)
        for job in broken:
            await self._bury_broken(job)
        if len(rows) + len(kept) < len(taken):
            await self._due.bury_overdue(now)  # the tick comes a little late

    async def _write_claim(
        self, connection: Connection, numbers: list[int], now: int, nonce: int, holder: str, local: bool
    ) -> dict[int, TupleRow]:
        """Claim jobs; returns the rows of those that were free."""
        cursor = connection.cursor(binary=True)
        values = [nonce, now, now, holder, local, self._server(), numbers, now]
        await cursor.execute(_CLAIM.encode(), values)
        return {row[0]: row for row in await cursor.fetchall()}

    async def _bury_broken(self, job: Row) -> None:
        """A job whose row was edited into nonsense is never handed out, and not lost silently."""

        async def decide(_c: Connection, decider: Decider, rows: dict[int, Row]) -> list[Changed]:
            found = rows.get(job.number)
            if found is None or found.nonce != job.nonce:
                return []
            found.attempt -= 1
            error = error_of(Reason(job.broken, "damaged"), decider.now, "damaged")
            return [Changed(found, job.receipt, 0, decider.bury(found, error))]

        await self._changes.change([job.number], decide)

    async def look_back(self) -> set[str]:
        """Put right what lost replies left; returns types whose jobs were asked for in vain."""
        await self._take_back()
        await self._compare()
        failed, self._failed = self._failed, False
        return self._candidates.types() if failed else set()

    async def _take_back(self) -> None:
        """Leases that were given without anybody knowing are as if they had never been."""
        asked = dict(self._unanswered)
        if not asked:
            return
        rows = await self._database.rows(
            "SELECT id FROM job WHERE state = 3 AND nonce = ANY(%s)", [list(asked)]
        )

        async def decide(_c: Connection, decider: Decider, found: dict[int, Row]) -> list[Changed]:
            return [
                Changed(job, job.receipt, 0, decider.never_was(job))
                for job in found.values()
                if job.state is State.RESERVED and job.nonce in asked
            ]

        if rows:
            await self._changes.change([row[0] for row in rows], decide)
        for nonce, since in asked.items():
            if monotonic() - since > _LATE:
                del self._unanswered[nonce]

    async def _compare(self) -> None:
        """Revoke leases of this server that are nowhere: it was taken for dead, or somebody edited rows."""
        leases, before = self._candidates.leases, self._clock.now() - _OLD
        old = {
            number_of_receipt(held.receipt): held.receipt for held in leases.values() if held.leased < before
        }
        pairs = [pair for pair in old if pair is not None]
        rows = []
        if pairs:
            rows = await self._database.rows(
                "SELECT n, k FROM unnest(%s::bigint[], %s::bigint[]) AS s (n, k) WHERE NOT EXISTS"
                " (SELECT FROM job WHERE id = n AND nonce = k AND state = 3)",
                [[pair[0] for pair in pairs], [pair[1] for pair in pairs]],
            )
        missing = {old[row[0], row[1]] for row in rows}
        gone = [leases[r] for r in missing & self._missing if r in leases]  # twice: none is being settled
        self._missing = missing
        for held in gone:
            self._candidates.ended(held.receipt, 0)
        if gone:
            self._changes.revoked([Revoked(held.receipt, held.holder) for held in gone])
            self._changes.tell_ready(())

    async def renew(self, receipts: Sequence[str], progress: dict[str, Any] | None = None) -> list[Renewal]:
        wanted = [number_of_receipt(receipt) for receipt in receipts]
        known = [pair for pair in wanted if pair is not None]
        text = None if progress is None else msgspec.json.encode(progress).decode()
        now = self._clock.now()
        rows = await self._database.rows(
            f"UPDATE job SET expires = {EXPIRES}, progress = coalesce(%s, progress) FROM"
            " unnest(%s::bigint[], %s::bigint[]) AS s (n, k) WHERE id = s.n AND job.nonce = s.k AND state = 3"
            f" RETURNING {COLUMNS}",
            [now, text, [pair[0] for pair in known], [pair[1] for pair in known]],
            soon=True,
        )
        jobs = {job.receipt: job for job in map(job_of, rows)}
        for receipt, renewed in jobs.items():
            if (held := self._candidates.leases.get(receipt)) is not None:
                held.expires = renewed.expires
                self._due.ends(renewed.expires, receipt)
            else:
                self._changes.wake_by(renewed.expires)
            self._due.renewed(receipt)
        if progress is not None and self._changes.watchers:
            self._changes.happened(("progress", job) for job in jobs.values())
        return [
            "lost" if (job := jobs.get(receipt)) is None else "cancelled" if job.cancelled else "renewed"
            for receipt in receipts
        ]


def _lease(job: Row, id: str, data: bytes) -> Lease:
    return Lease(
        job.receipt,
        id,
        job.type,
        job.attempt,
        job.prio,
        job.ttr / 1000,
        data,
        bool(job.flags & FLAG_BINARY),
        job.options.bulk,
        job.inserted,
        job.expires,
        job.deaths,
        job.options.result_ttl > 0,
    )
