"""Callers of PostgreSQL engines that go on whatever happens, and what they were told."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from psycopg import AsyncConnection

from kqs.core.outcome import Settlement
from kqs.engines.postgres import PostgresEngine, migrate
from kqs.engines.postgres import open as open_engine
from kqs.errors import Busy, DiskFull, Internal
from kqs.ports import Lease
from kqs.settings.engines import PostgresConfig
from kqs.testing.engines import new_job
from kqs.testing.postgres import PostgresServer
from tests.databases import started
from tests.support import PATIENCE

T = TypeVar("T")

AWAY = (Busy, DiskFull, Internal)


class Clock:
    def now(self) -> int:
        return time.time_ns() // 1000


@contextmanager
def running(*settings: str, address: str = "") -> Iterator[PostgresServer]:
    """A PostgreSQL with the tables, for the length of a block."""
    with started(*settings, address=address) as server:
        asyncio.run(migrated(server.url))
        yield server


async def migrated(url: str) -> None:
    """Make the tables."""
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        await migrate(connection)


async def open_at(url: str, *, connect_timeout: float = 2.0, **rest: Any) -> PostgresEngine:
    """An engine on tables that are there."""
    settings = {name: rest.pop(name) for name in ("writers", "leasers") if name in rest}
    config = PostgresConfig(url=url, connect_timeout=connect_timeout, **settings)
    return await open_engine(config, Clock(), random=random.random, nonce=random.getrandbits, **rest)


@asynccontextmanager
async def engine_at(url: str, **rest: Any) -> AsyncIterator[PostgresEngine]:
    """:func:`open_at` for the length of a block."""
    engine = await open_at(url, **rest)
    try:
        yield engine
    finally:
        await engine.close()


async def until(check: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
    """Look until ``check`` gives something true."""
    limit = time.monotonic() + patience
    while not check():
        assert time.monotonic() < limit, f"waited {patience:g} s in vain for {what}"
        await asyncio.sleep(0.01)


async def answered(call: Callable[[], Awaitable[T]], patience: float = PATIENCE) -> T:
    """What a call comes to, once PostgreSQL is there: connections that were cut are found by using them."""
    async with asyncio.timeout(patience):
        while True:
            try:
                return await call()
            except Busy:
                await asyncio.sleep(0.05)


class Load:
    """Inserters, workers and ticks of some engines.

    Args:
        engines: each is used by all of them, in turn.
        inserters, workers: how many.

    Attributes:
        accepted: payload by id of every insert that was answered.
        acked: ids whose ack was answered.
        refused: payloads of inserts that were answered with an error that says they are not there.
        errors: how often each error was met.
        wrong: what must not happen, in words.
        faults: how many were injected; the test counts them.
    """

    def __init__(self, *engines: PostgresEngine, inserters: int = 3, workers: int = 2) -> None:
        self.accepted: dict[str, bytes] = {}
        self.acked: set[str] = set()
        self.refused: set[bytes] = set()
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.faults = 0
        self._engines = engines
        self._ran: set[str] = set()
        self._receipts: set[str] = set()
        self._number = 0
        self._stop = asyncio.Event()
        self._inserting = [asyncio.ensure_future(self._insert(n)) for n in range(inserters)]
        self._working = [asyncio.ensure_future(self._work(n)) for n in range(workers)]
        self._working += [asyncio.ensure_future(self._tick(engine)) for engine in engines]

    async def progress(self, jobs: int = 30) -> None:
        """Return when that many more were accepted, and that many more acked."""
        accepted, acked = len(self.accepted) + jobs, len(self.acked) + jobs
        await until(lambda: len(self.accepted) >= accepted, "inserts")
        await until(lambda: len(self.acked) >= acked, "acks")

    async def backlog(self, engine: PostgresEngine, jobs: int, delay: float) -> None:
        """Insert jobs that wait."""
        payloads = [b'"waits %d"' % number for number in range(jobs)]
        ids = (await engine.put([new_job(data=payload, delay=delay) for payload in payloads])).ids
        self.accepted.update(zip(ids, payloads, strict=True))

    async def finish(self, patience: float = 20.0) -> None:
        """Stop inserting, run all that is left, and compare."""
        await self.stop()
        await until(lambda: self.accepted.keys() <= self._ran, "accepted jobs to run", patience)
        for task in self._working:
            task.cancel()
        ends = await asyncio.gather(*self._working, return_exceptions=True)
        assert [end for end in ends if not isinstance(end, asyncio.CancelledError)] == []
        assert self.wrong == []
        assert self.acked
        lost = self.accepted.keys() - self._ran
        assert not lost, f"{len(lost)} of {len(self.accepted)} were never run"

    async def stop(self) -> None:
        """Stop inserting."""
        self._stop.set()
        await asyncio.gather(*self._inserting)

    async def _insert(self, number: int) -> None:
        engine = self._engines[number % len(self._engines)]
        while not self._stop.is_set():
            payloads = []
            for _ in range(5):
                self._number += 1
                payloads.append(b"%d" % self._number)
            try:
                inserted = await engine.put([new_job(data=payload, ttr=600) for payload in payloads])
            except AWAY as error:
                self.errors[type(error).__name__] += 1
                if not isinstance(error, Internal):
                    self.refused.update(payloads)
                await asyncio.sleep(0.02)
                continue
            if again := self.accepted.keys() & set(inserted.ids):
                self.wrong.append(f"{again} were given twice")
            self.accepted.update(zip(inserted.ids, payloads, strict=True))
            await asyncio.sleep(0.002)

    async def _work(self, number: int) -> None:
        engine = self._engines[number % len(self._engines)]
        while True:
            leases = await engine.reserve((), 20, holder=f"w{number}")
            self._look_at(leases)
            if not leases:
                await asyncio.sleep(0.01)
                continue
            refused = await self._settle(engine, [Settlement(lease.receipt, "ok") for lease in leases])
            self.acked |= {lease.id for at, lease in enumerate(leases) if at not in refused}

    def _look_at(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            if lease.receipt in self._receipts:
                self.wrong.append(f"receipt {lease.receipt} was given twice")
            if lease.id in self.acked:
                self.wrong.append(f"{lease.id} came back after its ack was answered")
            if self.accepted.get(lease.id, lease.data) != lease.data:
                self.wrong.append(f"{lease.id} has another payload")
            if lease.data in self.refused:
                self.wrong.append(f"{lease.id} was refused, and is there")
            self._receipts.add(lease.receipt)
            self._ran.add(lease.id)

    async def _settle(self, engine: PostgresEngine, settlements: list[Settlement]) -> set[int]:
        """Settle, again and again until it is answered; what was refused."""
        while True:
            try:
                return {refusal.index for refusal in await engine.settle(settlements)}
            except AWAY as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(0.02)

    async def _tick(self, engine: PostgresEngine) -> None:
        """As the server does."""
        while True:
            try:
                for expired in await engine.tick():
                    await engine.rescue([expired.receipt], overdue=True, reason="ttr")
            except AWAY:
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.02)
