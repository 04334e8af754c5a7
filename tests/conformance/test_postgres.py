"""The engine over PostgreSQL passes the whole suite, on a real server with durable settings.

A part of it is passed again when a journal accepts the jobs before PostgreSQL does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kqs.testing.engines import EngineSuite
from kqs.testing.engines.cron import CronCases
from kqs.testing.engines.expiry import ExpiryCases
from kqs.testing.engines.put import PutCases
from kqs.testing.engines.restart import RestartCases
from kqs.testing.engines.time import TimeCases
from kqs.testing.engines.unique import UniqueCases
from kqs.testing.postgres import JournalPostgresHarness, PostgresHarness, PostgresServer


class TestOnPostgres(EngineSuite):
    @pytest.fixture
    async def harness(self, postgres: PostgresServer) -> AsyncIterator[PostgresHarness]:
        harness = PostgresHarness(postgres)
        yield harness
        await harness.close()


class TestOnPostgresBehindAJournal(PutCases, UniqueCases, CronCases, ExpiryCases, TimeCases, RestartCases):
    """What depends on how jobs come in; the rest is the same code."""

    @pytest.fixture
    async def harness(self, postgres: PostgresServer) -> AsyncIterator[JournalPostgresHarness]:
        harness = JournalPostgresHarness(postgres)
        yield harness
        await harness.close()
