"""Leases end: by a settlement, or because nobody settles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET

from ...core.job import SECOND, JobOptions
from ...core.lifecycle import State
from ...core.outcome import Settlement
from ...core.wire import copy_raw
from ...ports import BulkStore, Clock, Refusal
from ..rules import RESULT_INLINE
from .changes import Changed, Changes
from .database import Batcher, Connection, Database
from .rows import Row, number_of_receipt
from .settle import Decider

_ACK: Final = """
WITH said AS (SELECT * FROM unnest(%s::bigint[], %s::bigint[]) AS s (id, nonce)),
locked AS (SELECT job.id FROM job JOIN said ON said.id = job.id WHERE job.nonce = said.nonce AND job.state = 3
    ORDER BY job.id FOR UPDATE OF job),
gone AS (DELETE FROM job USING locked WHERE job.id = locked.id RETURNING job.*)
INSERT INTO done SELECT id, %s, inserted, due, leased, nonce, ttr, octet_length(data), attempt, deaths, prio,
    is_binary, type, fair, 'ok', 'ok', options, error FROM gone RETURNING id, type, options
"""
_RESULT: Final = (
    "INSERT INTO result VALUES (%s, %s, %s, %s, %s, %s)"
    " ON CONFLICT (id) DO UPDATE SET value = excluded.value,"
    " until = excluded.until, bulk = excluded.bulk"
)
_options_of = msgspec.json.Decoder(JobOptions).decode


class Ender:
    """Settles and rescues.

    Args:
        database, clock: where, and time.
        changes: applies what follows.
        bulk: where large results lie.
        flights: batches of acks under way at a time.
    """

    def __init__(
        self, database: Database, clock: Clock, changes: Changes, bulk: BulkStore | None, flights: int
    ) -> None:
        self._database, self._clock, self._changes, self._bulk = database, clock, changes, bulk
        self._candidates = changes.candidates
        self._acks: Batcher[list[tuple[int, int]], set[int]] = Batcher(
            self._ack, flights=flights, most=5000, weight=len
        )

    async def settle(self, settlements: Sequence[Settlement]) -> list[Refusal]:
        pairs = [number_of_receipt(settlement.receipt) for settlement in settlements]
        plain = not self._changes.watchers and len(set(pairs)) == len(pairs)
        if plain and all(s.outcome == "ok" and s.result is UNSET for s in settlements):
            return await self._settle_ok(settlements, pairs)
        refused: list[Refusal] = []

        async def decide(connection: Connection, decider: Decider, rows: dict[int, Row]) -> list[Changed]:
            refused.clear()
            changed: list[Changed] = []
            missing: list[int] = []
            for at, (settlement, pair) in enumerate(zip(settlements, pairs, strict=True)):
                job: Row | None = None if pair is None else rows.get(pair[0])
                if job is None or pair is None or job.state is not State.RESERVED or job.nonce != pair[1]:
                    missing.append(at)
                    continue
                cost = _cost(settlement, decider.now - job.leased)
                event = decider.settle(job, settlement)
                changed.append(Changed(job, settlement.receipt, cost, event))
                if settlement.outcome == "ok" and job.options.result_ttl:
                    await self._keep_result(connection, job, settlement, decider.now)
            refused.extend(await self._missing(connection, settlements, pairs, missing, rows))
            return changed

        await self._changes.change([pair[0] for pair in pairs if pair is not None], decide)
        return refused

    async def _settle_ok(
        self, settlements: Sequence[Settlement], pairs: Sequence[tuple[int, int] | None]
    ) -> list[Refusal]:
        now = self._clock.now()
        found = await self._acks.ask([pair for pair in pairs if pair is not None])
        missing: list[int] = []
        for at, (settlement, pair) in enumerate(zip(settlements, pairs, strict=True)):
            if pair is None or pair[0] not in found:
                missing.append(at)
            elif (held := self._candidates.leases.get(settlement.receipt)) is not None:
                self._candidates.ended(settlement.receipt, _cost(settlement, now - held.leased))
        self._changes.tell_ready(())
        if not missing:
            return []
        async with self._database.connection() as connection:
            return await self._missing(connection, settlements, pairs, missing, {})

    async def _ack(self, batch: list[list[tuple[int, int]]]) -> list[set[int] | BaseException]:
        """Acks of several calls in one statement and one commit."""
        pairs = [pair for request in batch for pair in request]
        now = self._clock.now()

        async def work(connection: Connection) -> list[tuple[int, str, str | None]]:
            cursor = await connection.execute(_ACK, [[p[0] for p in pairs], [p[1] for p in pairs], now])
            rows = await cursor.fetchall()
            for number, type_, options in rows:
                if options is not None and (ttl := _options_of(options).result_ttl):
                    await connection.execute(_RESULT, [number, type_, now, now + ttl, "null", None])
            return rows

        rows = await self._database.transact(work)
        refs = []
        for number, type_, options in rows:
            self._changes.done[type_] += 1
            self._candidates.drop(number)
            if options is not None and (ref := _options_of(options).bulk) is not None:
                refs.append(ref)
        await self._changes.delete_bulk(refs)
        found = {row[0] for row in rows}
        return [{pair[0] for pair in request} & found for request in batch]

    async def _missing(
        self,
        connection: Connection,
        settlements: Sequence[Settlement],
        pairs: Sequence[tuple[int, int] | None],
        missing: list[int],
        rows: dict[int, Row],
    ) -> list[Refusal]:
        """Of settlements that found no lease: those that are not a repetition of what was done."""
        asked = [pair for at in missing if (pair := pairs[at]) is not None]
        if not asked:
            return [Refusal(at, "stale_receipt") for at in missing]
        numbers = [number for number, _nonce in asked]
        cursor = await connection.execute(
            "SELECT id, nonce, said FROM done WHERE id = ANY(%s) UNION ALL"
            " SELECT id, settled, settled_as FROM job WHERE id = ANY(%s)",
            [numbers, numbers],
        )
        known = {(row[0], row[1]): row[2] for row in await cursor.fetchall()}
        for job in rows.values():  # by this very call
            if job.settled_as:
                known[job.number, job.settled] = job.settled_as
        return [
            Refusal(at, "stale_receipt")
            for at in missing
            if (pair := pairs[at]) is None or known.get(pair) != settlements[at].outcome
        ]

    async def _keep_result(self, connection: Connection, job: Row, settlement: Settlement, now: int) -> None:
        value = b"null" if settlement.result is UNSET else copy_raw(settlement.result)
        ref: str | None = None
        if self._bulk is not None and len(value) > RESULT_INLINE:
            ref = msgspec.json.encode(await self._bulk.put(value)).decode()
            value = b"null"
        values = [job.number, job.type, now, now + job.options.result_ttl, value.decode(), ref]
        await connection.execute(_RESULT, values)

    async def rescue(
        self,
        receipts: Sequence[str],
        *,
        overdue: bool = False,
        died: bool = False,
        alone: bool = True,
        reason: str = "",
    ) -> None:
        pairs = {receipt: pair for receipt in receipts if (pair := number_of_receipt(receipt)) is not None}

        async def decide(_c: Connection, decider: Decider, rows: dict[int, Row]) -> list[Changed]:
            changed = []
            for receipt, (number, nonce) in pairs.items():
                job = rows.get(number)
                if job is None or job.nonce != nonce or (overdue and job.expires > decider.now):
                    continue
                cost = decider.now - job.leased
                event = decider.rescue(job, died=died, alone=alone, reason=reason)
                changed.append(Changed(job, receipt, cost, event))
            return changed

        if pairs:
            await self._changes.change([number for number, _nonce in pairs.values()], decide)

    async def close(self) -> None:
        """Return when nothing is under way."""
        await self._acks.close()


def _cost(settlement: Settlement, held: int) -> int:
    """How long an attempt ran: what its worker says, but not more than it held the lease; microseconds."""
    if settlement.outcome == "release":
        return 0
    return max(1, held if settlement.took is None else min(int(settlement.took * SECOND), held))
