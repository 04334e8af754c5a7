"""A real PostgreSQL for the module, and a schema of KQS for each test."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from kqs.engines.postgres import PostgresEngine, migrate
from kqs.engines.postgres import open as open_engine
from kqs.settings.engines import PostgresConfig
from kqs.testing.postgres import PostgresServer

Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture
def schema(request: pytest.FixtureRequest, postgres: PostgresServer) -> str:
    """Its name, which a test may choose; the tables are there."""
    name: str = getattr(request, "param", f"t{secrets.token_hex(6)}")

    async def make() -> None:
        async with await psycopg.AsyncConnection.connect(postgres.url, autocommit=True) as connection:
            await migrate(connection, name)

    asyncio.run(make())
    return name


@pytest.fixture
def connect(postgres: PostgresServer) -> Iterator[Connect]:
    """Opens connections, closed after the test."""
    made: list[psycopg.Connection[Any]] = []

    def open_one(**settings: Any) -> psycopg.Connection[Any]:
        made.append(psycopg.connect(postgres.url, **settings))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


class Tables:
    """What everybody sees in a schema: only what was committed."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self._connection = connection
        self._schema = sql.Identifier(schema)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query in which ``{}`` stands for the schema."""
        return self._connection.execute(sql.SQL(query).format(self._schema), values).fetchall()

    def ids(self) -> list[str]:
        """The ids of all jobs, in order."""
        return [
            row[0]
            for row in self.rows("SELECT prefix || '-' || id FROM {0}.cluster, {0}.job ORDER BY job.id")
        ]

    def waits(self, connection: psycopg.Connection[Any]) -> bool:
        """Whether a connection waits for another one's lock."""
        query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        return bool(self.rows(query, connection.info.backend_pid)[0][0])


@pytest.fixture
def tables(connect: Connect, schema: str) -> Tables:
    return Tables(connect(autocommit=True), schema)


class _Clock:
    def now(self) -> int:
        return time.time_ns() // 1000


@pytest.fixture
async def engine(postgres: PostgresServer, schema: str) -> AsyncIterator[PostgresEngine]:
    """The engine of a server that hears of jobs by notices alone."""
    made = await open_engine(
        PostgresConfig(url=postgres.url, schema=schema),
        _Clock(),
        random=random.random,
        nonce=random.getrandbits,
        poll=3600.0,
    )
    yield made
    await made.close()
