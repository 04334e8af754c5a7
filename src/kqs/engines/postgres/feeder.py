"""Accepts jobs in a journal of its own, and copies them into the tables in the background.

How far it came is a row that is written in the transaction of the copy. So what is offered again, after a
crash or a commit whose reply was lost, is known and not copied: a job that has ended is never revived.

A job's number is the moment it was accepted, in microseconds since 1970, and which journal it is of. So jobs
of several servers stand in the order of their clocks, and their ids are known while PostgreSQL is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, TypeAlias

import psycopg

from ...core.job import NewJob
from ...errors import Busy, ConfigError, DiskFull, EngineAway
from ...journal.log import Journal
from ...journal.scan import Apply
from ...ports import Clock
from ...postgres.copying import encode
from ..feed import Fed, Feed
from .database import Connection, Database
from .ids import Ids
from .presence import Presence
from .put import copy

#: Bits of a number that say which journal it is of.
_BITS: Final = 11
#: Seconds that who asks for a job waits until it is in the tables.
_PATIENCE: Final = 1.0
#: Seconds the server that had the journal before has to be gone.
_GONE: Final = 15.0
Entered: TypeAlias = Callable[[Sequence[NewJob], Sequence[int], Sequence[int]], None]


class Feeder:
    """See the module.

    Args:
        database: where to.
        presence: this server's.
        ids: names jobs.
        entered: told the jobs that are in the tables, their numbers, and when they were accepted.
        open_journal: opens the journal, replaying its frames into the callback it is given.
        clock: time.
        random: draws from [0, 1), for jitter.
        window: bytes of undelivered jobs kept in memory.
        limit: bytes of memory all that is undelivered may take; inserts get ``busy`` beyond it.
    """

    def __init__(
        self,
        database: Database,
        presence: Presence,
        ids: Ids,
        entered: Entered,
        open_journal: Callable[[Apply], Journal],
        clock: Clock,
        *,
        random: Callable[[], float],
        window: int,
        limit: int,
    ) -> None:
        self._database, self._presence = database, presence
        self._entered, self._clock = entered, clock
        self.feed = Feed(
            open_journal, clock, deliver=self._deliver, random=random, window=window, limit=limit
        )
        self._number = self._upto = 0
        self.feed.log.id_of = lambda _sequence, moment: ids.of(self._number_at(moment))

    def _number_at(self, moment: int) -> int:
        return moment << _BITS | self._number

    async def start(self) -> None:
        """Find out which journal this is, and begin to deliver.

        Raises:
            ConfigError: it holds jobs that were accepted for another database, or another server has it.
        """
        name = self.feed.journal.journal_id
        rows = await self._database.rows("SELECT number, server FROM feed WHERE journal = %s", [name])
        if not rows:
            if waiting := self.feed.waiting:
                raise ConfigError(
                    f"postgres.url: {waiting} jobs wait here that were accepted for another database; start "
                    "with that one until 'kqs stats' shows no job in its feed"
                )
            rows = await self._database.rows(
                "INSERT INTO feed (number, journal) VALUES (nextval('feed_number'), %s)"
                " RETURNING number, server",
                [name],
            )
        self._number, before = rows[0]
        await self._succeed(before)
        [row] = await self._database.rows(
            "UPDATE feed SET server = %s WHERE number = %s RETURNING upto, last",
            [self._presence.number, self._number],
        )
        self._upto, last = row
        self.feed.log.last = max(self.feed.log.last, last >> _BITS)
        await self.feed.start()

    async def _succeed(self, before: int) -> None:
        """Return when the server that delivered before is gone."""
        limit = monotonic() + _GONE
        while await self._presence.lives(before):
            if monotonic() > limit:
                raise ConfigError(
                    "postgres.accept: another server delivers from a copy of this data directory's feed; "
                    "give each server a directory of its own"
                )
            await asyncio.sleep(0.1)

    def numbers(self, count: int) -> list[int]:
        """Numbers for jobs that are inserted at once; see :meth:`used`."""
        return [self._number_at(moment) for moment in self.feed.log.moments(count, self._clock.now())]

    async def used(self, connection: Connection, numbers: Sequence[int]) -> None:
        """Numbers are given to jobs in a transaction: they are never given again, whatever the clock says."""
        await connection.execute(
            "UPDATE feed SET last = greatest(last, %s) WHERE number = %s", [max(numbers), self._number]
        )

    def _holds(self, number: int) -> bool:
        """Whether a job may have been accepted here and not be in the tables yet."""
        own = number & ((1 << _BITS) - 1) == self._number
        return own and number > self._upto and number >> _BITS <= self.feed.log.last and self.feed.waiting > 0

    async def arrived(self, number: int) -> bool:
        """Return when a job is in the tables, if it was accepted here; False: that takes long."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while self._holds(number):
                    await self.feed.moved()
        except TimeoutError:
            return False
        return True

    async def _deliver(self, jobs: Sequence[Fed]) -> None:
        numbers = [self._number_at(fed.accepted) for fed in jobs]

        async def work(connection: Connection) -> int:
            cursor = await connection.execute(
                "SELECT upto FROM feed WHERE number = %s AND server = %s FOR UPDATE",
                [self._number, self._presence.number],
            )
            row = await cursor.fetchone()
            if row is None:
                raise EngineAway("another server delivers from a copy of this one's journal: stop one")
            new = [
                encode(fed.job, number, fed.accepted)
                for fed, number in zip(jobs, numbers, strict=True)
                if number > row[0]
            ]
            if new:
                await copy(connection, new)
                await connection.execute(
                    "UPDATE feed SET upto = %s, last = greatest(last, %s) WHERE number = %s",
                    [numbers[-1], numbers[-1], self._number],
                )
            return int(row[0])

        try:
            before = await self._database.transact(work)
        except (Busy, DiskFull, psycopg.Error) as error:
            raise EngineAway(str(error)) from error
        self._upto = max(before, numbers[-1])
        fresh = [(fed, number) for fed, number in zip(jobs, numbers, strict=True) if number > before]
        for fed in jobs:
            fed.delivered = True
        self._entered([f.job for f, _ in fresh], [n for _, n in fresh], [f.accepted for f, _ in fresh])
