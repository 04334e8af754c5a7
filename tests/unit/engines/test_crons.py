"""Marks of crons and the jobs they are about, on disks that fail: both are there or neither is."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from kqs.errors import Busy, DiskFull, JournalFailed
from kqs.ports import CronMark
from kqs.testing.embedded import SimulatedHarness, come_to_rest
from kqs.testing.engines import Queue, new_job
from kqs.testing.faults import CHANGES, CRASH, FaultAt, PowerLost

from .test_compaction import Harness, compact, engine_of, pass_jobs

RUNS = 4


async def make_runs(queue: Queue) -> None:
    """What is left of the runs of two crons, as a server makes them; the log goes round meanwhile."""
    for run in range(1, RUNS + 1):
        for name in ("a", "b"):
            mark = (await queue.engine.fired()).get(name, CronMark(0)).at
            ids = await queue.engine.fire(name, run, [new_job(name, b"%d" % run)] * 2)
            assert (ids is None) == (mark >= run)
        if run == 2:
            await pass_jobs(queue, 18)
    await compact(queue)


async def check(queue: Queue) -> None:
    """Every run up to a mark is there once, and no other is."""
    marks = await queue.engine.fired()
    ids = {view["id"]: view["type"] for view in await queue.everything() if view["type"] in "ab"}
    found = Counter([(type, (await queue.view(id, data=True))["data"]) for id, type in ids.items()])
    upto = {name: mark.at for name, mark in marks.items()}
    assert found == {(name, run): 2 for name, at in upto.items() for run in range(1, at + 1)}
    assert all(mark.last == mark.at for mark in marks.values())


async def test_the_power_goes_at_every_operation() -> None:
    queue = Queue(harness := Harness(1), await harness.make_engine())
    before = sum(harness.disk.counts[kind] for kind in CHANGES)
    await make_runs(queue)
    total = sum(harness.disk.counts[kind] for kind in CHANGES) - before
    await check(queue)
    assert engine_of(queue).journal.oldest_segment > 1
    random = Random(1)
    for nth in range(1, total + 1):
        queue = Queue(harness := Harness(random.randrange(1 << 30)), await harness.make_engine())
        harness.disk.inject = FaultAt(nth, CRASH, kinds=CHANGES)
        with pytest.raises((PowerLost, JournalFailed)):
            await make_runs(queue)
        harness.disk.inject = None
        harness.disk.crash()
        queue.engine = await harness.make_engine()
        await check(queue)
        await make_runs(queue)
        await check(queue)
        assert await queue.engine.fired() == {"a": CronMark(RUNS, RUNS), "b": CronMark(RUNS, RUNS)}
        await harness.close()


async def test_a_run_that_is_refused_can_be_made_later() -> None:
    queue = Queue(harness := SimulatedHarness(1), await harness.make_engine())
    await queue.engine.fire("a", 1, [new_job()])
    await come_to_rest()
    disk = harness.disk
    disk.capacity = sum(map(len, disk.files().values()))
    large = [new_job(data=b'"%s"' % (b"x" * 1000))] * 12
    for _ in range(2):
        with pytest.raises(DiskFull):
            await queue.engine.fire("a", 2, large)
        assert await queue.engine.fired() == {"a": CronMark(1, 1)}
    assert await queue.engine.fire("a", 1, large) is None  # not refused: there is nothing to do
    disk.capacity = None
    acceptor = engine_of(queue)._acceptor
    acceptor.memory_limit = 1
    with pytest.raises(Busy):
        await queue.engine.fire("a", 2, large)
    acceptor.memory_limit = 1 << 30
    assert len(await queue.engine.fire("a", 2, large) or []) == 12
    await queue.restart("crash")
    assert (await queue.counts())["ready"] == 13


async def test_a_mark_is_answered_when_it_is_durable() -> None:
    """Also to who came second and has nothing to do: the first one's may be lost yet."""
    queue = Queue(harness := SimulatedHarness(1), await harness.make_engine())
    await come_to_rest()
    calls = [asyncio.ensure_future(queue.engine.fire("a", 1, [])) for _ in range(2)]
    harness.disk.inject = FaultAt(1, CRASH, kinds={"datasync"})
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, (PowerLost, JournalFailed))
