"""Limits of several servers on one PostgreSQL: together they give what is allowed, and not one lease more."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from psycopg import AsyncConnection

from kqs.core.outcome import Settlement
from kqs.core.shares import Share, Shares
from kqs.engines.postgres import PostgresEngine, migrate, presence
from kqs.engines.postgres import open as open_engine
from kqs.ports import Lease
from kqs.settings.engines import PostgresConfig
from kqs.testing.engines import new_job
from kqs.testing.engines.fair import shares
from kqs.testing.postgres import PostgresServer

pytestmark = pytest.mark.asyncio


class _Clock:
    """The machine's time, and more when a test says so."""

    ahead = 0

    def now(self) -> int:
        return time.time_ns() // 1000 + self.ahead


class Cluster:
    """Servers on one database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.clock = _Clock()
        self.schema = f"t{time.monotonic_ns()}"
        self.engines: list[PostgresEngine] = []
        self.most = 0

    async def open(self, limits: Shares, *, poll: float = 60.0) -> PostgresEngine:
        """One more server; by its poll alone it finds out nothing within a test."""
        async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
            await migrate(connection, self.schema)
        config = PostgresConfig(url=self._url, schema=self.schema)
        engine = await open_engine(
            config, self.clock, random=random.random, nonce=random.getrandbits, poll=poll, settle=0.0
        )
        engine.arrange(limits)
        self.engines.append(engine)
        return engine

    async def count(self, where: str = "true") -> int:
        """Leases in the table."""
        async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
            query = f"SELECT count(*) FROM {self.schema}.job WHERE state = 3 AND {where}"
            row = await (await connection.execute(query.encode())).fetchone()
            assert row is not None
            return int(row[0])

    async def work(self, engine: PostgresEngine, done: list[Lease], total: int, where: str = "true") -> None:
        """Run jobs until all are done, looking at how many are leased all the time."""
        while len(done) < total:
            leases = await engine.reserve((), 4, holder="w")
            if leases:
                self.most = max(self.most, await self.count(where))
            await asyncio.sleep(random.random() * 0.01)
            if leases:
                assert await engine.settle([Settlement(lease.receipt, "ok") for lease in leases]) == []
                done += leases


@pytest_asyncio.fixture
async def cluster(postgres: PostgresServer) -> AsyncIterator[Cluster]:
    made = Cluster(postgres.url)
    yield made
    for engine in made.engines:
        await engine.close()


@pytest.mark.parametrize(
    "limits, where",
    [
        (shares({"a": Share(concurrency=3)}), "type = 'a'"),
        (shares(keys={"K": Share(concurrency=3)}), "fair = 'K'"),
        (
            shares(classes={"c": Share(concurrency=3)}, class_of={"a": "c", "b": "c"}),
            "type IN ('a', 'b')",
        ),
    ],
    ids=["type", "key", "class"],
)
async def test_three_servers_together_run_as_many_as_one_may(
    cluster: Cluster, limits: Shares, where: str
) -> None:
    engines = [await cluster.open(limits) for _ in range(3)]
    total = 90
    jobs = [new_job("ab"[n % 2], fair="K") for n in range(total)]
    for n, engine in enumerate(engines):
        await engine.put(jobs[n::3])
    done: list[Lease] = []
    async with asyncio.timeout(30):
        await asyncio.gather(*(cluster.work(engine, done, total, where) for engine in engines))
    assert cluster.most == 3  # and it was reached
    assert len({lease.id for lease in done}) == total


async def test_a_rate_is_of_all_servers_together(cluster: Cluster) -> None:
    rate, burst = 50.0, 5
    limits = shares({"a": Share(rate=rate, burst=burst)})
    engines = [await cluster.open(limits) for _ in range(3)]
    await engines[0].put([new_job("a") for _ in range(60)])
    done: list[Lease] = []
    started: list[int] = []

    async def work(engine: PostgresEngine) -> None:
        while len(done) < 60:
            leases = await engine.reserve((), 10, holder="w")
            if not leases:
                await engine.tick()
                await asyncio.sleep(0.002)
            done.extend(leases)
            started.extend(lease.expires for lease in leases)  # all have the same ttr

    begin = time.monotonic()
    async with asyncio.timeout(30):
        await asyncio.gather(*map(work, engines))
    assert time.monotonic() - begin < 60 / rate * 2  # what one server may, three do too
    started.sort()
    for first in range(len(started)):
        for last in range(first, len(started)):
            span = (started[last] - started[first]) / 1_000_000
            assert last - first + 1 <= burst + rate * span + 1e-6


async def test_a_server_hears_that_another_one_has_room_again(cluster: Cluster) -> None:
    limits = shares({"a": Share(concurrency=1)})
    one, other = await cluster.open(limits), await cluster.open(limits)
    woken = asyncio.Event()
    other.on_ready(lambda types: woken.set() if "a" in types else None)
    await one.put([new_job("a"), new_job("a")])
    [lease] = await one.reserve((), 10, holder="w")
    async with asyncio.timeout(5):
        await woken.wait()
        woken.clear()
        assert await other.reserve((), 10, holder="w") == []
        [limit] = (await other.stats())["limits"]
        assert (limit["running"], limit["concurrency"]) == (1, 1)
        reasons = (await other.why(one._ids.of(lease_number(lease) + 1)))["reasons"]
        assert "1 of at most 1 jobs of job type a run" in [reason["text"] for reason in reasons]
        await one.settle([Settlement(lease.receipt, "ok")])
        await woken.wait()
    assert len(await other.reserve((), 10, holder="w")) == 1


async def test_a_notice_with_too_many_names_tells_of_the_room_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_EVERY", 1.0)  # all goes into one
    limits = shares({"a": Share(concurrency=1)})
    one, other = await cluster.open(limits), await cluster.open(limits)
    await one.put([new_job("a"), new_job("a")])
    [lease] = await one.reserve((), 10, holder="w")
    async with asyncio.timeout(10):
        while not (await other.stats())["limits"]:  # until it saw that there is no room
            assert await other.reserve(["a"], 10, holder="w") == []
            await asyncio.sleep(0.01)
    await one.put([new_job(f"{number:03}{'x' * 190}") for number in range(45)])
    await one.settle([Settlement(lease.receipt, "ok")])
    async with asyncio.timeout(10):
        while not await other.reserve(["a"], 10, holder="w"):
            await asyncio.sleep(0.01)


def lease_number(lease: Lease) -> int:
    """The number in a lease's id."""
    return int(lease.id.rpartition("-")[2])


async def test_a_poll_finds_room_whose_notice_was_lost(cluster: Cluster) -> None:
    limits = shares({"a": Share(concurrency=1)})
    one, other = await cluster.open(limits), await cluster.open(limits, poll=0.2)
    await one.put([new_job("a"), new_job("a")])
    [lease] = await one.reserve((), 10, holder="w")
    assert await other.reserve((), 10, holder="w") == []
    one._presence.tell_types = lambda types, *, freed=False: None  # type: ignore[method-assign]
    await one.settle([Settlement(lease.receipt, "ok")])
    async with asyncio.timeout(5):
        while not await other.reserve((), 10, holder="w"):
            await asyncio.sleep(0.01)


async def test_leases_of_a_dead_server_count_until_they_end(cluster: Cluster) -> None:
    limits = shares({"a": Share(concurrency=2)})
    one = await cluster.open(limits)
    await one.put([new_job("a", ttr=30) for _ in range(4)])
    assert len(await one.reserve((), 1, holder="remote")) == 1
    assert len(await one.reserve((), 1, holder="own", local=True)) == 1
    cluster.engines.remove(one)
    await one.close()  # without a word about its leases
    other = await cluster.open(limits)
    assert (
        len(await other.reserve((), 10, holder="w")) == 1
    )  # its own worker died with it, the remote one did not
    assert await cluster.count() == 2


async def test_a_token_is_not_spent_on_a_job_that_another_server_has(cluster: Cluster) -> None:
    limits = shares({"a": Share(rate=1, burst=2)})
    one, other = await cluster.open(limits), await cluster.open(limits)
    await one.put([new_job("a") for _ in range(4)])
    await other._candidates.load(other._database)
    cluster.clock.ahead = 60_000_000
    assert len(await one.reserve((), 2, holder="w")) == 2
    cluster.clock.ahead += 1_000_000
    assert len(await other.reserve((), 4, holder="w")) == 1  # the first two it knows of are taken
    assert await one.reserve((), 4, holder="w") == []
