"""Time: what is due, and when something is due next."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

import msgspec

from ...core.job import SECOND, BulkRef
from ...core.lifecycle import State
from ...ports import Clock, Expired
from .changes import Changed, Changes
from .database import Connection, Database
from .gates import FORGET
from .presence import Presence
from .rows import Row
from .settle import Decider

#: Seconds a finished job is shown, and its settlement may be said again.
HISTORY: Final = 3600.0
_AT_ONCE: Final = 2000
#: How long the tables are not asked what is due while nothing is, microseconds.
_NET: Final = SECOND

_RELEASE: Final = """
UPDATE job SET state = 2 FROM (SELECT id FROM job WHERE state = 1 AND due <= %s ORDER BY due LIMIT %s
    FOR UPDATE SKIP LOCKED) AS due WHERE job.id = due.id RETURNING job.id, prio, type, fair
"""


class Due:
    """Releases delayed jobs, finds leases that ended, buries what is overdue, forgets what is old.

    Args:
        database, clock: where, and time.
        changes: applies what follows.
        presence: whose number this server has.
        key_window: seconds an idempotency key is remembered.
    """

    def __init__(
        self, database: Database, clock: Clock, changes: Changes, presence: Presence, key_window: float
    ) -> None:
        self._database, self._clock, self._changes, self._presence = database, clock, changes, presence
        self._candidates = changes.candidates
        self._key_window = int(key_window * SECOND)
        self._told: dict[str, int] = {}
        self._ends: list[tuple[int, str]] = []
        self._tidied = self._ticked = clock.now()
        self.behind = False

    def ends(self, at: int, receipt: str) -> None:
        """A lease of this server ends then, unless it is renewed."""
        heappush(self._ends, (at, receipt))

    def renewed(self, receipt: str) -> None:
        """A lease that may have been told as over is not."""
        self._told.pop(receipt, None)

    async def tick(self) -> list[Expired]:
        """Do what is due; returns the leases that ended and were not told before."""
        now = self._clock.now()
        scheduler = self._candidates.scheduler
        scheduler.tick(now)
        self._changes.tell_ready(())  # of what a limit let go
        wake = self.next_wake()
        if not self.behind and (wake is None or wake > now) and 0 <= now - self._ticked < _NET:
            return []  # nothing is due by what this server knows, and the others tell what they do
        rows = await self._database.rows(_RELEASE, [now, _AT_ONCE])
        self._ticked = now
        self.behind = len(rows) == _AT_ONCE
        for number, prio, type_, fair in sorted(rows):
            self._candidates.add(number, prio, type_, fair or None)
        await self.bury_overdue(now)
        self._changes.tell_ready(row[2] for row in rows)
        rows = await self._database.rows(
            "SELECT id, attempt, nonce, holder, ttr, expires FROM job WHERE state = 3 AND expires <= %s"
            " ORDER BY expires, id",
            [now],
        )
        expired: list[Expired] = []
        told: dict[str, int] = {}
        for number, attempt, nonce, holder, ttr, expires in rows:
            receipt = f"{number}-{attempt}-{nonce:x}"
            told[receipt] = expires
            if self._told.get(receipt) != expires:
                expired.append(Expired(receipt, self._changes.ids.of(number), holder, ttr / 1000))
        self._told = told
        while self._ends and self._ends[0][0] <= now:
            heappop(self._ends)
        if now - self._tidied > 60 * SECOND:
            self._tidied = now
            await self._tidy(now)
        await self.look_ahead()
        return expired

    async def bury_overdue(self, now: int) -> None:
        """Bury jobs that still wait when their time is over."""
        rows = await self._database.rows(
            "SELECT id FROM job WHERE overdue > 0 AND overdue <= %s AND state IN (1, 2) LIMIT 1000", [now]
        )

        async def decide(_c: Connection, decider: Decider, found: dict[int, Row]) -> list[Changed]:
            over = [
                j for j in found.values() if decider.is_over(j) and j.state in (State.DELAYED, State.READY)
            ]
            return [Changed(job, "", -1, decider.expired(job)) for job in over]

        if rows:
            await self._changes.change([row[0] for row in rows], decide)

    async def _tidy(self, now: int) -> None:
        """Forget results, keys and finished jobs whose time is over."""
        rows = await self._database.rows("DELETE FROM result WHERE until <= %s RETURNING bulk", [now])
        refs = [msgspec.json.decode(row[0], type=BulkRef) for row in rows if row[0] is not None]
        await self._changes.delete_bulk(refs)
        await self._database.rows("DELETE FROM key WHERE at <= %s", [now - self._key_window], patient=True)
        await self._database.rows(FORGET, [(now - 60 * SECOND) * 1000])
        await self._database.rows(
            "DELETE FROM done WHERE finished <= %s", [now - int(HISTORY * SECOND)], patient=True
        )

    async def look_ahead(self) -> None:
        """When the tables say that something is due next."""
        self._changes.wake_at = None
        [row] = await self._database.rows(
            "SELECT (SELECT min(due) FROM job WHERE state = 1), (SELECT min(expires) FROM job WHERE state = 3"
            " AND expires > %s AND server <> %s),"
            " (SELECT min(overdue) FROM job WHERE overdue > 0 AND state IN (1, 2))",
            [self._clock.now(), self._presence.number],
        )
        for at in row:
            if at is not None:
                self._changes.wake_by(at)

    def next_wake(self) -> int | None:
        """When something is due next as far as this server knows, microseconds."""
        leases, ends = self._candidates.leases, self._ends
        while ends and ((held := leases.get(ends[0][1])) is None or held.expires != ends[0][0]):
            heappop(ends)
        wakes = (self._changes.wake_at, self._candidates.scheduler.next_wake(), ends[0][0] if ends else None)
        return min((at for at in wakes if at is not None), default=None)
