"""The engine over PostgreSQL does what the model does, whatever the operations (T2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from kqs.testing.engine_machine import engine_machine
from kqs.testing.postgres import PostgresHarness, PostgresServer

_servers: list[PostgresServer] = []


@pytest.fixture(scope="module", autouse=True)
def _server(postgres: PostgresServer) -> Iterator[None]:
    _servers.append(postgres)
    yield
    _servers.clear()


TestOnPostgres = engine_machine(
    lambda: PostgresHarness(_servers[0]),
    settings(
        max_examples=30,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    ),
)
