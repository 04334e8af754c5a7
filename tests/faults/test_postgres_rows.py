"""Rows edited by hand under a running engine: a job is buried and says why, or goes on; none other waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from psycopg import AsyncConnection
from structlog.testing import capture_logs

from kqs.core.outcome import Settlement
from kqs.engines.postgres import PostgresEngine
from kqs.errors import NotFound
from kqs.ports import Lease
from kqs.testing.engines import new_job
from kqs.testing.postgres import PostgresServer

from .postgres import engine_at, running

pytestmark = pytest.mark.asyncio

_MOST = 2**63 - 1
EDITS = [
    "state = 3",
    "state = 4",
    f"state = 1, due = {_MOST}",
    f"state = 1, due = {-_MOST}",
    "type = ''",
    "type = E'\\x01\\x1b[2J'",
    "type = repeat('long ', 400)",
    "fair = E'\\n'",
    "options = '{'",
    "options = '[]'",
    "options = 'null'",
    "options = ''",
    """options = '{"retry": {"backoff": "never"}}'""",
    """options = '{"bulk": {"name": "../../etc/passwd", "sha256": 5}}'""",
    """options = '{"bulk"'""",
    """options = '"bulk"'""",
    "error = '{'",
    "error = '[]'",
    """error = '{"kind": 5}'""",
    "progress = 'half'",
    "attempt = 2147483647",
    "attempt = -5",
    "deaths = 2147483647",
    f"ttr = {_MOST}",
    f"leased = {_MOST}",
    "ttr = 0",
    "ttr = -5",
    f"inserted = {_MOST}",
    f"inserted = {-_MOST}",
    f"due = {_MOST}",
    f"overdue = {_MOST}",
    "overdue = 1",
    "overdue = -1",
    f"nonce = {_MOST}, expires = {_MOST}",
    "nonce = -5",
    "server = -1, local = true, holder = 'nobody'",
    "unique_key = 'k'",
    "cancelled = true",
    "data = ''",
    "settled = 5, settled_as = 'nonsense'",
]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running() as server:
        yield server


async def _look_at_everything(engine: PostgresEngine, id: str) -> None:
    """What people and the server ask for; none of it may fail for one bad row."""
    await engine.tick()
    await engine.jobs(state=None, type=None, limit=1000, after=None)
    await engine.stats()
    await engine.ready_types()
    await engine.bulk_names()
    try:
        await engine.job(id, data=True)
        await engine.why(id)
    except NotFound:
        pass


async def _settle_all(engine: PostgresEngine, leases: list[Lease]) -> None:
    await engine.settle([Settlement(lease.receipt, "again", delay=0.0) for lease in leases])
    await engine.tick()
    for lease in await engine.reserve((), 100, holder="w"):
        await engine.settle([Settlement(lease.receipt, "ok")])


@pytest.mark.parametrize("when", ["waiting", "leased", "its worker dies"])
async def test_one_bad_row_is_no_other_jobs_business(postgres: PostgresServer, when: str) -> None:
    failures = []
    with capture_logs() as logs:
        async with (
            await AsyncConnection.connect(postgres.url, autocommit=True) as control,
            engine_at(postgres.url, poll=0.05, settle=0.0) as engine,
        ):
            for edit in EDITS:
                [id] = (await engine.put([new_job("bad", ttr=600)])).ids
                leases = await engine.reserve((), 1, holder="w") if when != "waiting" else []
                await control.execute(f"UPDATE kqs.job SET {edit}".encode())
                try:
                    [good] = (await engine.put([new_job("good", ttr=600)])).ids
                    await asyncio.sleep(0.06)  # a poll
                    await _look_at_everything(engine, id)
                    found = await engine.reserve((), 10, holder="w")
                    assert good in [lease.id for lease in found], "the other job waits"
                    if when == "its worker dies":
                        await engine.rescue([lease.receipt for lease in leases], died=True)
                    await _settle_all(engine, found + leases)
                    await _look_at_everything(engine, id)
                except Exception as error:
                    failures.append(f"{edit}: {error!r}")
                await control.execute(b"TRUNCATE kqs.job")
        async with engine_at(postgres.url):
            pass  # a start finds nothing in its way
    assert failures == []
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
