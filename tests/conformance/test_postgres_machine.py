"""The engine over PostgreSQL does what the model does, whatever the operations (T2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from kqs.testing.engine_machine import engine_machine
from kqs.testing.postgres import PostgresHarness, PostgresServer

_servers: list[PostgresServer] = []


@pytest.fixture(scope="module", autouse=True)
def _server(postgres: PostgresServer) -> Iterator[None]:
    _servers.append(postgres)
    yield
    _servers.clear()


TestOnPostgres = engine_machine(
    lambda: PostgresHarness(_servers[0]), examples=max(1, 3 * settings().max_examples // 10), steps=30
)
