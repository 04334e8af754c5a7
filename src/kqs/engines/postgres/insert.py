"""Jobs come in: plain ones share a commit, those with a key are compared first; crons with their mark."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Final, TypeVar

from psycopg import errors as pg

from ...core.job import SECOND, NewJob
from ...core.lifecycle import State
from ...core.record import FLAG_BINARY
from ...errors import Busy, ShuttingDown
from ...ports import Clock, CronMark, Inserted
from ...postgres.copying import refuse_nul
from ...postgres.saying import asay
from ...postgres.statements import SortedOut, Steps, insert_once
from .changes import Changes
from .database import Connection, Database
from .feeder import Feeder
from .put import Writer, copy
from .rows import Row

#: How long a transaction that inserts the same key or unique job is waited for: it may be any program's.
_IMPATIENT: Final = "SET LOCAL lock_timeout = '1s'"

T = TypeVar("T")


class Inserter:
    """Inserts jobs.

    Args:
        database, clock: where, and time.
        changes: told of what became ready.
        writer: of plain jobs.
        key_window: seconds an idempotency key is remembered.

    Attributes:
        feeder: accepts the jobs of plain inserts first, where there is one.
    """

    def __init__(
        self, database: Database, clock: Clock, changes: Changes, writer: Writer, key_window: float
    ) -> None:
        self.feeder: Feeder | None = None
        self._database, self._clock, self._changes, self._writer = database, clock, changes, writer
        self._key_window = int(key_window * SECOND)
        self.closing = False

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        self._admit()
        for job in jobs:
            refuse_nul(job)
        if any(job.options.key is not None or job.options.unique is not None for job in jobs):
            return await self._put_once(jobs)
        if self.feeder is not None:
            return Inserted(await self.feeder.feed.put(jobs))
        numbers = await self._writer.numbers.take(len(jobs))
        await self._writer.write(self._writer.encode(jobs, numbers))
        self.entered(jobs, numbers)
        return Inserted([self._changes.ids.of(number) for number in numbers])

    def _admit(self) -> None:
        if self.closing:
            raise ShuttingDown("the server is shutting down; insert at another one or later")

    async def _numbers(self, count: int) -> list[int]:
        """Numbers for jobs that are inserted in a transaction of their own."""
        if self.feeder is not None:
            return self.feeder.numbers(count)
        return await self._writer.numbers.take(count)

    async def _copy(self, connection: Connection, jobs: Sequence[NewJob], numbers: list[int]) -> None:
        """Insert jobs in the connection's transaction."""
        await copy(connection, [self._writer.encode(jobs, numbers).rows])
        if self.feeder is not None:
            await self.feeder.used(connection, numbers)

    def entered(
        self, jobs: Sequence[NewJob], numbers: Sequence[int], accepted: Sequence[int] | None = None
    ) -> None:
        """New jobs are in the tables, accepted then, or now."""
        ready: dict[str, None] = {}
        moments = accepted or repeat(self._clock.now())
        new = list(zip(jobs, numbers, moments, strict=False))
        for job, number, moment in new:
            if job.delay:
                self._changes.wake_by(moment + job.delay)
            else:
                self._changes.candidates.add(number, job.prio, job.type, job.options.fair)
                ready[job.type] = None
            if job.options.expires:
                self._changes.wake_by(moment + job.options.expires)
        self._changes.tell_ready(ready)
        if self._changes.watchers:
            self._changes.happened(("accepted", _row(*each)) for each in new)

    async def _put_once(self, jobs: Sequence[NewJob]) -> Inserted:
        """Insert the jobs that are new; the others get the id of the one that has their key."""
        spare = await self._numbers(len(jobs))

        async def work(connection: Connection) -> SortedOut:
            once = insert_once("", jobs, spare, self._clock.now(), self._key_window)
            try:
                await connection.execute(_IMPATIENT)
                found = await _carry_out(connection, once)
            except pg.LockNotAvailable as error:
                raise Busy(
                    "a transaction that is still open has inserted a job with the same key or unique"
                ) from error
            if self.feeder is not None and found.fresh:
                await self.feeder.used(connection, [number for _, number in found.fresh])
            return found

        found = await self._database.transact(work)
        self.entered([job for job, _ in found.fresh], [number for _, number in found.fresh])
        return Inserted([self._changes.ids.of(number) for number in found.numbers], tuple(found.duplicates))

    async def fire(self, name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        self._admit()
        numbers = await self._numbers(len(jobs)) if jobs else []

        async def work(connection: Connection) -> bool:
            cursor = await connection.execute(
                "INSERT INTO cron VALUES (%s, %s, %s) ON CONFLICT (name) DO UPDATE SET at = excluded.at,"
                " last = greatest(cron.last, excluded.last) WHERE cron.at < excluded.at RETURNING 1",
                [name, upto, upto if jobs else 0],
            )
            if await cursor.fetchone() is None:
                return False
            if jobs:
                await self._copy(connection, jobs, numbers)
            return True

        if not await self._database.transact(work):
            return None
        self.entered(jobs, numbers)
        return [self._changes.ids.of(number) for number in numbers]

    async def fired(self) -> dict[str, CronMark]:
        return {
            name: CronMark(at, last) for name, at, last in await self._database.rows("SELECT * FROM cron")
        }

    async def forget_cron(self, name: str) -> None:
        self._admit()
        await self._database.rows("DELETE FROM cron WHERE name = %s", [name])

    async def close(self) -> None:
        """Return when nothing is under way."""
        self.closing = True
        if self.feeder is not None:
            await self.feeder.feed.close()
        await self._writer.close()


async def _carry_out(connection: Connection, steps: Steps[T]) -> T:
    """Say all there is to say."""
    async with connection.cursor() as cursor:
        try:
            step = next(steps)
            while True:
                step = steps.send(await asay(cursor, step))
        except StopIteration as end:
            result: T = end.value
            return result


def _row(job: NewJob, number: int, now: int) -> Row:
    """A new job as its row will read."""
    state = State.DELAYED if job.delay else State.READY
    flags = FLAG_BINARY if job.binary else 0
    return Row(
        number,
        job.type,
        state,
        job.prio,
        flags,
        now,
        now + job.delay,
        job.ttr,
        0,
        0,
        len(job.data),
        job.options,
    )
