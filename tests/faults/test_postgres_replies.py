"""PostgreSQL commits, and its reply is swallowed: what was done is found out, or safe to ask for again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from kqs.core.outcome import Settlement
from kqs.engines.postgres import PostgresEngine
from kqs.errors import Busy
from kqs.ports import Lease, Selection
from kqs.testing.engines import new_job
from kqs.testing.postgres import PostgresServer

from .postgres import engine_at, running, until
from .relay import Relay

pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running() as server:
        yield server


@dataclass
class Swallowed:
    """An engine whose next commit is done and not answered."""

    engine: PostgresEngine
    relay: Relay
    server: PostgresServer

    async def lose(self, call: Callable[[], Awaitable[Any]], marker: bytes = b"COMMIT") -> Any:
        """Make a call whose reply is swallowed; returns what it comes to, an error as a value."""
        swallowing = asyncio.ensure_future(self.relay.swallow(marker))
        await asyncio.sleep(0)
        result = (await asyncio.gather(call(), return_exceptions=True))[0]
        async with asyncio.timeout(10):
            await swallowing
        return result

    async def leased(self) -> Lease:
        await self.engine.put([new_job(ttr=600)])
        [lease] = await self.engine.reserve((), 1, holder="w")
        return lease

    async def woken(self) -> None:
        """Return when workers that wait are told to ask again."""
        woken = asyncio.Event()
        self.engine.on_ready(lambda types: woken.set())
        async with asyncio.timeout(10):
            await woken.wait()

    def count(self) -> int:
        return int(self.server.sql("SELECT count(*) FROM kqs.job")[0][0])


@pytest_asyncio.fixture
async def lossy(postgres: PostgresServer) -> AsyncIterator[Swallowed]:
    postgres.sql("TRUNCATE kqs.job, kqs.key, kqs.cron, kqs.done")
    async with Relay(postgres).open() as relay, engine_at(relay.url, poll=0.2) as engine:
        yield Swallowed(engine, relay, postgres)


async def test_an_insert_is_looked_up(lossy: Swallowed) -> None:
    inserted = await lossy.lose(lambda: lossy.engine.put([new_job(), new_job()]))
    assert len(inserted.ids) == 2 == lossy.count()


async def test_an_insert_with_a_key_is_made_again(lossy: Swallowed) -> None:
    assert isinstance(await lossy.lose(lambda: lossy.engine.put([new_job(key="k")])), Busy)
    again = await lossy.engine.put([new_job(key="k")])
    assert again.duplicates == (0,)
    await lossy.woken()
    assert [lease.id for lease in await lossy.engine.reserve((), 9, holder="w")] == again.ids


@pytest.mark.parametrize("outcome", ["ok", "again", "fail", "release"])
async def test_a_settlement_is_said_again(lossy: Swallowed, outcome: Any) -> None:
    lease = await lossy.leased()
    settlement = Settlement(lease.receipt, outcome, reason="" if outcome in ("ok", "release") else "so")
    assert isinstance(await lossy.lose(lambda: lossy.engine.settle([settlement])), Busy)
    assert await lossy.engine.settle([settlement]) == []
    other = Settlement(lease.receipt, "fail" if outcome != "fail" else "ok")
    assert [refusal.code for refusal in await lossy.engine.settle([other])] == ["stale_receipt"]


async def test_a_run_of_a_cron_is_made_once(lossy: Swallowed) -> None:
    assert isinstance(await lossy.lose(lambda: lossy.engine.fire("c", 1000, [new_job()])), Busy)
    assert await lossy.engine.fire("c", 1000, [new_job()]) is None
    assert lossy.count() == 1


async def test_a_lease_nobody_knows_of_is_taken_back(lossy: Swallowed) -> None:
    [id] = (await lossy.engine.put([new_job(ttr=3600)])).ids
    claim = b"UPDATE job SET state = 3, attempt"
    assert await lossy.lose(lambda: lossy.engine.reserve((), 1, holder="w"), claim) == []
    await lossy.woken()
    [lease] = await lossy.engine.reserve((), 1, holder="w")
    assert (lease.id, lease.attempt) == (id, 1)


async def test_a_claim_that_never_arrives_is_made_again(lossy: Swallowed) -> None:
    [id] = (await lossy.engine.put([new_job(ttr=3600)])).ids
    dropping = asyncio.ensure_future(lossy.relay.drop(b"UPDATE job SET state = 3, attempt"))
    await asyncio.sleep(0)
    assert await lossy.engine.reserve((), 1, holder="w") == []
    await dropping
    await lossy.woken()
    assert [lease.id for lease in await lossy.engine.reserve((), 1, holder="w")] == [id]


async def test_a_pause_and_a_deletion_are_done(lossy: Swallowed) -> None:
    lease = await lossy.leased()
    selection = Selection(ids=[lease.id])
    assert isinstance(await lossy.lose(lambda: lossy.engine.control("delete", selection)), Busy)
    assert lossy.count() == 0
    assert isinstance(await lossy.lose(lambda: lossy.engine.pause("t", True), b"INSERT INTO pause"), Busy)
    await until(lambda: lossy.server.sql("SELECT type FROM kqs.pause") == [("t",)], "the pause")
    await lossy.engine.pause("t", False)
