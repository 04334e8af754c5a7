"""PostgreSQL's disk gets full under load: inserts are refused by name, and nothing accepted is lost."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kqs.core.outcome import Settlement
from kqs.errors import Busy, DiskFull
from kqs.testing.engines import new_job
from kqs.testing.postgres import PostgresServer
from tests.conftest import unavailable
from tests.databases import postgres_server

from .machine import FileSystem, Unavailable
from .postgres import Load, answered, engine_at, migrated, running, until

pytestmark = pytest.mark.asyncio

MIB = 1 << 20


@pytest.fixture
def disk() -> Iterator[FileSystem]:
    """A small file system that the user PostgreSQL runs as can reach."""
    folder = Path(tempfile.mkdtemp(prefix="kqs-disk-"))
    folder.chmod(0o755)
    made = None
    try:
        made = FileSystem(folder / "disk", size=160 * MIB)
        made.folder.chmod(0o777)
        yield made
    except Unavailable as reason:
        unavailable(str(reason))
    finally:
        if made is not None:
            made.discard()
        shutil.rmtree(folder)


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with running() as server:
        yield server


async def test_no_space_for_anything(disk: FileSystem) -> None:
    """PostgreSQL cannot even write its log, and stops itself: everything waits until there is space."""
    postgres = postgres_server("wal_recycle=off", "max_wal_size=32MB", within=str(disk.folder))
    try:
        await asyncio.to_thread(postgres.start)
        await migrated(postgres.url)
        async with engine_at(postgres.url, poll=0.2) as engine:
            load = Load(engine)
            await load.progress(100)
            full = disk.fill()
            big = [new_job(data=b'"%s"' % (b"x" * 1_000_000))]
            with pytest.raises((Busy, DiskFull)):
                for _ in range(100):
                    await engine.put(big)
            refused = load.errors.total()
            await until(lambda: load.errors.total() > refused, "callers to be told")
            full.unlink()
            if not postgres.takes_connections():
                await asyncio.to_thread(postgres.stop)
                await asyncio.to_thread(postgres.start)
            await load.progress(100)
            await load.finish()
    finally:
        postgres.close()


async def test_no_space_for_jobs(disk: FileSystem, postgres: PostgresServer) -> None:
    """The tables are on a disk of their own: jobs cannot come in, and still end."""
    place = disk.folder / "tables"
    place.mkdir()
    shutil.chown(place, "postgres")
    postgres.sql(f"CREATE TABLESPACE small LOCATION '{place}'")
    postgres.sql("ALTER TABLE kqs.job SET TABLESPACE small")
    async with engine_at(postgres.url, poll=0.2) as engine:
        waiting = (await engine.put([new_job("t") for _ in range(50)])).ids
        leases = await engine.reserve(["t"], 50, holder="w")
        load = Load(engine, workers=0)
        full = disk.fill()
        with pytest.raises(DiskFull, match="disk is full"):
            while True:
                await engine.put([new_job(data=b'"%s"' % (b"x" * 5000)) for _ in range(100)])
        with pytest.raises(DiskFull):
            await engine.put([new_job(data=b'"%s"' % (b"x" * 5000), key="k") for _ in range(100)])
        assert await engine.settle([Settlement(lease.receipt, "ok") for lease in leases]) == []
        full.unlink()
        await answered(lambda: engine.put([new_job(key="k")]))
        assert {(await engine.job(id))["state"] for id in waiting} == {"done"}
        accepted = set(load.accepted)
        await load.stop()
        left: set[str] = set()
        while leases := await engine.reserve((), 500, holder="w"):
            left |= {lease.id for lease in leases}
        assert accepted <= left
        assert load.errors.keys() <= {"DiskFull", "Busy"}
