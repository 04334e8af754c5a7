"""A beanstalkd of one's own, and a harness for the engine over it, with a clock that both share."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from random import Random

import pytest

from ..core.job import NewJob
from ..engines.beanstalk import BeanstalkEngine
from ..engines.beanstalk.client import connect
from ..engines.beanstalk.pool import Address
from ..engines.beanstalk.protocol import STATS, figure, figures, stats_job
from ..engines.beanstalk.tubes import decode
from ..errors import Unsupported
from ..ports import BulkStore, Inserted, Selection
from .clock import VirtualClock
from .disk import SimDisk
from .embedded import journal_opener
from .engines.harness import EngineHarness
from .executor import InlineExecutor
from .faketime import faketime


class Beanstalkd:
    """One server process, with its binlog in a folder of its own.

    Args:
        flags: more arguments; its binlog is synced at every write unless they say ``-f`` or ``-F``.
        clock: the time it is to live in; None for everybody's. Needs libfaketime.
        binlog: whether it keeps one.

    Attributes:
        address: where it listens.
    """

    def __init__(
        self, flags: Sequence[str] = (), *, clock: VirtualClock | None = None, binlog: bool = True
    ) -> None:
        self._folder = tempfile.mkdtemp(prefix="kqs-beanstalkd-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = Address("127.0.0.1", port)
        self._flags = [*flags]
        if binlog:
            self._flags += ["-b", self._folder]
            self._flags += [] if {"-f", "-F"} & set(flags) else ["-f", "0"]
        self._clock = clock
        self._time = f"{self._folder}/time"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it listens."""
        environment = dict(os.environ)
        if self._clock is not None:
            self.set_time()
            environment |= {"TZ": "UTC"} | faketime(timestamp_file=self._time, no_cache="1")
        listen = ["-l", self.address.host, "-p", str(self.address.port)]
        self.process = subprocess.Popen(
            ["beanstalkd", *listen, *self._flags], env=environment, stderr=subprocess.DEVNULL
        )
        for _ in range(500):
            try:
                socket.create_connection((self.address.host, self.address.port), 1.0).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        raise RuntimeError("beanstalkd does not listen")

    def set_time(self) -> None:
        """It is now as late as its clock says."""
        assert self._clock is not None
        now = dt.datetime.fromtimestamp(self._clock.now() // 1_000_000, dt.UTC)
        text = f"{now:%Y-%m-%d %H:%M:%S}.{self._clock.now() % 1_000_000:06d}\n"
        with open(f"{self._time}.new", "w", encoding="ascii") as file:
            file.write(text)
        os.replace(f"{self._time}.new", self._time)

    async def poke(self) -> None:
        """Have it look at the time."""
        connection = await connect(self.address.host, self.address.port, 5.0)
        await connection.ask(STATS)
        connection.close()

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once; its binlog stays."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    def discard(self) -> None:
        """End it, and remove its binlog."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Prompt(BeanstalkEngine):
    """Returns from ``put`` when the jobs are in their tubes: the cases look at once.

    What it refuses as unsupported is skipped.
    """

    async def control(self, verb: str, selection: Selection) -> int:
        try:
            return await super().control(verb, selection)
        except Unsupported as refusal:
            pytest.skip(str(refusal))

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        inserted = await super().put(jobs)
        await self.feed.drained()
        return inserted

    async def fire(self, name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        ids = await super().fire(name, upto, jobs)
        await self.feed.drained()
        return ids


class BeanstalkHarness(EngineHarness):
    """The engine over one real beanstalkd; the feed's journal lies on a simulated disk.

    Args:
        server: started.
        bulk: where oversize payloads go.
    """

    slack = 1.001  # beanstalkd knows whole seconds only

    def __init__(self, server: Beanstalkd, clock: VirtualClock, bulk: BulkStore | None = None) -> None:
        self._server = server
        self._clock = clock
        self._bulk = bulk
        self.disk = SimDisk(0)
        self.disk.makedirs("/data")
        self.disk.sync_dir("/")
        self._random = Random(0)
        self.engine: BeanstalkEngine | None = None

    def now(self) -> int:
        return self._clock.now()

    async def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)
        self._server.set_time()
        await self._server.poke()

    async def make_engine(self) -> BeanstalkEngine:
        executor = InlineExecutor(asyncio.get_running_loop())
        self.engine = await _Prompt.open(
            journal_opener(self.disk.attach(), executor, "/data", self._clock, self._random),
            self._clock,
            [self._server.address],
            random=self._random.random,
            nonce=self._random.getrandbits,
            bulk=self._bulk,
        )
        return self.engine

    async def restart(self) -> BeanstalkEngine:
        assert self.engine is not None
        await self.engine.close()
        return await self.make_engine()

    async def crash(self) -> BeanstalkEngine:
        assert self.engine is not None
        await asyncio.sleep(0.05)
        self.disk.crash()
        await self.engine._pool.close()
        assert self.engine._lookout is not None
        await self.engine._lookout.close()
        assert self.engine.feed._task is not None
        self.engine.feed._task.cancel()
        await asyncio.wait({self.engine.feed._task})
        return await self.make_engine()

    async def state(self, id: str) -> str:
        """Looked up among all jobs there are: the first that beanstalkd gave a number and so on."""
        connection = await connect(self._server.address.host, self._server.address.port, 5.0)
        try:
            last = figure((await connection.ask(STATS)).body, b"cmd-put")
            replies = await connection.send([b"peek %d\r\n" % number for number in range(1, last + 1)])
            for reply in replies:
                header = decode(reply.body, b"kq-t").header
                if header is not None and header.id == id:
                    return figures((await connection.ask(stats_job(reply.number))).body)["state"]
        finally:
            connection.close()
        return "done"

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.close()
