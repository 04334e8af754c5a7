"""Limits that hold across servers.

A claim of limited jobs takes the row of each limit as a lock, counts the leases there are, and takes what
fits, in one transaction. So no more leases are given than a limit allows, whatever a server believed before.
What the count showed is what its scheduler goes by until the next one: it keeps it from asking in vain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, TypeAlias

from ...core.fairshare import Scheduler
from ...core.gates import Limit
from ...core.lanes import Lane
from .database import Connection

#: Type, fairness key, whether this server gave them, and how many leases.
Count: TypeAlias = tuple[str, str, bool, int]

_LOCK: Final = """
SELECT kind, name, full_at FROM gate JOIN unnest(%s::text[], %s::text[]) AS g (kind, name) USING (kind, name)
    ORDER BY kind, name FOR UPDATE OF gate
"""
_ADD: Final = """
INSERT INTO gate SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS g (kind, name, full_at)
    ORDER BY kind, name ON CONFLICT DO NOTHING
"""
_COUNT: Final = """
SELECT type, fair, server = %s, count(*) FROM job
    WHERE state = 3 AND (%s OR type = ANY(%s) OR fair = ANY(%s)) GROUP BY 1, 2, 3
"""
#: Of these jobs, those that nobody has: locked.
CLAIMABLE: Final = """
SELECT id FROM job WHERE id = ANY(%s) AND state = 2 AND (overdue = 0 OR overdue > %s)
    AND NOT EXISTS (SELECT FROM pause WHERE pause.type = job.type) ORDER BY id FOR UPDATE SKIP LOCKED
"""
_SPEND: Final = """
UPDATE gate SET full_at = s.at FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS s (kind, name, at)
    WHERE gate.kind = s.kind AND gate.name = s.name AND gate.full_at <> s.at
"""
#: Of keys only: there are as many as fairness keys. A bucket that is full is as good as none.
FORGET: Final = "DELETE FROM gate WHERE kind = 'key' AND full_at < %s"


class Gates:
    """The limits of a scheduler, shared with other servers.

    Args:
        scheduler: whose limits.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def admit(
        self, connection: Connection, server: int, wanted: Sequence[tuple[int, Lane]], now: int
    ) -> tuple[list[int], set[int]]:
        """Of jobs under limits, those that may run now.

        Args:
            connection: in a transaction; the limits are locked until it ends.
            server: the number of this one.
            wanted: number and lane of each, in the order they are to run.
            now: microseconds.

        Returns:
            The numbers of those, and of all that could be claimed but for the limits.
        """
        limits = list(dict.fromkeys(limit for _number, lane in wanted for limit in lane.limits))
        full = await self._lock(connection, limits)
        cursor = await connection.execute(CLAIMABLE.encode(), [[number for number, _lane in wanted], now])
        there = {row[0] for row in await cursor.fetchall()}
        counts = await _count(connection, server, limits)
        elsewhere = {limit: self._under(limit, counts, mine=False) for limit in limits}
        state = {
            limit: limit.as_of(elsewhere[limit] + self._under(limit, counts, mine=True), full[limit])
            for limit in limits
        }
        admitted = []
        for number, lane in wanted:
            gates = [state[limit] for limit in lane.limits]
            if number in there and all(gate.open_at(now) for gate in gates):
                admitted.append(number)
                for gate in gates:
                    gate.enter(now)
        spent = [gate for gate in state.values() if gate.rate]
        if admitted and spent:
            kinds, names = [gate.kind for gate in spent], [gate.name for gate in spent]
            await connection.execute(_SPEND.encode(), [kinds, names, [gate.full for gate in spent]])
        for limit, gate in state.items():
            self._scheduler.learn(limit, elsewhere[limit], gate.full)
        return admitted, there

    async def refresh(self, connection: Connection, server: int) -> None:
        """Look again at the limits that are closed because of what ran elsewhere."""
        if limits := self._scheduler.awaited():
            counts = await _count(connection, server, limits)
            for limit in limits:
                self._scheduler.learn(limit, self._under(limit, counts, mine=False))

    def _under(self, limit: Limit, counts: Iterable[Count], *, mine: bool) -> int:
        """How many leases of this server, or of the others, stand under a limit."""
        covers = self._scheduler.covers
        return sum(
            count for type_, fair, own, count in counts if own is mine and covers(limit, type_, fair or None)
        )

    @staticmethod
    async def _lock(connection: Connection, limits: Sequence[Limit]) -> dict[Limit, int]:
        """Lock limits; returns when the bucket of each is full."""
        names = [[limit.kind for limit in limits], [limit.name for limit in limits]]
        while True:
            cursor = await connection.execute(_LOCK.encode(), names)
            rows = {(kind, name): full for kind, name, full in await cursor.fetchall()}
            if len(rows) == len(limits):
                return {limit: rows[limit.kind, limit.name] for limit in limits}
            await connection.execute(_ADD.encode(), [*names, [limit.new for limit in limits]])


async def _count(connection: Connection, server: int, limits: Collection[Limit]) -> list[Count]:
    types = [limit.name for limit in limits if limit.kind == "type"]
    keys = [limit.name for limit in limits if limit.kind == "key"]
    whole = any(limit.kind == "class" for limit in limits)
    cursor = await connection.execute(_COUNT.encode(), [server, whole, types, keys])
    return await cursor.fetchall()
