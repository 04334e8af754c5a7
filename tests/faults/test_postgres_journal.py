"""PostgreSQL behind a journal: while it is away jobs are accepted; each runs once when it is back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from psycopg import AsyncConnection

from kqs.core.job import Unique
from kqs.core.outcome import Settlement
from kqs.engines.postgres import feeder
from kqs.errors import Busy, ConfigError
from kqs.ports import Lease
from kqs.testing.engines import new_job
from kqs.testing.postgres import JournalPostgresHarness, PostgresServer
from tests.databases import started
from tests.support import ServerProcess, kqs, until


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with started() as server:
        yield server


@pytest.fixture
async def world(postgres: PostgresServer) -> AsyncIterator[World]:
    made = World(postgres)
    await made.make_engine()
    yield made
    await made.stop()


@pytest.fixture
async def other(postgres: PostgresServer) -> AsyncIterator[World]:
    """A second server, not started."""
    made = World(postgres, seed=2)
    yield made
    await made.stop()


class World(JournalPostgresHarness):
    """The engine whose ``put`` does not wait for PostgreSQL."""

    async def put(self, *jobs: str, **fields: object) -> list[str]:
        assert self.engine is not None and self.engine.feeder is not None
        made = [new_job(name, **fields) for name in jobs]  # type: ignore[arg-type]
        return await self.engine.feeder.feed.put(made)

    async def drained(self) -> None:
        assert self.engine is not None and self.engine.feeder is not None
        async with asyncio.timeout(30):
            await self.engine.feeder.feed.drained()

    async def take(self) -> list[Lease]:
        assert self.engine is not None
        return await self.engine.reserve((), 1000, holder="w")

    async def stop(self) -> None:
        if self.engine is not None:
            await self.engine.close()
            self.engine = None

    async def rows(self) -> int:
        """Jobs in the tables, live or done."""
        async with await AsyncConnection.connect(self._config.url) as connection:
            schema = self._config.schema
            query = f"SELECT (SELECT count(*) FROM {schema}.job) + (SELECT count(*) FROM {schema}.done)"
            row = await (await connection.execute(query.encode())).fetchone()
            assert row is not None
            return int(row[0])


async def test_while_it_is_away_jobs_are_accepted_and_run_when_it_is_back(
    postgres: PostgresServer, world: World
) -> None:
    engine = world.engine
    assert engine is not None
    ids = await world.put(*["a"] * 50)
    await world.drained()
    for _ in range(3):
        postgres.kill()
        for _ in range(20):
            ids += await world.put(*["a"] * 10)
        with pytest.raises(Busy, match="not in PostgreSQL yet"):
            await engine.job(ids[-1])
        assert engine.feeder is not None
        feed = engine.feeder.feed
        async with asyncio.timeout(30):  # a connection is waited for first
            while "PostgreSQL is away" not in feed.stats().get("away", ""):
                await asyncio.sleep(0.05)
        assert feed.stats()["waiting"] >= 200
        await asyncio.to_thread(postgres.start)
        await world.drained()
    assert len(set(ids)) == len(ids) == 650
    ran: list[str] = []
    async with asyncio.timeout(30):
        while len(ran) < len(ids):
            leases = await world.take()
            ran += [lease.id for lease in leases]
            await engine.settle([Settlement(lease.receipt, "ok") for lease in leases])
    assert ran == ids, "each once, in the order they were accepted"


async def test_a_job_that_was_inserted_at_once_is_not_held_up_by_those_that_wait(
    postgres: PostgresServer, world: World
) -> None:
    engine = world.engine
    assert engine is not None and engine.feeder is not None
    await world.put("a")
    await world.drained()
    [keyed] = (await engine.put([new_job("a", key="k")])).ids
    async with await AsyncConnection.connect(postgres.url) as other:
        await other.execute(f"SELECT * FROM {world._config.schema}.feed FOR UPDATE".encode())
        [waits] = await world.put("a")
        assert (await engine.job(keyed))["state"] == "ready"
        with pytest.raises(Busy, match="not in PostgreSQL yet"):
            await engine.job(waits)
    await world.drained()
    assert (await engine.job(waits))["state"] == "ready"


async def test_what_is_offered_again_after_a_crash_is_not_copied_again(
    postgres: PostgresServer, world: World
) -> None:
    engine = world.engine
    assert engine is not None and engine.feeder is not None
    engine.feeder.feed.journal.append_unwaited = lambda *_: None  # type: ignore[method-assign]  # no cursor
    await world.put(*["a"] * 20)
    await world.drained()
    leases = await world.take()
    await engine.settle([Settlement(lease.receipt, "ok") for lease in leases[:15]])
    async with await AsyncConnection.connect(postgres.url, autocommit=True) as connection:
        await connection.execute(f"DELETE FROM {world._config.schema}.done".encode())  # forgotten long ago
    await world.stop()
    engine = await world.make_engine()
    new = await world.put("b")
    await world.drained()
    assert engine.feeder is not None and engine.feeder.feed.stats()["delivered"] == 21
    assert await world.rows() == 6
    assert [lease.id for lease in await engine.reserve(["b"], 10, holder="w")] == new


async def test_a_commit_whose_answer_was_lost_is_found_out(postgres: PostgresServer, world: World) -> None:
    ids: list[str] = []
    async with await AsyncConnection.connect(postgres.url, autocommit=True) as connection:
        for _ in range(30):
            ids += await world.put(*["a"] * 30)
            await asyncio.sleep(0.02 * random.random())
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kqs'"
            )
    await world.drained()
    assert await world.rows() == len(ids) == 900


async def test_numbers_are_new_whatever_the_clock_says(world: World) -> None:
    engine = world.engine
    assert engine is not None
    ids = await world.put("a", "a")
    await world.drained()
    keyed = [new_job("a", key="k"), new_job("a", unique=Unique("u"))]
    ids += (await engine.put(keyed)).ids
    for lease in await world.take():
        await engine.settle([Settlement(lease.receipt, "ok")])
    world.clock.jump(-3600)
    await world.stop()
    engine = await world.make_engine()
    ids += await world.put("a", "a")
    ids += (await engine.put([new_job("a", key="l")])).ids
    ids += await world.put("a")
    await world.drained()
    assert len(set(ids)) == len(ids) == 8
    assert [lease.id for lease in await world.take()] == ids[4:]


async def test_servers_have_numbers_of_their_own_and_stand_in_one_line(world: World, other: World) -> None:
    other.clock, other._config = world.clock, world._config
    await other.make_engine()
    assert await world.put("b") != await other.put("b"), "in the same moment"
    ids: list[str] = []
    for _ in range(10):
        world.clock.advance(0.001)
        ids += await world.put("a")
        world.clock.advance(0.001)
        ids += await other.put("a")
    await world.drained()
    await other.drained()
    assert world.engine is not None
    world.engine._candidates.dirty = True
    assert [lease.id for lease in await world.engine.reserve(["a"], 100, holder="w")] == ids


async def test_two_servers_never_deliver_from_copies_of_one_journal(
    postgres: PostgresServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "_GONE", 0.3)
    twin = World(postgres)  # of the same seed: its journal has the same name
    twin.clock, twin._config = world.clock, world._config
    with pytest.raises(ConfigError, match="a copy of this data directory"):
        await twin.make_engine()
    await world.put("a")
    await world.drained()
    async with await AsyncConnection.connect(world._config.url, autocommit=True) as connection:
        await connection.execute(f"UPDATE {world._config.schema}.feed SET server = 0".encode())
    await world.put("a")
    assert world.engine is not None and world.engine.feeder is not None
    async with asyncio.timeout(10):
        while "stop one" not in world.engine.feeder.feed.stats().get("away", ""):
            await asyncio.sleep(0.02)
    assert await world.rows() == 1


async def test_jobs_that_wait_for_another_database_are_not_put_into_this_one(
    postgres: PostgresServer, world: World, other: World
) -> None:
    postgres.kill()
    await world.put("a")
    await world.stop()
    await asyncio.to_thread(postgres.start)
    other.disk = world.disk
    with pytest.raises(ConfigError, match="1 jobs wait here that were accepted for another database"):
        await other.make_engine()
    await world.make_engine()
    await world.drained()
    assert len(await world.take()) == 1


async def test_a_name_postgresql_cannot_hold_is_refused_before_it_is_accepted(world: World) -> None:
    engine = world.engine
    assert engine is not None
    with pytest.raises(Exception, match="NUL character in fair") as refusal:
        await engine.put([new_job("a", fair="x\0y")])
    assert getattr(refusal.value, "field", None) == "fair"
    assert engine.feeder is not None and engine.feeder.feed.waiting == 0


def test_a_server_answers_inserts_while_postgresql_is_away(postgres: PostgresServer, tmp_path: Path) -> None:
    text = f'[engine]\nkind = "postgres"\n[postgres]\nurl = "{postgres.url}"\naccept = "journal"\n'
    (tmp_path / "kqs.toml").write_text(text)
    assert kqs("engine", "migrate", "--config", "kqs.toml", cwd=tmp_path).status == 0
    config = f"{text}[handlers.t]\ncommand = ['sh', '-c', 'cat > {tmp_path}/ran.$KQS_JOB_ID']\n"

    def ran_of(id: str) -> Path:
        return tmp_path / f"ran.{id}"

    server = ServerProcess(tmp_path, config).start()
    try:
        with server.client() as client:
            ids = [client.insert("t", 0)]
            postgres.kill()
            ids += [client.insert("t", n) for n in range(20)]
            with pytest.raises(Busy):
                client.call("job", {"id": ids[-1]})
            server.kill()
    finally:
        server.discard()
    postgres.start()
    plain = f'[server]\nlisten = "127.0.0.1:0"\n{text.replace("journal", "engine")}'
    (tmp_path / "plain.toml").write_text(plain)
    refusal = kqs("serve", "--config", "plain.toml", "--data", str(server.data), cwd=tmp_path)
    assert refusal.status == 2
    assert "accepted jobs in" in refusal.err and "feed-postgres have not reached their engine" in refusal.err
    server = ServerProcess(tmp_path, config).start()
    try:
        until(lambda: all(path.exists() and path.read_text() for path in map(ran_of, ids)))
        assert sorted(ran_of(id).read_text() for id in ids[1:]) == sorted(map(str, range(20)))
        server.stop()
    finally:
        server.discard()
