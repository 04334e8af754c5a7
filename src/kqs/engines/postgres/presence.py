"""A server's life as the others see it: a connection that holds a lock, and hears what the others tell.

The lock goes with the connection, so a server that is killed is known to be gone at once; one whose machine
is cut off, when TCP keepalive gives it up. A restart of PostgreSQL and a failover take all locks at once: who
has not held its own for a while takes nobody for dead.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import Final

import msgspec
import psycopg
import structlog
from psycopg import sql

from ...errors import Busy, DiskFull
from ...postgres.notice import Arrived
from ...postgres.tables import channel
from .database import Connection, Database

#: Seconds between two tellings of the others.
_EVERY: Final = 0.02
#: Types named in one; more are told as all.
_NAMED: Final = 50
#: Numbers of the servers that are there.
_LIVE: Final = (
    "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid::bigint = %s"
    " AND objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_backoff: Final = (0.05, 0.1, 0.2, 0.5, 1.0)


class Told(Arrived, omit_defaults=True):
    """A notice: what servers tell each other, and who inserts without one of them.

    Attributes:
        by: the number of the server that tells.
        revoked: receipt and holder of leases that were taken from their workers.
        pauses: whether types were paused or resumed.
        freed: whether leases under limits ended.
    """

    by: int = 0
    revoked: list[tuple[str, str]] = msgspec.field(default_factory=list)
    pauses: bool = False
    freed: bool = False


class Presence:
    """Holds the lock, listens, tells.

    Args:
        database: where.
        heard: called with what another server told.
        poll: called every ``every`` seconds.
        settle: seconds this server must have been there before it takes others for dead.
    """

    def __init__(
        self,
        database: Database,
        heard: Callable[[Told], Awaitable[None]],
        poll: Callable[[], Awaitable[None]],
        every: float,
        settle: float,
    ) -> None:
        self._database, self._heard, self._poll, self._every = database, heard, poll, every
        self._settle = settle
        self.lock = zlib.crc32(database.schema.encode()) & 0x7FFFFFFF
        self.channel = channel(database.schema)
        self.number = 0
        self._connection: Connection | None = None
        self._since = self._away = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._types: set[str] = set()
        self._freed = False
        self._telling: asyncio.TimerHandle | None = None
        self._told: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Be there."""
        [row] = await self._database.rows("SELECT nextval('server_number')")
        self.number = row[0]
        self._connection = await self._connect()

    def start(self) -> None:
        """Listen and poll from now on."""
        self._tasks = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._polls())]

    async def _connect(self) -> Connection:
        connection = await self._database.connect()
        try:
            await connection.execute("SELECT pg_advisory_lock(%s, %s)", [self.lock, self.number])
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self.channel)))
        except BaseException:
            await connection.close()
            raise
        self._since = monotonic()
        return connection

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                if self._connection is None:
                    self._connection = await self._connect()
                    self._back()
                    await self._hear(Told(types=["*"]))
                failures = 0
                async for notice in self._connection.notifies():
                    told = _told(notice.payload)
                    if told is not None and told.by != self.number:
                        await self._hear(told)
                raise psycopg.OperationalError("the connection ended")
            except (psycopg.Error, Busy, DiskFull) as error:
                self._gone(error)
            except Exception:  # whatever it was, this server must be known to the others
                _log().exception("bug", task="listen")
            await self._disconnect()
            await asyncio.sleep(_backoff[min(failures, len(_backoff) - 1)])
            failures += 1

    async def _hear(self, told: Told) -> None:
        try:
            await self._heard(told)
        except (Busy, DiskFull):
            pass  # the poll finds out; the lock is kept meanwhile, for this server is alive

    def _gone(self, error: Exception) -> None:
        """PostgreSQL is away: told once."""
        if not self._away:
            self._away = monotonic()
            _log().warning("PostgreSQL is away", reason=str(error)[:200])

    def _back(self) -> None:
        if self._away:
            _log().info("PostgreSQL is back", after=round(monotonic() - self._away, 1))
        self._away = 0.0

    async def _polls(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                await self._poll()
            except (Busy, DiskFull):
                continue  # the listener tells of it
            except Exception:  # whatever it was, dead servers must be noticed
                _log().exception("bug", task="poll")

    def tell_types(self, types: Iterable[str], *, freed: bool = False) -> None:
        """Have the others know, soon: jobs of these types are ready, leases under limits ended."""
        self._types.update(types)
        self._freed = self._freed or freed
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_EVERY, self._flush)

    def _flush(self) -> None:
        self._telling = None
        types, self._types = sorted(self._types), set()
        freed, self._freed = self._freed, False
        self.tell(Told(types=types if len(types) <= _NAMED else ["*"], freed=freed))

    def tell(self, what: Told) -> None:
        """Tell the others; should it be lost, their poll finds out."""
        what.by = self.number
        task = asyncio.ensure_future(self._tell(what))
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    async def _tell(self, what: Told) -> None:
        text = msgspec.json.encode(what)
        if len(text) > 7000:
            text = msgspec.json.encode(Told(by=self.number, types=["*"], freed=what.freed))
        try:
            await self._database.rows("SELECT pg_notify(%s, %s)", [self.channel, text.decode()], soon=True)
        except (Busy, DiskFull):
            return

    async def dead(self) -> set[int]:
        """Servers that have leases and are gone; none while others may still be on their way back."""
        if self._connection is None or monotonic() - self._since < self._settle:
            return set()
        query = f"SELECT DISTINCT server FROM job WHERE state = 3 AND server NOT IN ({_LIVE})"
        return {row[0] for row in await self._database.rows(query, [self.lock])} - {self.number}

    async def lives(self, number: int) -> bool:
        """Whether a server, this one too, is there."""
        [row] = await self._database.rows(f"SELECT %s IN ({_LIVE})", [number, self.lock])
        return bool(row[0])

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._told, return_exceptions=True)
        await self._disconnect()


def _told(payload: str) -> Told | None:
    """What a notice says; None: it is somebody else's."""
    try:
        return msgspec.json.decode(payload, type=Told)
    except msgspec.MsgspecError:
        return None


def _log() -> structlog.stdlib.BoundLogger:
    log: structlog.stdlib.BoundLogger = structlog.get_logger()
    return log
