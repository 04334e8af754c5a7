"""Harnesses for the embedded engine: on a simulated disk without threads, and on a real one with them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from random import Random

from ..engines.embedded import EmbeddedEngine
from ..journal.disk import RealDisk, ThreadExecutor
from ..journal.log import Journal
from ..journal.recovery import lock_directory
from ..journal.scan import Apply
from ..ports import BulkStore, Disk, Executor
from .clock import VirtualClock
from .disk import SimDisk
from .engines.harness import EngineHarness
from .executor import InlineExecutor

#: Small, so that the cases fill segments, drop them and read payloads back.
SEGMENT_SIZE = 16 * 1024
PAYLOAD_WINDOW = 4 * 1024


def journal_opener(
    disk: Disk,
    executor: Executor,
    directory: str,
    clock: VirtualClock,
    random: Random,
    segment_size: int = SEGMENT_SIZE,
) -> Callable[[Apply], Journal]:
    """What opens a journal as an engine wants it; its salts are drawn from ``random``."""

    def open_journal(apply: Apply) -> Journal:
        return Journal.open(
            disk,
            executor,
            directory,
            apply,
            now=clock.now(),
            segment_size=segment_size,
            random=random.randbytes,
        )

    return open_journal


def open_embedded(
    disk: Disk,
    executor: Executor,
    directory: str,
    clock: VirtualClock,
    random: Random,
    *,
    segment_size: int = SEGMENT_SIZE,
    payload_window: int = PAYLOAD_WINDOW,
    bulk: BulkStore | None = None,
) -> EmbeddedEngine:
    """An embedded engine all of whose randomness is drawn from ``random``."""
    return EmbeddedEngine(
        journal_opener(disk, executor, directory, clock, random, segment_size),
        clock,
        random=random.random,
        nonce=random.getrandbits,
        bulk=bulk,
        payload_window=payload_window,
    )


async def come_to_rest(turns: int = 8) -> None:
    """Let the loop do what is on its way: with an inline executor nothing needs more turns than this."""
    for _ in range(turns):
        await asyncio.sleep(0)


class SimulatedHarness(EngineHarness):
    """The embedded engine over a :class:`~kqs.testing.disk.SimDisk`: a run is a function of the seed.

    Args:
        seed: of the disk, of salts, nonces and jitter.
    """

    directory = "/data"

    def __init__(self, seed: int = 0) -> None:
        self.disk = SimDisk(seed)
        self.disk.makedirs(self.directory)
        self.disk.sync_dir("/")
        self.clock = VirtualClock()
        self._random = Random(seed)
        self.engine: EmbeddedEngine | None = None

    def now(self) -> int:
        return self.clock.now()

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def make_engine(self) -> EmbeddedEngine:
        executor = InlineExecutor(asyncio.get_running_loop())
        self.engine = open_embedded(self.disk.attach(), executor, self.directory, self.clock, self._random)
        return self.engine

    async def restart(self) -> EmbeddedEngine:
        assert self.engine is not None
        await self.engine.close()
        return await self.make_engine()

    async def crash(self) -> EmbeddedEngine:
        """Cut the power when nothing is on its way to the disk."""
        await come_to_rest()
        self.disk.crash()
        return await self.make_engine()

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.close()


class RealHarness(EngineHarness):
    """The embedded engine on the real file system, with its real thread; only time is virtual.

    Args:
        directory: an empty directory.
    """

    def __init__(self, directory: str) -> None:
        self._parent = directory
        self._life = 0
        self.clock = VirtualClock()
        self._random = Random(directory)
        self.engine: EmbeddedEngine | None = None
        self._executor: ThreadExecutor | None = None
        self._lock: int | None = None

    @property
    def directory(self) -> str:
        """The data directory."""
        return f"{self._parent}/{self._life}"

    def now(self) -> int:
        return self.clock.now()

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def make_engine(self) -> EmbeddedEngine:
        self._unlock()
        self._lock = lock_directory(self.directory)
        self._executor = ThreadExecutor(asyncio.get_running_loop())
        self.engine = open_embedded(RealDisk(), self._executor, self.directory, self.clock, self._random)
        return self.engine

    async def restart(self) -> EmbeddedEngine:
        assert self.engine is not None
        await self.engine.close()
        return await self.make_engine()

    async def crash(self) -> EmbeddedEngine:
        """Go on with a copy of the files as a process that is killed now would leave them."""
        assert self.engine is not None
        assert self._executor is not None
        await self.engine.journal.sync()
        before = self.directory
        self._life += 1
        copied: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(_result: object, error: BaseException | None) -> None:
            if error is None:
                copied.set_result(None)
            else:
                copied.set_exception(error)

        # In the engine's own thread, so that no file changes while it is copied.
        self._executor.submit(lambda: shutil.copytree(before, self.directory), done)
        await copied
        await self.engine.close()
        return await self.make_engine()

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
