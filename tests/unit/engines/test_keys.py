"""Idempotency keys: the same key, within the window, is the same job (G2)."""

from __future__ import annotations

import asyncio

import pytest

from kqs.core.job import JobOptions, NewJob
from kqs.engines.embedded.keys import KeyIndex
from kqs.errors import JournalFailed
from kqs.testing.embedded import SimulatedHarness
from kqs.testing.engines import Queue, new_job
from kqs.testing.faults import EIO, FaultAt

SECOND = 1_000_000


@pytest.fixture
async def queue() -> Queue:
    harness = SimulatedHarness(seed=2)
    return Queue(harness, await harness.make_engine())


def keyed(key: str | None, data: bytes = b"null") -> NewJob:
    job = new_job(data=data)
    if key is not None:
        job.options = JobOptions(key=key)
    return job


async def test_the_same_key_is_the_same_job(queue: Queue) -> None:
    [id] = await queue.put(keyed("k", b"1"))
    again = await queue.engine.put([keyed("k", b"2")])
    assert (again.ids, again.duplicates) == ([id], (0,))
    assert [lease.data for lease in await queue.take(10)] == [b"1"]


async def test_also_when_the_job_is_done(queue: Queue) -> None:
    [id] = await queue.put(keyed("k"))
    assert await queue.settle(await queue.take_one()) is None
    again = await queue.engine.put([keyed("k")])
    assert (again.ids, again.duplicates) == ([id], (0,))
    assert await queue.take() == []


async def test_a_batch_tells_which_are_duplicates(queue: Queue) -> None:
    [first] = await queue.put(keyed("a"))
    inserted = await queue.engine.put([keyed(None), keyed("b"), keyed("a"), keyed("b"), keyed(None)])
    assert inserted.duplicates == (2, 3)
    assert inserted.ids[2] == first
    assert inserted.ids[3] == inserted.ids[1]
    assert len(set(inserted.ids)) == 4
    assert (await queue.counts())["ready"] == 4


async def test_callers_at_the_same_time_get_one_job(queue: Queue) -> None:
    """The second comes while the first is on its way to the disk, and is answered no sooner than it."""
    inserted = await asyncio.gather(*(queue.engine.put([keyed("k")]) for _ in range(5)))
    assert len({one.ids[0] for one in inserted}) == 1
    assert sorted(one.duplicates for one in inserted) == [(), (0,), (0,), (0,), (0,)]
    assert (await queue.counts())["ready"] == 1


async def test_who_waited_for_an_insert_that_failed_is_told(queue: Queue) -> None:
    queue.harness.disk.inject = FaultAt(1, EIO, kinds=("datasync",))  # type: ignore[attr-defined]
    puts = [asyncio.ensure_future(queue.engine.put([keyed("k")])) for _ in range(3)]
    async with asyncio.timeout(10):
        results = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(result) for result in results] == [JournalFailed] * 3


@pytest.mark.parametrize("way", ["restart", "crash"])
async def test_keys_survive(queue: Queue, way: str) -> None:
    [id] = await queue.put(keyed("k"))
    await queue.restart(way)
    again = await queue.engine.put([keyed("k")])
    assert (again.ids, again.duplicates) == ([id], (0,))


@pytest.mark.parametrize("restart", [False, True])
async def test_a_key_is_forgotten_after_its_window_and_not_before(queue: Queue, restart: bool) -> None:
    [id] = await queue.put(keyed("k"))
    await queue.advance(86_399)
    if restart:
        await queue.restart()
    assert (await queue.engine.put([keyed("k")])).ids == [id]
    await queue.advance(1)
    if restart:
        await queue.restart()
    [other] = await queue.put(keyed("k"))
    assert other != id
    assert (await queue.engine.put([keyed("k")])).ids == [other]


def test_over_the_cap_the_oldest_go_first() -> None:
    keys = KeyIndex(1000, 3)
    for number in range(5):
        keys.add(f"k{number}", number, number * SECOND, 1, number * SECOND)
    now = 5 * SECOND
    assert [keys.find(f"k{number}", now) for number in range(5)] == [None, None, 2, 3, 4]
    assert len(keys) == 3
