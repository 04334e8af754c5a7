"""Jobs on their way in: of many callers in one COPY and one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Final, NamedTuple

import psycopg
from psycopg import errors as pg
from psycopg.rows import TupleRow

from ...core.job import NewJob
from ...errors import Busy, Internal
from ...ports import Clock
from ...postgres.copying import copied, copy_into, encode
from ...postgres.tables import BLOCK
from .database import Batcher, Connection, Database

#: Bytes in one COPY, about.
_MOST: Final = 4 * 1024 * 1024
#: Seconds the outcome of a commit is asked for, before the caller is told that it is unknown.
UNKNOWN: Final = 30.0
_INSERTED: Final = "SELECT EXISTS (SELECT FROM job WHERE id = %s) OR EXISTS (SELECT FROM done WHERE id = %s)"
#: Its commit returns when all that was committed before it is on the synchronous standbys.
_BARRIER: Final = "SELECT pg_logical_emit_message(true, 'kqs', '')"
_COPY: Final = copy_into("").encode()


class Incoming(NamedTuple):
    """Jobs of one caller, as rows of a COPY, and their numbers."""

    rows: bytes
    numbers: list[int]


class Numbers:
    """Numbers of this server's jobs, ascending, from blocks of the sequence."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._free: list[range] = []
        self._lock = asyncio.Lock()

    async def take(self, count: int) -> list[int]:
        """That many numbers, each given once."""
        async with self._lock:
            have = sum(map(len, self._free))
            if have < count:
                blocks = -(-(count - have) // BLOCK)
                rows = await self._database.rows(
                    "SELECT nextval('job_number') FROM generate_series(1, %s)", [blocks]
                )
                self._free += [range(row[0], row[0] + BLOCK) for row in rows]
            numbers: list[int] = []
            while len(numbers) < count:
                block = self._free[0]
                part = block[: count - len(numbers)]
                numbers += part
                if len(part) == len(block):
                    del self._free[0]
                else:
                    self._free[0] = block[len(part) :]
            return numbers


class Writer:
    """Writes new jobs.

    Args:
        database: where to.
        clock: time.
        flights: COPYs under way at a time.
    """

    def __init__(self, database: Database, clock: Clock, flights: int) -> None:
        self._database, self._clock = database, clock
        self.numbers = Numbers(database)
        self._batcher: Batcher[Incoming, None] = Batcher(
            self._run, flights=flights, most=_MOST, weight=lambda incoming: len(incoming.rows)
        )

    def encode(self, jobs: Sequence[NewJob], numbers: list[int]) -> Incoming:
        now = self._clock.now()
        rows = b"".join([encode(job, number, now) for job, number in zip(jobs, numbers, strict=True)])
        return Incoming(rows, numbers)

    async def write(self, incoming: Incoming) -> None:
        """Return when the jobs are durable.

        Raises:
            Busy, DiskFull: none is there.
        """
        await self._batcher.ask(incoming)

    async def _run(self, batch: list[Incoming]) -> list[BaseException | None]:
        transaction = 0

        async def work(connection: Connection) -> None:
            nonlocal transaction
            transaction = 0
            cursor = await connection.execute("SELECT pg_current_xact_id()::text::bigint")
            row = await cursor.fetchone()
            assert row is not None
            transaction = row[0]
            await copy(connection, [incoming.rows for incoming in batch])

        try:
            await self._database.transact(work)
        except Busy as error:
            unknown = transaction and not _rolled_back(error)
            if not unknown or not await self._committed(transaction, batch[0].numbers[0]):
                raise
        except psycopg.Error as error:
            raise Internal(f"PostgreSQL refused the jobs: {error}") from error
        return [None] * len(batch)

    async def _committed(self, transaction: int, number: int) -> bool:
        """Whether a transaction whose connection was lost was committed: asked until the server tells.

        Its rows are the proof, among the live jobs or those that are done, once a commit after theirs is
        confirmed: a server that was killed, or told to wait no longer, shows rows that no standby has. That
        its number is committed is none: when PostgreSQL was killed before the number was on disk, another
        transaction gets the same one. Ours is not there then, so that an aborted one says no. One that is in
        progress may still commit: its process has not noticed yet.

        Args:
            transaction: its number.
            number: of a job that it inserts.

        Raises:
            Internal: the server stays away.
        """
        limit = monotonic() + UNKNOWN
        while monotonic() < limit and not self._database.ended:
            try:
                status = await self._status(transaction)
                if status == "aborted":
                    return False
                if status != "in progress":
                    [row] = await self._database.rows(_INSERTED, [number, number])
                    if row[0]:
                        await self._database.rows(_BARRIER)
                    return bool(row[0])
            except Busy:
                pass
            await asyncio.sleep(0.1)
        raise Internal("PostgreSQL went away while it took the jobs; whether they were accepted is unknown")

    async def _status(self, transaction: int) -> str:
        try:
            [row] = await self._database.rows("SELECT pg_xact_status(%s::text::xid8)", [str(transaction)])
        except pg.InvalidParameterValue:
            return "aborted"  # "in the future": nothing of it was on disk when the server was killed
        return str(row[0])

    async def close(self) -> None:
        await self._batcher.close()


def _rolled_back(error: Busy) -> bool:
    """Whether the server itself refused: but for its shutdown, it has undone the transaction then."""
    cause = error.__cause__
    state = cause.sqlstate if isinstance(cause, psycopg.Error) else None
    return state is not None and not state.startswith(("08", "57P"))


async def copy(connection: Connection, rows: Sequence[bytes]) -> None:
    """COPY encoded rows, in the connection's transaction."""
    cursor: psycopg.AsyncCursor[TupleRow] = connection.cursor()
    async with cursor.copy(_COPY) as into:
        await into.write(copied(rows))
