"""Failover: the primary is killed under load, its synchronous standby goes on, and so does the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from psycopg import AsyncConnection
from structlog.testing import capture_logs

from kqs.engines.postgres.checks import check_durable
from kqs.errors import ConfigError
from kqs.testing.engines import new_job
from kqs.testing.postgres import PostgresServer

from .postgres import Load, answered, engine_at, running, until

pytestmark = pytest.mark.asyncio

_WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%{}%'"


@dataclass
class Pair:
    """A primary and its synchronous standby."""

    primary: PostgresServer
    standby: PostgresServer

    @property
    def url(self) -> str:
        """Whichever of them can be written to."""
        hosts = f"{self.primary.address},{self.standby.address}"
        ports = f"{self.primary.port},{self.standby.port}"
        return f"host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs=read-write"

    def waiting(self, query: str) -> list[int]:
        """Processes that wait for the standby with a commit of such a query."""
        return [row[0] for row in self.primary.sql(_WAITING.format(query))]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running(address="127.0.0.1") as primary:
        standby = PostgresServer(("wal_retrieve_retry_interval=100ms",), address="127.0.0.1", primary=primary)
        try:
            standby.start()
            primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
            primary.sql("SELECT pg_reload_conf()")
            yield Pair(primary, standby)
        finally:
            standby.close()


async def test_the_primary_is_killed_and_the_standby_goes_on(pair: Pair) -> None:
    async with engine_at(pair.url, poll=0.2) as one, engine_at(pair.url, poll=3600.0) as other:
        load = Load(one, inserters=4, workers=3)
        await load.backlog(one, 300, delay=3.0)
        await load.progress(200)
        await asyncio.to_thread(pair.primary.kill)
        confirmed = len(load.accepted)
        await asyncio.to_thread(pair.standby.promote)
        await load.progress(200)
        await load.finish()
        assert len(load.accepted) > confirmed + 200
        told: list[str] = []
        other.on_ready(told.extend)
        await one.put([new_job("news")])
        await until(lambda: "news" in told, "a notice through the new primary")
        assert (await answered(one.stats))["jobs"]["ready"] == 1


@pytest.mark.parametrize("end", ["told to wait no longer", "killed"])
async def test_an_insert_is_not_confirmed_while_only_the_primary_has_it(pair: Pair, end: str) -> None:
    async with engine_at(pair.url, poll=3600.0) as engine:
        await engine.put([new_job("first")])  # it has numbers from now on
        pair.standby.freeze()
        inserting = asyncio.ensure_future(engine.put([new_job("second")]))
        try:
            await until(lambda: pair.waiting("COMMIT"), "the commit to wait for the standby")
            if end == "killed":
                await asyncio.to_thread(pair.primary.kill)
                await asyncio.to_thread(pair.primary.start)
            else:
                [pid] = pair.waiting("COMMIT")
                pair.primary.sql(f"SELECT pg_terminate_backend({pid})")
            await until(lambda: pair.primary.sql("SELECT id FROM kqs.job WHERE type = 'second'"), "its row")
            await until(lambda: pair.waiting("emit_message"), "the engine to wait for the standby", 10)
            assert not inserting.done()
        finally:
            pair.standby.thaw()
        [id] = (await inserting).ids
        await asyncio.to_thread(pair.primary.kill)
        await asyncio.to_thread(pair.standby.promote)
        assert pair.standby.sql("SELECT type FROM kqs.job ORDER BY id") == [("first",), ("second",)]
        assert (await answered(lambda: engine.job(id)))["state"] == "ready"


async def test_a_standby_is_no_place_for_jobs_and_a_primary_without_one_is_warned_of(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="is a standby"):
        async with engine_at(pair.standby.url):
            pass
    with capture_logs() as logs:
        async with engine_at(pair.url):
            assert [entry for entry in logs if "standby" in entry["event"]] == []
        pair.primary.sql("ALTER SYSTEM RESET synchronous_standby_names")
        pair.primary.sql("SELECT pg_reload_conf()")
        async with engine_at(pair.url):
            [entry] = [entry for entry in logs if "standby" in entry["event"]]
    assert entry["log_level"] == "warning" and "failover can lose" in entry["event"]


async def test_standbys_are_waited_for_whatever_the_servers_default_is(pair: Pair) -> None:
    pair.primary.sql("ALTER SYSTEM SET synchronous_commit = 'local'")
    pair.primary.sql("SELECT pg_reload_conf()")
    async with await AsyncConnection.connect(pair.url, autocommit=True) as connection:
        with pytest.raises(ConfigError, match="standbys are not waited for"):
            await check_durable(connection)
    async with engine_at(pair.url) as engine:
        await engine.put([new_job("first")])
        pair.standby.freeze()
        inserting = asyncio.ensure_future(engine.put([new_job("second")]))
        await until(lambda: pair.waiting("COMMIT"), "the commit to wait for the standby")
        pair.standby.thaw()
        await inserting
