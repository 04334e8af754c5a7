"""The memory limit: inserts get ``busy`` at it, what ends jobs goes on, and then there is room again (G9)."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from kqs.engines.embedded import EmbeddedEngine
from kqs.errors import Busy
from kqs.journal.log import Journal
from kqs.journal.recovery import Apply
from kqs.testing.embedded import SimulatedHarness
from kqs.testing.engines import Queue, new_job
from kqs.testing.executor import InlineExecutor

LIMIT = 200_000


class Harness(SimulatedHarness):
    async def make_engine(self) -> EmbeddedEngine:
        disk, random, executor = self.disk.attach(), self._random, InlineExecutor(asyncio.get_running_loop())

        def open_journal(apply: Apply) -> Journal:
            return Journal.open(disk, executor, self.directory, apply, now=self.now(), segment_size=1 << 20)

        settings = {"payload_window": 10_000, "memory_limit": LIMIT}
        self.engine = EmbeddedEngine(
            open_journal, self.clock, random=Random(1).random, nonce=random.getrandbits, **settings
        )
        return self.engine


async def test_at_the_limit_inserts_are_busy_and_the_rest_goes_on() -> None:
    harness = Harness(seed=4)
    queue = Queue(harness, await harness.make_engine())
    ids: list[str] = []
    with pytest.raises(Busy, match=str(LIMIT)):
        for _ in range(1000):
            ids += await queue.put(*(new_job(data=b'"%s"' % (b"x" * 200)) for _ in range(20)))
    memory = (await queue.engine.stats())["memory"]
    assert LIMIT <= memory["bytes"] < 1.1 * LIMIT
    assert memory["payload_bytes"] <= 10_000
    with pytest.raises(Busy):
        await queue.put_one()
    given = []
    while leases := await queue.take(10):
        given += [lease.id for lease in leases]
        for lease in leases:
            assert await queue.settle(lease) is None
    assert given == ids  # none was dropped for want of memory
    await queue.put_one()


async def test_a_backlog_over_the_limit_starts() -> None:
    """What was accepted is kept whatever the limit is now; only new jobs wait."""
    harness = Harness(seed=5)
    queue = Queue(harness, await harness.make_engine())
    with pytest.raises(Busy):
        for _ in range(1000):
            await queue.put(*(new_job() for _ in range(100)))
    before = await queue.counts()
    await queue.restart("crash")
    assert await queue.counts() == before
