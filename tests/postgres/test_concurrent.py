"""Transactions that are open at the same time and insert the same job."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg import errors as pg

import kqs.postgres
from kqs.core.job import Unique
from kqs.engines.postgres import PostgresEngine
from kqs.errors import Busy
from kqs.testing.engines import new_job
from tests.support import until

from .conftest import Connect, Tables

SAME: list[dict[str, Any]] = [{"type": "a", "key": "k"}, {"type": "a", "unique": "u"}]
same = pytest.mark.parametrize("job", SAME, ids=["key", "unique"])
Second = Future[list[str]]


def second(
    pool: ThreadPoolExecutor, connection: psycopg.Connection[Any], job: Any, schema: str, tables: Tables
) -> Second:
    """An insert in another thread, which waits for the transaction that was first."""
    future = pool.submit(kqs.postgres.insert, connection, job, schema=schema)
    until(lambda: tables.waits(connection), "the second to wait")
    assert not future.done()
    return future


@same
def test_the_second_waits_and_gets_the_id_of_the_first(
    connect: Connect, schema: str, tables: Tables, job: dict[str, Any]
) -> None:
    one, two = connect(), connect()
    first = kqs.postgres.insert(one, job, schema=schema)
    with ThreadPoolExecutor(1) as pool:
        more = [{"type": "b"}, job, {"type": "c", "key": "other"}]
        future = second(pool, two, more, schema, tables)
        one.commit()
        ids = future.result(30)
    assert ids[1:2] == first
    two.commit()
    assert tables.ids() == sorted({*first, *ids}, key=lambda id: int(id.rpartition("-")[2]))
    assert len(tables.ids()) == 3


@same
def test_the_second_waits_and_inserts_when_the_first_is_rolled_back(
    connect: Connect, schema: str, tables: Tables, job: dict[str, Any]
) -> None:
    one, two = connect(), connect()
    kqs.postgres.insert(one, job, schema=schema)
    with ThreadPoolExecutor(1) as pool:
        future = second(pool, two, job, schema, tables)
        one.rollback()
        ids = future.result(30)
    two.commit()
    assert tables.ids() == ids


@same
@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_where_the_first_is_hidden_the_second_is_told_to_begin_again(
    connect: Connect, schema: str, tables: Tables, job: dict[str, Any], level: IsolationLevel
) -> None:
    one, two = connect(), connect()
    two.isolation_level = level
    two.execute("SELECT 1")
    assert kqs.postgres.insert(two, {"type": "b"}, schema=schema)
    first = kqs.postgres.insert(one, job, schema=schema)
    one.commit()
    with pytest.raises(pg.SerializationFailure):
        kqs.postgres.insert(two, job, schema=schema)
    two.rollback()
    assert kqs.postgres.insert(two, job, schema=schema) == first
    two.commit()
    assert tables.ids() == first


@pytest.mark.parametrize("field", ["key", "unique"])
def test_those_who_insert_the_same_in_another_order_do_not_wait_for_each_other(
    connect: Connect, schema: str, tables: Tables, field: str
) -> None:
    connections = [connect(autocommit=True) for _ in range(4)]
    steps = (1, -1, 1, -1)
    with ThreadPoolExecutor(4) as pool:
        for again in range(10):
            jobs = [{"type": "a", field: f"{again}.{number}"} for number in range(500)]
            futures = [
                pool.submit(kqs.postgres.insert, connection, jobs[::step], schema=schema)
                for connection, step in zip(connections, steps, strict=True)
            ]
            ids = [future.result(60)[::step] for future, step in zip(futures, steps, strict=True)]
            assert ids[1:] == ids[:1] * 3
    assert len(tables.ids()) == 5000


# -- beside a server --------------------------------------------------------------------------------


@same
async def test_a_server_waits_a_second_for_the_transaction_and_is_then_busy(
    connect: Connect, engine: PostgresEngine, schema: str, job: dict[str, Any]
) -> None:
    connection = connect()
    ids = kqs.postgres.insert(connection, job, schema=schema)
    unique = job.get("unique")
    new = new_job("a", key=job.get("key"), unique=unique and Unique(unique))
    with pytest.raises(Busy, match="a transaction that is still open"):
        await engine.put([new])
    connection.commit()
    inserted = await engine.put([new])
    assert (inserted.ids, inserted.duplicates) == (ids, (0,))
    assert kqs.postgres.insert(connection, job, schema=schema) == ids


async def test_a_server_takes_ten_thousand_keys_in_one_call(engine: PostgresEngine) -> None:
    """There are more than PostgreSQL has room for locks."""
    jobs = [new_job(key=f"k{number}") for number in range(10_000)]
    ids = (await engine.put(jobs)).ids
    again = await engine.put(jobs)
    assert (again.ids, len(again.duplicates)) == (ids, 10_000)
