"""The engine on PostgreSQL: jobs are rows, every promise is a commit, several servers share them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

from ...core.job import NewJob
from ...core.lifecycle import State
from ...core.outcome import Settlement
from ...core.shares import Shares
from ...errors import NotFound
from ...journal.log import Journal
from ...journal.scan import Apply
from ...ports import (
    BulkStore,
    Clock,
    CronMark,
    Expired,
    Inserted,
    JobEvent,
    Lease,
    Refusal,
    Renewal,
    Revoked,
    Selection,
)
from ...postgres.tables import KEY_WINDOW, MAX_PAYLOAD
from .candidates import Candidates
from .changes import Changed, Changes
from .checks import check_durable
from .control import Controller
from .database import Connection, Database
from .due import Due
from .ending import Ender
from .feeder import Feeder
from .gates import Gates
from .ids import Ids
from .insert import Inserter
from .lease import Leaser
from .look import Look
from .parameters import Parameters
from .presence import Presence, Told
from .put import Writer
from .rows import COLUMNS, EXPIRES, Row, job_of
from .schema import check_version, look_at_schema
from .settle import Decider

#: Seconds a server has been there before it takes others for dead: those that live are back by then.
SETTLE: Final = 3.0
#: Seconds a close waits for PostgreSQL.
_CLOSE: Final = 10.0


class PostgresEngine:
    """See :class:`kqs.ports.Engine`. Made by :func:`open`.

    Attributes:
        feeder: accepts jobs first, where that is wanted.
    """

    name = "postgres"
    max_payload = MAX_PAYLOAD
    capabilities = frozenset(
        {"cancel", "cron", "expiry", "fair_share", "idempotency", "inspect", "leases", "pause"}
        | {"results", "shared", "unique", "watch"}
    )

    def __init__(
        self,
        config: Parameters,
        database: Database,
        clock: Clock,
        prefix: str,
        *,
        random: Callable[[], float],
        nonce: Callable[[int], int],
        bulk: BulkStore | None,
        poll: float,
        settle: float,
        key_window: float,
    ) -> None:
        self._database, self._clock = database, clock
        self._ids = Ids(prefix)
        self._candidates = Candidates(clock.now())
        scheduler = self._candidates.scheduler
        self._changes = Changes(database, clock, self._candidates, self._ids, random, bulk)
        self._look = Look(database, self._ids, clock, scheduler, bulk)
        self._presence = Presence(database, self._heard, self._poll, poll, settle)
        self._changes.presence = self._presence
        self._gates = Gates(scheduler)
        flights = max(1, config.writers // 2)
        self._inserter = Inserter(
            database, clock, self._changes, Writer(database, clock, flights), key_window
        )
        self._due = Due(database, clock, self._changes, self._presence, key_window)
        self._leaser = Leaser(
            database, clock, self._changes, self._due, self._gates, nonce, lambda: self._presence.number
        )
        self._ender = Ender(database, clock, self._changes, bulk, flights)
        self._controller = Controller(database, clock, self._changes, self._look, self._presence)
        self._suspects: set[int] = set()
        self.feeder: Feeder | None = None

    def accept_first(
        self,
        open_journal: Callable[[Apply], Journal],
        random: Callable[[], float],
        window: int,
        limit: int,
    ) -> None:
        """Accept jobs in a journal before PostgreSQL has them. See :func:`open`."""
        self.feeder = self._inserter.feeder = self._look.feeder = Feeder(
            self._database,
            self._presence,
            self._ids,
            self._inserter.entered,
            open_journal,
            self._clock,
            random=random,
            window=window,
            limit=limit,
        )

    async def start(self) -> None:
        """Be one of the servers: known to the others, and in charge of what dead ones left."""
        await self._presence.open()
        await self._take_over(await self._presence.dead())
        await self._controller.load_pauses()
        await self._candidates.load(self._database)
        await self._due.look_ahead()
        if self.feeder is not None:
            await self.feeder.start()
        self._presence.start()

    def on_ready(self, notify: Callable[[Sequence[str]], None]) -> None:
        self._changes.notify = notify

    def on_revoked(self, notify: Callable[[Sequence[Revoked]], None]) -> None:
        self._changes.revoked = notify

    def arrange(self, shares: Shares) -> None:
        self._candidates.scheduler.arrange(shares, self._clock.now())
        self._changes.tell_ready(())

    # -- jobs in, out and over --------------------------------------------------------------------

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        return await self._inserter.put(jobs)

    async def fire(self, name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        return await self._inserter.fire(name, upto, jobs)

    async def fired(self) -> dict[str, CronMark]:
        return await self._inserter.fired()

    async def forget_cron(self, name: str) -> None:
        await self._inserter.forget_cron(name)

    async def reserve(
        self, types: Collection[str], limit: int, *, holder: str, local: bool = False
    ) -> list[Lease]:
        return await self._leaser.reserve(types, limit, holder=holder, local=local)

    async def renew(self, receipts: Sequence[str], progress: dict[str, Any] | None = None) -> list[Renewal]:
        return await self._leaser.renew(receipts, progress)

    def held_by(self, holder: str) -> list[str]:
        return [held.receipt for held in self._candidates.leases.values() if held.holder == holder]

    async def settle(self, settlements: Sequence[Settlement]) -> list[Refusal]:
        return await self._ender.settle(settlements)

    async def rescue(
        self,
        receipts: Sequence[str],
        *,
        overdue: bool = False,
        died: bool = False,
        alone: bool = True,
        reason: str = "",
    ) -> None:
        await self._ender.rescue(receipts, overdue=overdue, died=died, alone=alone, reason=reason)

    async def tick(self) -> list[Expired]:
        return await self._due.tick()

    def next_wake(self) -> int | None:
        return self._due.next_wake()

    @property
    def behind(self) -> bool:
        return self._due.behind

    # -- control and inspection -------------------------------------------------------------------

    async def control(self, verb: str, selection: Selection) -> int:
        return await self._controller.control(verb, selection)

    async def pause(self, type: str, paused: bool, *, by: str = "") -> None:
        await self._controller.pause(type, paused, by=by)

    async def paused(self) -> list[str]:
        return await self._controller.paused()

    def watch(
        self, listener: Callable[[JobEvent], None], *, id: str | None = None, type: str | None = None
    ) -> Callable[[], None]:
        return self._changes.watchers.add(listener, None if id is None else self._ids.number(id), type)

    async def job(self, id: str, *, data: bool = False) -> dict[str, Any]:
        return await self._look.job(id, data)

    async def jobs(
        self, *, state: str | None, type: str | None, fair: str | None = None, limit: int, after: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        return await self._look.jobs(state, type, fair, limit, after)

    async def why(self, id: str) -> dict[str, Any]:
        return await self._look.why(id)

    async def stats(self, type: str | None = None) -> dict[str, Any]:
        fed: dict[str, Any] = {}
        if self.feeder is not None:
            fed = {"journal": self.feeder.feed.journal.stats(), "feed": self.feeder.feed.stats()}
        return {
            **await self._look.counts(type, self._changes.done),
            "paused": await self.paused(),
            "lanes": len(self._candidates.scheduler),
            "limits": self._candidates.scheduler.limits(),
            **fed,
            "postgresql": {"server": self._presence.number, "leases": len(self._candidates.leases)},
        }

    async def ready_types(self, among: Callable[[str], bool] | None = None) -> Iterator[tuple[str, int]]:
        return await self._look.ready_types(among)

    async def bulk_names(self) -> set[str]:
        return await self._look.bulk_names()

    @property
    def accepting(self) -> bool:
        return not self._inserter.closing and (self.feeder is None or self.feeder.feed.accepting)

    @property
    def longest_ttr(self) -> float:
        return max((held.ttr for held in self._candidates.leases.values()), default=0) / 1000

    # -- other servers ----------------------------------------------------------------------------

    async def _heard(self, told: Told) -> None:
        """Another server told something."""
        if told.pauses:
            await self._controller.load_pauses()
        if told.revoked:
            self._changes.revoked([Revoked(receipt, holder) for receipt, holder in told.revoked])
        if told.freed:
            await self._look_at_limits()
        self._changes.arrived(told)
        if told.types:
            self._candidates.dirty = True
            news = await self._candidates.load(self._database) if "*" in told.types else set(told.types)
            if news:
                self._changes.notify(sorted(news))

    async def _poll(self) -> None:
        """The net under the notices and under lost replies, and the end of what dead servers left."""
        await look_at_schema(self._database)
        await self._controller.load_pauses()
        news = await self._candidates.load(self._database)
        if news := news | await self._leaser.look_back():
            self._changes.notify(sorted(news))
        before = self._changes.wake_at
        await self._due.look_ahead()
        if before is not None:
            self._changes.wake_by(before)
        await self._look_at_limits()
        dead = await self._presence.dead()
        await self._take_over(dead & self._suspects)
        self._suspects = dead

    async def _look_at_limits(self) -> None:
        if self._candidates.scheduler.awaited():
            async with self._database.connection(soon=True) as connection:
                await self._gates.refresh(connection, self._presence.number)
            self._changes.tell_ready(())

    async def _take_over(self, dead: set[int]) -> None:
        """Leases of dead servers: those that died with them are free again, the others are ours now."""
        if not dead:
            return
        rows = await self._database.rows(
            f"SELECT {COLUMNS} FROM job WHERE state = 3 AND local AND server = ANY(%s) ORDER BY id",
            [sorted(dead)],
        )
        numbers = [row[0] for row in rows]

        async def decide(_c: Connection, decider: Decider, found: dict[int, Row]) -> list[Changed]:
            return [
                Changed(job, job.receipt, 0, decider.never_was(job))
                for job in found.values()
                if job.state is State.RESERVED and job.local and job.number in numbers
            ]

        if numbers:
            await self._changes.change(numbers, decide)
        rows = await self._database.rows(
            f"UPDATE job SET server = %s, expires = least(expires, {EXPIRES})"
            f" WHERE state = 3 AND NOT local AND server = ANY(%s) RETURNING {COLUMNS}",
            [self._presence.number, self._clock.now(), sorted(dead)],
        )
        for job in sorted(map(job_of, rows), key=lambda job: (job.leased, job.number)):
            held = (job.leased, job.expires, job.ttr, job.holder, job.receipt)
            self._due.ends(job.expires, job.receipt)
            self._candidates.adopt(job.number, job.type, job.options.fair, job.prio, held)

    async def close(self) -> None:
        self._leaser.closing = True
        timer = asyncio.get_running_loop().call_later(_CLOSE, self._database.end)
        await self._inserter.close()
        await self._ender.close()
        await self._presence.close()
        timer.cancel()
        await self._database.close()


async def open(
    config: Parameters,
    clock: Clock,
    *,
    random: Callable[[], float],
    nonce: Callable[[int], int],
    bulk: BulkStore | None = None,
    poll: float = 1.0,
    settle: float = SETTLE,
    key_window: float = KEY_WINDOW,
    open_journal: Callable[[Apply], Journal] | None = None,
    window: int = 64 * 1024 * 1024,
    limit: int = 1 << 30,
) -> PostgresEngine:
    """A started engine.

    Args:
        config: where, and how many connections.
        clock: time; several servers need clocks that agree.
        random: draws from [0, 1), for jitter.
        nonce: draws random bits, for receipts.
        bulk: where oversize payloads lie.
        poll: seconds between two looks at what other servers did, should a notice be lost.
        settle: seconds until this server takes others for dead, from its start and from each time PostgreSQL
            is back: after a restart of PostgreSQL all servers look dead until they are connected again.
        key_window: seconds an idempotency key is remembered.
        open_journal: opens a journal that accepts jobs before PostgreSQL has them, replaying its frames into
            the callback it is given; None: PostgreSQL accepts.
        window, limit: see :class:`~kqs.engines.feed.Feed`.

    Raises:
        ConfigError: the server loses what it confirms, its tables are older or newer, or the journal holds
            jobs for another database.
        Busy: it can't be reached.
    """
    database = Database(
        config.url,
        config.schema,
        writers=config.writers,
        leasers=config.leasers,
        timeout=config.connect_timeout,
    )
    connection = await database.connect()
    try:
        await check_durable(connection, unsafe=config.unsafe)
        await check_version(connection, config.schema)
        cursor = await connection.execute("SELECT prefix FROM cluster")
        row = await cursor.fetchone()
        if row is None:
            raise NotFound("the table cluster is empty: it held what ids begin with; restore it")
    finally:
        await connection.close()
    await database.open()
    engine = PostgresEngine(
        config,
        database,
        clock,
        row[0],
        random=random,
        nonce=nonce,
        bulk=bulk,
        poll=poll,
        settle=settle,
        key_window=key_window,
    )
    try:
        if open_journal is not None:
            engine.accept_first(open_journal, random, window, limit)
        await engine.start()
    except BaseException:
        await engine.close()
        raise
    return engine
