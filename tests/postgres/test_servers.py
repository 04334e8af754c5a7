"""Servers hear at the commit of jobs that were inserted in a transaction, and run them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import kqs.postgres
from kqs.core.outcome import Settlement
from kqs.engines.postgres import PostgresEngine
from kqs.engines.postgres.schema import newest
from kqs.postgres.tables import VERSION, channel
from kqs.testing.postgres import PostgresServer
from tests.support import ServerProcess

from .conftest import Connect, Tables

Told = asyncio.Queue[set[str]]


def test_it_works_with_the_tables_of_the_servers() -> None:
    assert newest() == VERSION
    assert PostgresEngine.capabilities >= kqs.postgres.tables.CAPABILITIES


# -- notices --------------------------------------------------------------------------------------


@pytest.fixture
def told(engine: PostgresEngine) -> Told:
    """What types the engine says are ready."""
    queue: Told = asyncio.Queue()
    engine.on_ready(lambda types: queue.put_nowait(set(types)))
    return queue


async def run(engine: PostgresEngine, told: Told, count: int) -> list[tuple[str, str]]:
    """Lease and ack jobs as they are told of; their types and ids."""
    ran: list[tuple[str, str]] = []
    while len(ran) < count:
        types = await asyncio.wait_for(told.get(), 10)
        leases = await engine.reserve(types, 1000, holder="w")
        ran += [(lease.type, lease.id) for lease in leases]
        await engine.settle([Settlement(lease.receipt, "ok") for lease in leases])
    return ran


async def test_a_server_is_woken_by_the_commit_and_not_before(
    connect: Connect, engine: PostgresEngine, schema: str, told: Told
) -> None:
    connection = connect()
    [a] = kqs.postgres.insert(connection, {"type": "a", "fair": "f"}, schema=schema)
    [other] = kqs.postgres.insert(connect(autocommit=True), {"type": "other"}, schema=schema)
    assert await run(engine, told, 1) == [("other", other)]
    assert told.empty()
    connection.commit()
    assert await run(engine, told, 1) == [("a", a)]


async def test_a_late_commit_has_lower_numbers_and_is_run_all_the_same(
    connect: Connect, engine: PostgresEngine, schema: str, told: Told
) -> None:
    held = connect()
    late = kqs.postgres.insert(held, [{"type": "a"}] * 300, schema=schema)
    early = kqs.postgres.insert(connect(autocommit=True), [{"type": "a"}] * 300, schema=schema)
    assert [id for _, id in await run(engine, told, 300)] == early
    held.commit()
    assert [id for _, id in await run(engine, told, 300)] == late


@pytest.mark.parametrize(
    "jobs",
    [
        [{"type": "a"}] * 200,
        [{"type": "a"}] * 201,
        [{"type": f"{number}-{'ü' * 90}"} for number in range(150)],
        [{"type": f"{number}-{'x' * 20}"} for number in range(250)],
    ],
    ids=["named", "by_type", "too_long", "too_many_types"],
)
async def test_all_are_told_of_in_one_notice(
    connect: Connect, engine: PostgresEngine, schema: str, told: Told, jobs: list[dict[str, Any]]
) -> None:
    listener = connect(autocommit=True)
    listener.execute(f'LISTEN "{channel(schema)}"')
    ids = kqs.postgres.insert(connect(autocommit=True), jobs, schema=schema)
    assert len(list(listener.notifies(timeout=0.5))) == 1
    assert sorted(await run(engine, told, len(jobs))) == sorted(
        zip([job["type"] for job in jobs], ids, strict=True)
    )


@pytest.mark.parametrize("schema", ["s" * 63], indirect=True)
async def test_a_server_hears_whatever_its_schema_is_called(
    connect: Connect, engine: PostgresEngine, schema: str, told: Told
) -> None:
    ids = kqs.postgres.insert(connect(autocommit=True), {"type": "a"}, schema=schema)
    assert await run(engine, told, 1) == [("a", *ids)]


def test_nothing_is_told_of_what_was_there_before_or_is_rolled_back(connect: Connect, schema: str) -> None:
    listener, connection = connect(autocommit=True), connect()
    job = {"type": "a", "key": "k"}
    kqs.postgres.insert(connection, job, schema=schema)
    connection.commit()
    listener.execute(f'LISTEN "{channel(schema)}"')
    kqs.postgres.insert(connection, job, schema=schema)
    connection.commit()
    kqs.postgres.insert(connection, {"type": "b"}, schema=schema)
    connection.rollback()
    kqs.postgres.insert(connection, {"type": "last"}, schema=schema)
    connection.commit()
    [notice] = listener.notifies(timeout=5, stop_after=1)
    assert [job[2] for job in msgspec.json.decode(notice.payload)["jobs"]] == ["last"]


async def wakes(engine: PostgresEngine) -> int:
    """When the engine wants to be woken, once a notice has told it; no event tells of that."""
    async with asyncio.timeout(10):
        while (wake := engine.next_wake()) is None:
            await asyncio.sleep(0.01)
    return wake


async def test_a_delayed_job_is_not_late_nor_early(
    connect: Connect, engine: PostgresEngine, schema: str, told: Told
) -> None:
    assert engine.next_wake() is None
    kqs.postgres.insert(connect(autocommit=True), {"type": "a", "delay": 0.3, "expires": 9}, schema=schema)
    begun = time.time_ns() // 1000
    wake = await wakes(engine)
    assert begun - 1_000_000 < wake - 300_000 <= begun
    while time.time_ns() // 1000 < wake:
        await engine.tick()
        assert told.empty()
        await asyncio.sleep(0.01)
    await engine.tick()
    assert len(await run(engine, told, 1)) == 1
    kqs.postgres.insert(connect(autocommit=True), {"type": "a", "expires": 0.2}, schema=schema)
    await told.get()
    assert await wakes(engine) < time.time_ns() // 1000 + 200_000


async def test_a_notice_that_is_nonsense_stops_nothing(
    connect: Connect, engine: PostgresEngine, schema: str, told: Told
) -> None:
    connection = connect(autocommit=True)
    for nonsense in (
        "x",
        "1",
        '{"jobs":1}',
        '{"jobs":[[-1,2,"a",""]]}',
        '{"jobs":[[1,9,"a",""]]}',
        '{"jobs":[[9223372036854775808,2,"a",""]]}',
        '{"due":"soon"}',
        '{"jobs":[[77777,2,"a",""]],"due":5}',
    ):
        connection.execute("SELECT pg_notify(%s, %s)", [channel(schema), nonsense])
    [id] = kqs.postgres.insert(connection, {"type": "a"}, schema=schema)
    assert await run(engine, told, 1) == [("a", id)]


# -- a server of its own --------------------------------------------------------------------------


@pytest.fixture
def server(postgres: PostgresServer, schema: str, tmp_path: Path) -> Iterator[ServerProcess]:
    text = (
        f'[engine]\nkind = "postgres"\n[postgres]\nurl = "{postgres.url}"\nschema = "{schema}"\n'
        f'[handlers.file]\ncommand = ["sh", "-c", "cat > {tmp_path}/$KQS_JOB_ID"]\n'
    )
    made = ServerProcess(tmp_path, text)
    try:
        yield made.start()
        made.stop()
    finally:
        made.discard()


def test_a_server_runs_them(
    server: ServerProcess, connect: Connect, schema: str, tables: Tables, tmp_path: Path
) -> None:
    large = bytes(range(256)) * 80_000
    jobs = [
        {"type": "file", "data": {"a": "ü"}, "unique": "u"},
        {"type": "file", "data": large},
        {"type": "file", "data": 3, "delay": 0.2},
    ]
    late, connection = connect(), connect()
    [id] = kqs.postgres.insert(late, {"type": "file", "data": "late"}, schema=schema)
    ids = kqs.postgres.insert(connection, jobs, schema=schema)
    with server.client() as client:
        connection.commit()
        for each in ids:
            assert client.call("wait", {"id": each, "timeout": 30})["outcome"] == "ok"
        late.commit()
        assert client.call("wait", {"id": id, "timeout": 30})["outcome"] == "ok"
    assert [(tmp_path / each).read_bytes() for each in (*ids, id)] == [
        '{"a":"ü"}'.encode(),
        large,
        b"3",
        b'"late"',
    ]
    assert tables.ids() == []
