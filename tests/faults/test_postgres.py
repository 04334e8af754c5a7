"""PostgreSQL killed, its connections cut, a server gone: no accepted job is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import pytest
from psycopg import AsyncConnection

from kqs.core.outcome import Settlement
from kqs.engines.postgres import PostgresEngine, migrate
from kqs.engines.postgres import open as open_engine
from kqs.engines.postgres.schema import newest
from kqs.errors import Busy, ConfigError, DiskFull
from kqs.ports import Selection
from kqs.settings.engines import PostgresConfig
from kqs.testing.engines import new_job
from kqs.testing.postgres import PostgresServer
from tests.databases import started

pytestmark = pytest.mark.asyncio


class _Clock:
    def now(self) -> int:
        return time.time_ns() // 1000


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with started() as server:
        yield server


async def _engine(server: PostgresServer, **rest: float) -> PostgresEngine:
    async with await AsyncConnection.connect(server.url, autocommit=True) as connection:
        await migrate(connection)
    config = PostgresConfig(url=server.url, connect_timeout=3.0)
    return await open_engine(config, _Clock(), random=random.random, nonce=random.getrandbits, **rest)


async def _insert_until(engine: PostgresEngine, stop: asyncio.Event, accepted: list[str]) -> None:
    while not stop.is_set():
        try:
            accepted += (await engine.put([new_job() for _ in range(5)])).ids
        except (Busy, DiskFull):
            await asyncio.sleep(0.05)


async def _drain(engine: PostgresEngine, accepted: set[str]) -> set[str]:
    """Run all there is; the ids that ran."""
    ran: set[str] = set()
    limit = time.monotonic() + 30
    while not accepted <= ran and time.monotonic() < limit:
        leases = await engine.reserve((), 500, holder="w")
        ran |= {lease.id for lease in leases}
        if not leases:
            await asyncio.sleep(0.05)
            continue
        try:
            assert await engine.settle([Settlement(lease.receipt, "ok") for lease in leases]) == []
        except Busy:
            continue  # a connection that was cut and not used since
    return ran


async def test_killed_under_load_no_accepted_job_is_lost(postgres: PostgresServer) -> None:
    engine = await _engine(postgres)
    accepted: list[str] = []
    stop = asyncio.Event()
    inserts = [asyncio.ensure_future(_insert_until(engine, stop, accepted)) for _ in range(4)]
    for _ in range(3):
        before = len(accepted)
        while len(accepted) < before + 50:
            await asyncio.sleep(0.02)
        postgres.kill()
        await asyncio.to_thread(postgres.start)
    stop.set()
    await asyncio.gather(*inserts)
    assert len(set(accepted)) == len(accepted)
    assert set(accepted) - await _drain(engine, set(accepted)) == set()
    await engine.close()


async def test_connections_cut_under_load_lose_nothing_and_double_nothing(postgres: PostgresServer) -> None:
    engine = await _engine(postgres)
    accepted: list[str] = []
    stop = asyncio.Event()
    inserts = [asyncio.ensure_future(_insert_until(engine, stop, accepted)) for _ in range(4)]
    async with await AsyncConnection.connect(postgres.url, autocommit=True) as connection:
        for _ in range(30):
            before = len(accepted)
            while len(accepted) < before + 5:
                await asyncio.sleep(0.01)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kqs'"
            )
        stop.set()
        await asyncio.gather(*inserts)
        cursor = await connection.execute("SELECT count(*) FROM kqs.job")
        [row] = await cursor.fetchall()
    assert accepted
    assert row[0] == len(accepted), "what was refused is not there, what was accepted is"
    assert set(accepted) - await _drain(engine, set(accepted)) == set()
    await engine.close()


async def test_two_servers_share_jobs_pauses_and_crons(postgres: PostgresServer) -> None:
    one, two = await _engine(postgres, poll=0.2), await _engine(postgres, poll=0.2)
    told: list[str] = []
    two.on_ready(told.extend)
    ids = (await one.put([new_job("a") for _ in range(100)])).ids
    limit = time.monotonic() + 20
    while "a" not in told and time.monotonic() < limit:
        await asyncio.sleep(0.01)
    assert "a" in told
    leases = [
        lease
        for some in await asyncio.gather(
            *(e.reserve(["a"], 7, holder="w") for e in (one, two) for _ in range(4))
        )
        for lease in some
    ]
    assert len({lease.id for lease in leases}) == len(leases) > 7
    await one.pause("a", True)
    assert await two.reserve(["a"], 10, holder="w") == []  # at once: the claim itself looks
    fired = await asyncio.gather(*(engine.fire("c", 1000, [new_job("cron")]) for engine in (one, two) * 3))
    assert sum(ids is not None for ids in fired) == 1
    assert await two.settle([Settlement(lease.receipt, "ok") for lease in leases]) == []
    assert await one.control("delete", Selection(type="a")) == len(ids) - len(leases)
    await one.close()
    await two.close()


async def test_local_leases_of_a_dead_server_are_rescued_by_another(postgres: PostgresServer) -> None:
    dead, alive = await _engine(postgres, poll=3600.0), await _engine(postgres, poll=0.2)
    await dead.put([new_job("near"), new_job("far")])
    [near] = await dead.reserve(["near"], 1, holder="n", local=True)
    [far] = await dead.reserve(["far"], 1, holder="f")
    await dead.close()
    limit = time.monotonic() + 20
    while not (again := await alive.reserve(["near"], 1, holder="m")) and time.monotonic() < limit:
        await asyncio.sleep(0.05)
    assert [(lease.id, lease.attempt) for lease in again] == [(near.id, 1)]
    assert [r.code for r in await alive.settle([Settlement(near.receipt, "ok")])] == ["stale_receipt"]
    assert await alive.settle([Settlement(far.receipt, "ok")]) == []
    await alive.close()


async def test_a_row_edited_into_nonsense_is_buried_and_the_rest_goes_on(postgres: PostgresServer) -> None:
    engine = await _engine(postgres)
    bad, good = (await engine.put([new_job(), new_job()])).ids
    async with await AsyncConnection.connect(postgres.url, autocommit=True) as connection:
        await connection.execute("UPDATE kqs.job SET options = '{' WHERE id = (SELECT min(id) FROM kqs.job)")
    assert [lease.id for lease in await engine.reserve((), 10, holder="w")] == [good]
    view = await engine.job(bad)
    assert (view["state"], view["last_error"]["kind"]) == ("buried", "damaged")
    await engine.close()


async def test_a_schema_that_is_older_or_newer_is_refused(postgres: PostgresServer) -> None:
    config = PostgresConfig(url=postgres.url)
    rest = {"random": random.random, "nonce": random.getrandbits}
    with pytest.raises(ConfigError, match="kqs engine migrate"):
        await open_engine(config, _Clock(), **rest)  # type: ignore[arg-type]
    async with await AsyncConnection.connect(postgres.url, autocommit=True) as connection:
        assert await migrate(connection) == list(range(1, newest() + 1))
        assert await migrate(connection) == []
        await connection.execute("INSERT INTO kqs.version (step) VALUES (99)")
        with pytest.raises(ConfigError, match="version 99"):
            await open_engine(config, _Clock(), **rest)  # type: ignore[arg-type]


async def test_a_server_that_loses_what_it_confirms_is_refused() -> None:
    server = PostgresServer(("fsync=off",))
    server.start()
    try:
        with pytest.raises(ConfigError, match="fsync is off"):
            await _engine(server)
    finally:
        server.close()
