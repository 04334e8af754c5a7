"""A PostgreSQL of one's own, in a temporary folder, reached by a Unix socket, and by TCP if asked to."""

from __future__ import annotations

import asyncio
import glob
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import psutil
from psycopg import AsyncConnection, Connection

from ..core.job import NewJob
from ..engines.postgres import PostgresEngine, migrate
from ..engines.postgres import open as open_engine
from ..journal.log import Journal
from ..journal.scan import Apply
from ..ports import Inserted
from ..settings.engines import PostgresConfig
from .clock import VirtualClock
from .disk import SimDisk
from .embedded import journal_opener
from .engines.harness import EngineHarness
from .executor import InlineExecutor

_USER: Final = "postgres"


#: What is run here; a folder with all of them is one of server programs.
_PROGRAMS: Final = ("initdb", "pg_basebackup", "pg_isready", "postgres")


def binaries() -> str | None:
    """The folder of the newest PostgreSQL server programs, or None."""
    versions = sorted(
        glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]), reverse=True
    )
    on_path = shutil.which("postgres")
    folders = [*versions, *([os.path.dirname(os.path.realpath(on_path))] if on_path else [])]
    return next((f for f in folders if all(os.access(f"{f}/{name}", os.X_OK) for name in _PROGRAMS)), None)


class PostgresServer:
    """One server with durable settings. It never runs as root: root's is run as the user ``postgres``.

    Args:
        settings: ``name=value`` beside those that place it.
        address: it listens there too, on a port of its own; empty: at its Unix socket only.
        within: the folder its own is made in; the system's for temporary ones when not given.
        primary: a server that runs, of which it is a copy that follows it.
    """

    def __init__(
        self,
        settings: tuple[str, ...] = (),
        *,
        address: str = "",
        within: str | None = None,
        primary: PostgresServer | None = None,
    ) -> None:
        folder = binaries()
        if folder is None:
            raise FileNotFoundError("no PostgreSQL server programs here")
        self._programs = folder
        self.folder = tempfile.mkdtemp(prefix="kqs-pg-", dir=within)
        self._as = ["runuser", "-u", _USER, "--"] if os.geteuid() == 0 else []
        if self._as:
            shutil.chown(self.folder, _USER)
        self._settings = settings
        self.address, self.port = address, _free_port(address) if address else 5432
        self._data = f"{self.folder}/data"
        self.process: subprocess.Popen[bytes] | None = None
        if primary is not None:
            at = ["-h", primary.folder, "-p", str(primary.port), "-U", _USER]
            self._run("pg_basebackup", "-D", self._data, *at, "-R", "-X", "stream", "-c", "fast", "--no-sync")
            return
        self._run(
            "initdb", "-D", self._data, "-U", _USER, "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale"
        )
        if address:
            with open(f"{self._data}/pg_hba.conf", "a", encoding="ascii") as rules:
                rules.write("host all all 0.0.0.0/0 trust\n")

    @property
    def url(self) -> str:
        return f"host={self.folder} port={self.port} user={_USER} dbname=postgres"

    @property
    def tcp_url(self) -> str:
        """The same at the address it listens at."""
        return f"host={self.address} port={self.port} user={_USER} dbname=postgres"

    def _run(self, program: str, *args: str) -> None:
        command = [*self._as, f"{self._programs}/{program}", *args]
        subprocess.run(command, check=True, cwd=self.folder, capture_output=True)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """What one statement gives, on a connection of its own."""
        with Connection.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        self.spawn()
        limit = time.monotonic() + 60
        while not self.takes_connections():
            if time.monotonic() > limit or not self.runs:
                with open(f"{self.folder}/log", encoding="utf-8", errors="replace") as text:
                    raise RuntimeError(f"PostgreSQL does not start: {text.read()[-2000:]}")
            time.sleep(0.02)

    def spawn(self) -> None:
        """Start it, and do not wait."""
        place = ["-D", self._data, "-k", self.folder, "-p", str(self.port)]
        place += ["-c", f"listen_addresses={self.address}"]
        more = [part for setting in self._settings for part in ("-c", setting)]
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen(
                [*self._as, f"{self._programs}/postgres", *place, *more],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def takes_connections(self) -> bool:
        ready = [f"{self._programs}/pg_isready", "-q", "-h", self.folder, "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    @property
    def runs(self) -> bool:
        """Whether its process is there; False: it was never started, or it ended."""
        return self.process is not None and self.process.poll() is None

    def promote(self) -> None:
        """A standby is a primary from now on; returns when it is."""
        self.sql("SELECT pg_promote(true, 60)")

    def _pid(self) -> int:
        with open(f"{self._data}/postmaster.pid", encoding="ascii") as file:
            return int(file.readline())

    def kill(self) -> None:
        """kill -9 the postmaster; its children notice and end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it in order, without waiting for clients."""
        self._end(signal.SIGINT)

    def freeze(self) -> None:
        """SIGSTOP all its processes."""
        self._send_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT all its processes."""
        self._send_all(signal.SIGCONT)
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)  # runuser stops with what it runs

    def _send_all(self, number: signal.Signals) -> None:
        postmaster = psutil.Process(self._pid())
        for process in [postmaster, *postmaster.children()]:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            try:
                os.kill(self._pid(), number)
            except (FileNotFoundError, ProcessLookupError):
                pass  # it is ending
            self.process.wait(30)
        self.process = None

    def close(self) -> None:
        """Stop it and remove its data."""
        self.stop()
        shutil.rmtree(self.folder)


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as free:
        return int(free.getsockname()[1])


class PostgresHarness(EngineHarness):
    """The engine over a real server; only time is virtual. Each harness has a schema of its own.

    Args:
        server: it runs.
        seed: of receipts, jitter and what else is random; no two of one database may have the same.
    """

    def __init__(self, server: PostgresServer, seed: int = 1) -> None:
        self.clock = VirtualClock()
        self._random = Random(seed)
        self._config = PostgresConfig(url=server.url, schema=f"t{secrets.token_hex(6)}")
        self.engine: PostgresEngine | None = None

    def now(self) -> int:
        return self.clock.now()

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def make_engine(self) -> PostgresEngine:
        if self.engine is None:
            async with await AsyncConnection.connect(self._config.url, autocommit=True) as connection:
                await migrate(connection, self._config.schema)
        self.engine = await open_engine(
            self._config,
            self.clock,
            random=self._random.random,
            nonce=self._random.getrandbits,
            poll=3600.0,
            settle=0.0,
            open_journal=self._open_journal(),
        )
        return self.engine

    def _open_journal(self) -> Callable[[Apply], Journal] | None:
        """What opens the journal that accepts jobs first; None: PostgreSQL accepts."""
        return None

    async def restart(self) -> PostgresEngine:
        assert self.engine is not None
        await self.engine.close()
        return await self.make_engine()

    async def crash(self) -> PostgresEngine:
        """Its connections end and it is gone; the database is as it was. Nothing is written at a close."""
        return await self.restart()

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.close()
        async with await AsyncConnection.connect(self._config.url, autocommit=True) as connection:
            await connection.execute(f"DROP SCHEMA {self._config.schema} CASCADE".encode())


class _Prompt(PostgresEngine):
    """Returns from ``put`` when the jobs are in the tables: the cases look at once."""

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        inserted = await super().put(jobs)
        assert self.feeder is not None
        await self.feeder.feed.drained()
        return inserted


class JournalPostgresHarness(PostgresHarness):
    """The same, with a journal that accepts jobs first, on a simulated disk."""

    def __init__(self, server: PostgresServer, seed: int = 1) -> None:
        super().__init__(server, seed)
        self.disk = SimDisk(seed)
        self.disk.makedirs("/data")
        self.disk.sync_dir("/")

    def _open_journal(self) -> Callable[[Apply], Journal]:
        executor = InlineExecutor(asyncio.get_running_loop())
        return journal_opener(self.disk.attach(), executor, "/data", self.clock, self._random)

    async def make_engine(self) -> PostgresEngine:
        engine = await super().make_engine()
        engine.__class__ = _Prompt
        return engine
