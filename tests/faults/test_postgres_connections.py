"""PostgreSQL's connections: cut at any moment, all taken by others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from structlog.testing import capture_logs

from kqs.engines.postgres.database import Database
from kqs.errors import Busy
from kqs.testing.postgres import PostgresServer

from .postgres import Load, engine_at, running, until

pytestmark = pytest.mark.asyncio

CUTS = 40
_CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kqs'"


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running("max_connections=20", "superuser_reserved_connections=0", "deadlock_timeout=50ms") as server:
        yield server


async def test_connections_cut_one_by_one_under_load(postgres: PostgresServer) -> None:
    """Whatever was under way: an insert, an ack, a claim, a tick, listening."""
    choice = random.Random(1)
    async with (
        engine_at(postgres.url, poll=0.2) as engine,
        await AsyncConnection.connect(postgres.url, autocommit=True) as control,
    ):
        load = Load(engine)
        cuts = 0
        while cuts < CUTS:
            await load.progress(5)
            await asyncio.sleep(choice.random() * 0.02)
            cursor = await control.execute(f"{_CUT} ORDER BY random() LIMIT 1".encode())
            cuts += cursor.rowcount
        await load.finish()


def _take_all(url: str, taken: ExitStack) -> None:
    """Connect until there is no connection left."""
    try:
        while True:
            taken.enter_context(Connection.connect(url))
    except psycopg.OperationalError as error:
        assert "too many clients" in str(error)


async def test_no_connection_left_at_the_start(postgres: PostgresServer) -> None:
    with ExitStack() as taken:
        _take_all(postgres.url, taken)
        with pytest.raises(Busy, match="too many clients"):
            async with engine_at(postgres.url):
                pass
    async with engine_at(postgres.url) as engine:
        assert engine.accepting


async def test_no_connection_left_while_running(postgres: PostgresServer) -> None:
    """Others take all there are: those the engine has are enough; when they are cut, others take them too."""
    async with engine_at(postgres.url, connect_timeout=0.5, poll=0.2) as engine:
        load = Load(engine)
        await load.progress(50)
        with capture_logs() as logs:
            with ExitStack() as taken:
                control = taken.enter_context(Connection.connect(postgres.url, autocommit=True))
                _take_all(postgres.url, taken)
                await load.progress(50)
                while control.execute(_CUT.encode()).rowcount:  # the loop stands still: nobody connects anew
                    _take_all(postgres.url, taken)
                _take_all(postgres.url, taken)
                with pytest.raises(Busy, match="connection"):
                    await engine.stats()
                await until(lambda: logs, "the outage to be told")
            await load.progress(50)
            await load.finish()

            def told() -> list[str]:
                return [entry["event"] for entry in logs if entry["event"].startswith("PostgreSQL is")]

            await until(lambda: "PostgreSQL is back" in told(), "the end of it to be told")
        assert told() == ["PostgreSQL is away", "PostgreSQL is back"]


async def test_transactions_in_each_others_way_are_done_again(postgres: PostgresServer) -> None:
    database = Database(postgres.url, "kqs", writers=2, leasers=1, timeout=2.0)
    await database.open()
    both = asyncio.Barrier(2)
    tried: list[str] = []

    async def pause(first: str, second: str) -> None:
        async def work(connection: AsyncConnection) -> None:
            tried.append(first)
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [first])
            if len(tried) <= 2:
                await both.wait()
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [second])

        await database.transact(work)

    await asyncio.gather(pause("a", "b"), pause("b", "a"))
    assert len(tried) == 3, "one of them was the victim"
    await database.close()
