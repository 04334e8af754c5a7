"""PostgreSQL that answers late or never: frozen, locked by somebody, with a transaction held open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from psycopg import AsyncConnection
from structlog.testing import capture_logs

from kqs.core.outcome import Settlement
from kqs.engines.postgres import database as database_module
from kqs.engines.postgres import engine as engine_module
from kqs.engines.postgres import put as put_module
from kqs.errors import Busy, Internal
from kqs.testing.engines import new_job
from kqs.testing.postgres import PostgresServer

from .postgres import Load, answered, engine_at, open_at, running, until

pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running() as server:
        yield server


async def test_frozen_for_a_while_under_load(postgres: PostgresServer) -> None:
    async with engine_at(postgres.url, poll=0.2) as engine:
        load = Load(engine)
        with capture_logs() as logs:
            for _ in range(3):
                await load.progress(50)
                postgres.freeze()
                try:
                    await asyncio.sleep(1.0)
                finally:
                    postgres.thaw()
            await load.progress(50)
            await load.finish()
        assert "PostgreSQL is away" not in [entry["event"] for entry in logs]


async def test_callers_of_a_frozen_server_are_told_that_the_outcome_is_unknown(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_USED", 0.5)
    monkeypatch.setattr(put_module, "UNKNOWN", 1.0)
    async with engine_at(postgres.url, connect_timeout=1.0, poll=3600.0) as engine:
        await engine.put([new_job(ttr=600)])
        [lease] = await engine.reserve((), 1, holder="w")
        postgres.freeze()
        try:
            async with asyncio.timeout(20):
                with pytest.raises((Internal, Busy)):
                    await engine.put([new_job()])
                with pytest.raises(Busy):
                    await engine.settle([Settlement(lease.receipt, "ok")])
                assert await engine.reserve((), 1, holder="w") == []
        finally:
            postgres.thaw()


async def test_a_server_whose_postgresql_is_frozen_can_be_closed(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_CLOSE", 1.0)
    engine = await open_at(postgres.url, poll=3600.0)
    await engine.put([new_job(ttr=600)])
    [lease] = await engine.reserve((), 1, holder="w")
    postgres.freeze()
    try:
        calls = [engine.put([new_job()]), engine.settle([Settlement(lease.receipt, "ok")]), engine.tick()]
        under_way = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(15):
            await engine.close()
            ends = await asyncio.gather(*under_way, return_exceptions=True)
        assert all(isinstance(end, (Busy, Internal)) for end in ends[:2]), ends
    finally:
        postgres.thaw()


async def test_a_locked_table_holds_up_and_loses_nothing(postgres: PostgresServer) -> None:
    async with (
        engine_at(postgres.url, poll=0.2) as engine,
        await AsyncConnection.connect(postgres.url) as other,
    ):
        load = Load(engine)
        for mode in ("ACCESS EXCLUSIVE", "SHARE", "EXCLUSIVE"):
            await load.progress(50)
            await other.execute(f"LOCK TABLE kqs.job IN {mode} MODE".encode())
            accepted = len(load.accepted)
            await asyncio.sleep(1.0)
            assert len(load.accepted) <= accepted + 15  # of three inserters one call each was under way
            await other.rollback()
        await load.progress(50)
        await load.finish()


async def test_a_table_that_stays_locked_refuses(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_LOCKED", "500ms")
    postgres.sql("DELETE FROM kqs.job")
    async with (
        engine_at(postgres.url, poll=3600.0) as engine,
        await AsyncConnection.connect(postgres.url) as other,
    ):
        await other.execute("LOCK TABLE kqs.job")
        async with asyncio.timeout(20):
            with pytest.raises(Busy, match="lock timeout"):
                await engine.put([new_job()])
            with pytest.raises(Busy, match="a transaction that is still open"):
                await engine.put([new_job(key="k")])
        await other.rollback()
        assert postgres.sql("SELECT count(*) FROM kqs.job") == [(0,)]
        assert (await engine.put([new_job(key="k")])).duplicates == ()


async def test_a_notice_that_cannot_be_followed_costs_no_lock(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_LOCKED", "300ms")
    locks = "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
    waiting = "SELECT pid FROM pg_locks WHERE NOT granted"
    async with (
        engine_at(postgres.url, poll=3600.0) as engine,
        await AsyncConnection.connect(postgres.url) as other,
    ):
        told: list[str] = []
        engine.on_ready(told.extend)
        before = postgres.sql(locks)
        await other.execute("LOCK TABLE kqs.pause")
        postgres.sql("""NOTIFY kqs_kqs, '{"pauses": true}'""")
        await until(lambda: postgres.sql(waiting), "the engine to look at the pauses")
        await until(lambda: not postgres.sql(waiting), "it to give up")
        postgres.sql("""NOTIFY kqs_kqs, '{"types": ["next"]}'""")
        await until(lambda: "next" in told, "the next notice")
        assert postgres.sql(locks) == before != []
        await other.rollback()


async def test_a_tick_that_failed_is_made_again(postgres: PostgresServer) -> None:
    """One that says nothing of it would look as if PostgreSQL were back."""
    async with engine_at(postgres.url, connect_timeout=0.1, poll=3600.0) as engine:
        await engine.tick()
        postgres.kill()
        async with asyncio.timeout(20):
            with pytest.raises(Busy):
                while True:
                    await engine.tick()
                    await asyncio.sleep(0.02)
        for _ in range(5):
            with pytest.raises(Busy):
                await engine.tick()
        postgres.start()
        await answered(engine.tick)


async def test_a_transaction_held_open_is_in_nobodys_way(postgres: PostgresServer) -> None:
    async with (
        engine_at(postgres.url, poll=0.2) as engine,
        await AsyncConnection.connect(postgres.url) as other,
    ):
        await engine.put([new_job("held", ttr=600)])
        await other.execute("SELECT count(*) FROM kqs.job")
        await other.execute("SELECT FROM kqs.job WHERE type = 'held' FOR UPDATE")
        load = Load(engine)
        await load.progress(200)
        await until(lambda: load.acked, "acks")
        await load.finish()
        assert await engine.reserve(["held"], 1, holder="w") == []
        await other.rollback()
        async with asyncio.timeout(10):
            while not await engine.reserve(["held"], 1, holder="w"):
                await asyncio.sleep(0.05)
