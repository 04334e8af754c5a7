"""Changes of live jobs: the rows are locked, what follows is decided, and all is written in one commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from ...core.job import BulkRef
from ...core.lifecycle import State
from ...ports import BulkStore, Clock, JobEvent, Revoked
from ...postgres.notice import Arrived
from ..embedded.show import shown
from ..embedded.watch import Watchers, deliver
from .candidates import Candidates
from .database import Connection, Database
from .ids import Ids
from .presence import Presence
from .rows import COLUMNS, FINISH, UPDATE, Row, finish_values, job_of, update_values
from .settle import Decider

_WAITS: Final = (State.READY, State.DELAYED)
_STANDS: Final = (
    "SELECT id FROM job WHERE type = %s AND unique_key = %s AND id <> %s"
    " AND (state IN (1, 2) OR (state = 3 AND NOT unique_queued))"
)


class Changed(msgspec.Struct):
    """What became of a job: the receipt it had, what its attempt cost (below 0: none), and the event."""

    job: Row
    receipt: str
    cost: int
    event: str


Decide = Callable[[Connection, Decider, dict[int, Row]], Awaitable[list[Changed]]]


class Changes:
    """Applies changes and tells of them when they are durable.

    Attributes:
        done: jobs that ended through this server, by type.
        notify: told the types of jobs that became ready.
        revoked: told the leases that were taken from their workers.
        presence: tells other servers which types have ready jobs, and that a limit may let some go.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        candidates: Candidates,
        ids: Ids,
        random: Callable[[], float],
        bulk: BulkStore | None,
    ) -> None:
        self.database, self.clock, self.candidates, self.ids = database, clock, candidates, ids
        self._random, self._bulk = random, bulk
        self.watchers = Watchers()
        self.done: Counter[str] = Counter()
        self.notify: Callable[[Sequence[str]], None] = lambda types: None
        self.revoked: Callable[[Sequence[Revoked]], None] = lambda leases: None
        self.presence: Presence | None = None
        self.wake_at: int | None = None

    async def change(self, numbers: Sequence[int], decide: Decide) -> list[Changed]:
        """Lock jobs, decide, write.

        Args:
            numbers: the jobs.
            decide: changes jobs of those that are there; called again when another transaction was in
                the way.
        """

        async def work(connection: Connection) -> list[Changed]:
            query = f"SELECT {COLUMNS} FROM job WHERE id = ANY(%s) ORDER BY id FOR UPDATE"
            cursor = await connection.execute(query.encode(), [sorted(set(numbers))])
            rows = {row[0]: job_of(row) for row in await cursor.fetchall()}
            decider = Decider(self.clock.now(), self._random)
            changed = await decide(connection, decider, rows)
            plain: list[Row] = []
            ended: list[Row] = []
            for change in changed:
                job = change.job
                if job.state is State.DONE:
                    ended.append(job)
                elif job.options.unique is None or job.state not in _WAITS:
                    plain.append(job)
                else:
                    await self._write_unique(connection, decider, change, ended)
            await _many(connection, FINISH, list(map(finish_values, ended)))
            await _many(connection, UPDATE, list(map(update_values, plain)))
            return changed

        changed = await self.database.transact(work)
        self.told(changed)
        await self.delete_bulk(
            [
                c.job.options.bulk
                for c in changed
                if c.job.state is State.DONE and c.job.options.bulk is not None
            ]
        )
        return changed

    async def _write_unique(
        self, connection: Connection, decider: Decider, change: Changed, ended: list[Row]
    ) -> None:
        """A unique job waits again, unless another one with its key stands."""
        job = change.job
        assert job.options.unique is not None
        await _many(connection, FINISH, list(map(finish_values, ended)))
        ended.clear()
        cursor = await connection.execute(_STANDS, [job.type, job.options.unique.key, job.number])
        if (other := await cursor.fetchone()) is not None:
            change.event = decider.not_unique(job, self.ids.of(other[0]))
        await connection.execute(UPDATE.encode(), update_values(job))

    def told(self, changed: Sequence[Changed]) -> None:
        """What was changed is durable."""
        ready: dict[str, None] = {}
        for change in changed:
            job = change.job
            if change.receipt:
                self.candidates.ended(change.receipt, change.cost)
            if job.state is State.READY:
                self.candidates.add(job.number, job.prio, job.type, job.options.fair)
                ready[job.type] = None
            else:
                self.candidates.drop(job.number)
                if job.state is State.DELAYED:
                    self.wake_by(job.due)
                elif job.state is State.DONE:
                    self.done[job.type] += 1
        self.tell_ready(ready)
        if self.watchers:
            self.happened((change.event, change.job) for change in changed)

    def tell_ready(self, types: Iterable[str]) -> None:
        """Jobs of these types are ready: here it is known at once."""
        names = dict.fromkeys(types)
        if self.presence is not None and (names or self.candidates.freed):
            self.presence.tell_types(names, freed=self.candidates.freed)
            self.candidates.freed = False
        if reopened := self.candidates.scheduler.reopened:
            names |= dict.fromkeys(reopened)
            reopened.clear()
        if names:
            self.notify(list(names))

    def arrived(self, told: Arrived) -> None:
        """Jobs that came without a server, as a notice tells: the claim finds out whether they are there."""
        for number, prio, type_, fair in told.jobs:
            self.candidates.add(number, prio, type_, fair or None)
        if told.due:
            self.wake_by(told.due)
        if told.jobs:
            self.notify(list({job[2] for job in told.jobs}))

    def happened(self, events: Iterable[tuple[str, Row]]) -> None:
        """Tell watchers."""
        now = self.clock.now()
        for event, job in events:
            if listeners := self.watchers.of(job.number, job.type):
                deliver([(listeners, JobEvent(event, now, shown(job, self.ids.of(job.number))))])

    def wake_by(self, at: int) -> None:
        """Something is due then."""
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at

    async def delete_bulk(self, refs: list[BulkRef]) -> None:
        if refs and self._bulk is not None:
            await self._bulk.delete(refs)


async def _many(connection: Connection, query: str, values: list[tuple[Any, ...]]) -> None:
    if not values:
        return
    if len(values) == 1:
        await connection.execute(query.encode(), values[0])
        return
    async with connection.cursor() as cursor:
        await cursor.executemany(query.encode(), values)
