"""Others at the same PostgreSQL: who edit, rename, migrate and notify by hand; servers set up otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from psycopg import AsyncConnection
from structlog.testing import capture_logs

from kqs.core.outcome import Settlement
from kqs.core.shares import Share
from kqs.engines.postgres.schema import newest
from kqs.errors import Busy
from kqs.ports import Revoked
from kqs.testing.engines import new_job
from kqs.testing.engines.fair import shares
from kqs.testing.postgres import PostgresServer

from .postgres import Load, engine_at, running, until

pytestmark = pytest.mark.asyncio


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with running() as server:
        yield server


@pytest.mark.parametrize(
    "edit",
    ["DELETE FROM kqs.job", "UPDATE kqs.job SET nonce = nonce + 1", "UPDATE kqs.job SET state = 2"],
    ids=["deleted", "another receipt", "taken away"],
)
async def test_a_lease_that_is_nowhere_is_revoked(
    postgres: PostgresServer, edit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kqs.engines.postgres.lease._OLD", 0)
    revoked: list[Revoked] = []
    async with engine_at(postgres.url, poll=0.05) as engine:
        engine.on_revoked(revoked.extend)
        await engine.put([new_job(ttr=600), new_job(ttr=600)])
        [lease] = await engine.reserve((), 1, holder="w", local=True)
        await asyncio.sleep(0.2)  # some polls
        assert revoked == []
        await asyncio.to_thread(postgres.sql, f"{edit} WHERE state = 3")
        await until(lambda: revoked == [Revoked(lease.receipt, "w")], "the lease to be revoked", 10)
        assert engine.held_by("w") == []
        assert [r.code for r in await engine.settle([Settlement(lease.receipt, "ok")])] == ["stale_receipt"]
        assert await engine.renew([lease.receipt]) == ["lost"]
        assert await engine.reserve((), 1, holder="w")


@pytest.mark.parametrize(
    "there, back, text",
    [
        (
            "INSERT INTO kqs.version (step) VALUES (99)",
            "DELETE FROM kqs.version WHERE step = 99",
            "version 99",
        ),
        (
            f"DELETE FROM kqs.version WHERE step = {newest()}",
            f"INSERT INTO kqs.version (step) VALUES ({newest()})",
            "kqs engine migrate",
        ),
        ("ALTER SCHEMA kqs RENAME TO elsewhere", "ALTER SCHEMA elsewhere RENAME TO kqs", "migrate|exist"),
        ("ALTER TABLE kqs.job RENAME TO jobs", "ALTER TABLE kqs.jobs RENAME TO job", "refuses"),
        ("REVOKE ALL ON kqs.job FROM worker", "GRANT ALL ON kqs.job TO worker", "refuses: permission"),
    ],
    ids=["newer", "older", "gone", "a table is missing", "rights are missing"],
)
async def test_tables_that_are_no_more_what_they_were(
    postgres: PostgresServer, there: str, back: str, text: str
) -> None:
    postgres.sql("CREATE ROLE worker LOGIN")
    postgres.sql("GRANT ALL ON SCHEMA kqs TO worker")
    postgres.sql("GRANT ALL ON ALL TABLES IN SCHEMA kqs TO worker")
    postgres.sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA kqs TO worker")
    url = postgres.url.replace("user=postgres", "user=worker")
    with capture_logs() as logs:
        async with engine_at(url, poll=0.1) as engine:
            load = Load(engine)
            await load.progress(50)
            await asyncio.to_thread(postgres.sql, there)
            before = load.errors.total()
            await until(lambda: load.errors.total() > before + 5, "callers to be told")
            accepted = len(load.accepted)
            with pytest.raises(Busy, match=text):
                await engine.put([new_job()])
            with pytest.raises(Busy, match=text):
                await engine.stats()
            assert len(load.accepted) == accepted
            await asyncio.to_thread(postgres.sql, back)
            await load.progress(50)
            await load.finish()
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_a_postgresql_that_takes_no_writes(postgres: PostgresServer) -> None:
    async with engine_at(postgres.url, poll=0.1) as engine:
        load = Load(engine)
        await load.progress(50)
        postgres.sql("ALTER SYSTEM SET default_transaction_read_only = on")
        postgres.sql("SELECT pg_reload_conf()")
        before = load.errors.total()
        await until(lambda: load.errors.total() > before + 5, "callers to be told")
        with pytest.raises(Busy, match="read-only"):
            await engine.put([new_job()])
        async with await AsyncConnection.connect(postgres.url, autocommit=True) as control:
            await control.execute("SET default_transaction_read_only = off")
            await control.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await control.execute("SELECT pg_reload_conf()")
        await load.progress(50)
        await load.finish()


async def test_strange_notices_are_no_notices(postgres: PostgresServer) -> None:
    strange = [
        "",
        "{",
        "[]",
        "null",
        '{"types": 5}',
        '{"revoked": [1]}',
        '{"revoked": [["a"]]}',
        '{"by": "x"}',
    ]
    async with engine_at(postgres.url, poll=3600.0) as one, engine_at(postgres.url, poll=3600.0) as other:
        told: list[str] = []
        other.on_ready(told.extend)
        for text in [*strange, '{"types": ["not there"], "more": {}}', "x" * 7999]:
            postgres.sql(f"NOTIFY kqs_kqs, '{text}'")
        names = ["\U0001f600" * 49 + str(number) for number in range(50)]  # long in bytes
        await one.put([new_job(name) for name in names])
        await until(lambda: set(told) >= {"not there", *names}, "a notice after the strange ones")


async def test_servers_that_are_set_up_otherwise(postgres: PostgresServer) -> None:
    """Each keeps to its own limits, whatever the others do; the shortest key window counts."""
    async with (
        engine_at(postgres.url, poll=0.1) as strict,
        engine_at(postgres.url, poll=0.5) as lax,
        engine_at(postgres.url, poll=0.1, key_window=0.001) as forgetful,
    ):
        strict.arrange(shares({"a": Share(concurrency=2)}))
        lax.arrange(shares({"a": Share(concurrency=4)}))
        await strict.put([new_job("a", ttr=600) for _ in range(10)])
        assert len(await strict.reserve(["a"], 10, holder="w")) == 2
        async with asyncio.timeout(10):
            leases = await lax.reserve(["a"], 10, holder="w")
            while len(leases) < 2:
                leases += await lax.reserve(["a"], 10, holder="w")
                await asyncio.sleep(0.01)
        assert len(leases) == 2 and await lax.reserve(["a"], 10, holder="w") == []
        assert await strict.reserve(["a"], 10, holder="w") == []
        assert await lax.settle([Settlement(lease.receipt, "ok") for lease in leases]) == []
        assert await strict.reserve(["a"], 10, holder="w") == []
        [first] = (await strict.put([new_job("k", key="k")])).ids
        await asyncio.sleep(0.01)
        [second] = (await forgetful.put([new_job("k", key="k")])).ids
        assert first != second
        assert (await strict.put([new_job("k", key="k")])).ids == [second]
