"""Connections, transactions, and what PostgreSQL's errors mean to a caller."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Generic, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg import errors as pg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from ...errors import Busy, DiskFull

Connection = AsyncConnection[TupleRow]
T = TypeVar("T")
R = TypeVar("R")

#: Another transaction was in the way: the same again is right.
_AGAIN: Final = (pg.DeadlockDetected, pg.SerializationFailure, pg.UniqueViolation)
_TRIES: Final = 20
#: Not the fault of what was asked. So are missing tables and rights (a ProgrammingError by the server).
_AWAY: Final = (psycopg.OperationalError, psycopg.InterfaceError, pg.ReadOnlySqlTransaction)
#: How long a server that was stopped may keep locks from the others.
_STOPPED: Final = "10s"
#: How long somebody else's lock is waited for.
_LOCKED: Final = "30s"
#: Milliseconds after which a peer that confirms nothing of what was sent is gone. One that is silent while
#: nothing is under way is found by TCP keepalive, which takes as long.
_UNCONFIRMED: Final = 11_000
#: Seconds a connection may be used at a time. A PostgreSQL that is frozen never answers.
_USED: Final = 60.0


class Database:
    """Two pools: transactions of the one are on disk when they return, the other's (leases) soon after.

    Args:
        url: as libpq takes it.
        schema: where the tables are.
        writers, leasers: connections of each pool.
        timeout: seconds to connect, and to wait for a free connection.

    Attributes:
        refusal: why nothing can be asked now, or empty.
        ended: whether that is for good.
    """

    def __init__(self, url: str, schema: str, *, writers: int, leasers: int, timeout: float) -> None:
        self.url, self.schema, self._timeout = url, schema, timeout
        self.refusal = ""
        self.ended = False
        self._in_use: set[Connection] = set()
        self._durable = self._pool(writers, "on")
        self._soon = self._pool(leasers, "off")

    def settings(self, commit: str = "on") -> dict[str, Any]:
        """How a connection is made."""
        return {
            "conninfo": self.url,
            "autocommit": True,
            "application_name": "kqs",
            "client_encoding": "UTF8",
            "connect_timeout": max(2, round(self._timeout)),
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": _UNCONFIRMED,
            "options": f"-c search_path={self.schema} -c synchronous_commit={commit} -c jit=off"
            " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
            f" -c tcp_user_timeout={_UNCONFIRMED} -c lock_timeout={_LOCKED}"
            f" -c idle_in_transaction_session_timeout={_STOPPED}",
        }

    def _pool(self, size: int, commit: str) -> AsyncConnectionPool[Connection]:
        settings = self.settings(commit)
        conninfo = settings.pop("conninfo")
        return AsyncConnectionPool(
            conninfo,
            kwargs=settings,
            min_size=1,
            max_size=size,
            timeout=self._timeout,
            reconnect_timeout=2.0,
            open=False,
        )

    async def open(self) -> None:
        await self._durable.open()
        await self._soon.open()

    async def close(self) -> None:
        await self._durable.close(timeout=5)
        await self._soon.close(timeout=5)

    async def connect(self) -> Connection:
        """A connection of one's own.

        Raises:
            Busy: the server is not there.
        """
        try:
            return await AsyncConnection.connect(**self.settings())
        except psycopg.OperationalError as error:
            raise _as_call_error(error) from error

    def end(self) -> None:
        """Wait for nothing any more: what is under way fails as when the connection is lost."""
        self.refusal, self.ended = "this server is closing its connections to PostgreSQL", True
        for connection in self._in_use:
            _sever(connection)

    @asynccontextmanager
    async def connection(
        self, *, soon: bool = False, patient: bool = False, always: bool = False
    ) -> AsyncIterator[Connection]:
        """A connection from a pool, in autocommit mode.

        Args:
            soon: from which pool.
            patient: whether it may be used for however long.
            always: whether to give one in spite of a refusal.

        Raises:
            Busy: there is none, it was lost, or the server refuses what is asked.
            DiskFull: the server's disk is full.
        """
        if self.refusal and not always:
            raise Busy(self.refusal)
        try:
            async with (self._soon if soon else self._durable).connection() as connection:
                timer = None
                if not patient:
                    timer = asyncio.get_running_loop().call_later(_USED, _sever, connection)
                self._in_use.add(connection)
                try:
                    yield connection
                except pg.ReadOnlySqlTransaction:
                    await connection.close()  # the next one may be to the primary
                    raise
                finally:
                    self._in_use.discard(connection)
                    if timer is not None:
                        timer.cancel()
        except psycopg.Error as error:
            if isinstance(error, _AWAY) or (isinstance(error, psycopg.ProgrammingError) and error.sqlstate):
                raise _as_call_error(error) from error
            raise

    async def transact(self, work: Callable[[Connection], Awaitable[T]], *, soon: bool = False) -> T:
        """Do something in a transaction, anew when another one was in its way.

        Raises:
            Busy: the server is away, or was lost: then nobody knows whether it was done.
            DiskFull: nothing was done.
        """
        attempt = 0
        while True:
            reached = begun = False
            try:
                async with self.connection(soon=soon) as connection:
                    reached = True
                    async with connection.transaction():
                        begun = True
                        return await work(connection)
            except (Busy, *_AGAIN) as error:
                in_the_way = isinstance(error, _AGAIN) or isinstance(error.__cause__, _AGAIN)
                cut_before = reached and not begun
                attempt += 1
                if attempt == _TRIES or not (in_the_way or cut_before):
                    raise
            await asyncio.sleep(0.002 * attempt)

    async def rows(
        self, query: str, values: Sequence[Any] = (), *, soon: bool = False, patient: bool = False
    ) -> list[TupleRow]:
        """The rows one statement gives; see :meth:`connection`."""
        async with self.connection(soon=soon, patient=patient) as connection:
            cursor = await connection.execute(query.encode(), values)
            return await cursor.fetchall() if cursor.description else []


def _sever(connection: Connection) -> None:
    """Have whoever waits for an answer learn that none will come."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as own:
        own.shutdown(socket.SHUT_RDWR)


def _as_call_error(error: psycopg.Error) -> Busy | DiskFull:
    if isinstance(error, pg.DiskFull):
        return DiskFull("PostgreSQL's disk is full: no new jobs until space is free")
    text = str(error).strip().splitlines() or [type(error).__name__]
    what = "refuses" if isinstance(error, psycopg.ProgrammingError) else "is away or busy"
    return Busy(f"PostgreSQL {what}: {text[0][:200]}")


class Batcher(Generic[T, R]):
    """Gathers what is asked while an earlier batch is under way, so that many share one commit.

    Args:
        run: does a batch; answers each, in order.
        flights: batches under way at a time.
        most: of ``weight`` in one batch.
        weight: of one request.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[Sequence[R | BaseException]]],
        *,
        flights: int,
        most: int,
        weight: Callable[[T], int],
    ) -> None:
        self._run, self._flights, self._most, self._weight = run, flights, most, weight
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = False

    async def ask(self, request: T) -> R:
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._start)
        return await future

    def _start(self) -> None:
        self._woken = False
        while self._waiting and len(self._tasks) < self._flights:
            size = count = 0
            for request, _future in self._waiting:
                size += self._weight(request)
                if count and size > self._most:
                    break
                count += 1
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            task = asyncio.ensure_future(self._do(batch))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._start()

    async def _do(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        answers: Sequence[R | BaseException]
        try:
            answers = await self._run([request for request, _future in batch])
        except BaseException as error:  # every caller is told
            answers = [error] * len(batch)
        for (_request, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    async def close(self) -> None:
        """Return when nothing is under way."""
        while self._tasks or self._waiting:
            self._start()
            await asyncio.gather(*self._tasks, return_exceptions=True)
