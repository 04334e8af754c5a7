"""Old segments are given up and what lives in them is carried forward: nothing of it may be lost."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from kqs.core.job import JobOptions, NewJob
from kqs.engines.embedded import EmbeddedEngine
from kqs.errors import JournalFailed
from kqs.ports import Selection
from kqs.testing.embedded import SimulatedHarness, come_to_rest, open_embedded
from kqs.testing.engines import Queue, new_job
from kqs.testing.executor import InlineExecutor
from kqs.testing.faults import CHANGES, CRASH, FaultAt, PowerLost

SEGMENT = 4096


class Harness(SimulatedHarness):
    """With small segments, so that few jobs fill them."""

    async def make_engine(self) -> EmbeddedEngine:
        executor = InlineExecutor(asyncio.get_running_loop())
        place = (self.disk.attach(), executor, self.directory, self.clock, self._random)
        self.engine = open_embedded(*place, segment_size=SEGMENT)
        return self.engine


async def make_queue(seed: int = 1) -> Queue:
    harness = Harness(seed)
    return Queue(harness, await harness.make_engine())


def engine_of(queue: Queue) -> EmbeddedEngine:
    assert isinstance(queue.engine, EmbeddedEngine)
    return queue.engine


async def pass_jobs(queue: Queue, count: int) -> None:
    """Insert jobs and finish them at once: most of the log is dead then."""
    for _ in range(count):
        await queue.put_one("short", b'"%s"' % (b"s" * 300))
        assert await queue.settle(await queue.take_one(["short"])) is None


async def compact(queue: Queue) -> None:
    """Give the engine the turns it needs to give up all it can.

    Raises:
        JournalFailed: it cannot.
    """
    journal, before = engine_of(queue).journal, None
    while (now := journal.stats()) != before:
        if journal.failed is not None:
            raise journal.failed
        before = now
        await queue.engine.tick()
        await come_to_rest(100)


def keyed(key: str) -> NewJob:
    job = new_job("keyed")
    job.options = JobOptions(key=key)
    return job


async def fill(queue: Queue) -> list[str]:
    """Jobs in every state, one of them leased; returns all ids."""
    ids = await queue.put(
        *(new_job("stays", b"%d" % n, prio="low", max_attempts=5) for n in range(6)),
        new_job("stays", bytes(range(256)), binary=True),
        new_job("stays", delay=5000),
        keyed("of a job that waits"),
    )
    leases = await queue.take(5, ["stays"])
    await queue.settle(leases[0], "again", delay=600, reason="not yet")
    await queue.settle(leases[1], "fail", reason="no")
    await queue.engine.rescue([leases[2].receipt], died=True, reason="signal 9")
    await queue.settle(leases[3], "release", prio="urgent")
    return ids


async def test_stuck_jobs_do_not_pin_the_log() -> None:
    """It stays below twice the live data and a segment, through 30 segments of jobs that come and go."""
    queue = await make_queue()
    await queue.put(*(new_job("stuck", b'"%s"' % (b"x" * 200)) for _ in range(5)))
    journal = engine_of(queue).journal
    for _ in range(30):
        await pass_jobs(queue, 8)
        await compact(queue)
        assert journal.size < 2 * engine_of(queue)._index.live_bytes + 2 * SEGMENT
    assert journal.oldest_segment > 20
    assert len(await queue.take(100, ["stuck"])) == 5


@pytest.mark.parametrize("way", ["restart", "crash"])
async def test_jobs_are_the_same_after_they_were_carried(way: str) -> None:
    queue = await make_queue()
    await fill(queue)
    before = await queue.everything()
    for _ in range(4):
        await pass_jobs(queue, 20)
        await compact(queue)
        assert await queue.everything() == before
    assert (await queue.engine.stats())["journal"]["carried"] >= 2 * len(before)
    payloads = [await queue.view(view["id"], data=True) for view in before]
    await queue.restart(way)
    assert await queue.everything() == before
    assert [await queue.view(view["id"], data=True) for view in before] == payloads


@pytest.mark.parametrize("way", ["restart", "crash"])
async def test_the_error_of_a_job_that_never_ran_is_carried_again_and_again(way: str) -> None:
    """Its accept entry is in the window of payloads still, and has no error."""
    queue = await make_queue()
    id = await queue.put_one("stays")
    await queue.engine.control("bury", Selection([id]))
    before = await queue.view(id)
    assert before["last_error"]["kind"] == "bury"
    for times in range(1, 4):
        await pass_jobs(queue, 40)
        await compact(queue)
        assert (await queue.engine.stats())["journal"]["carried"] >= times
        assert await queue.view(id) == before
    await queue.restart(way)
    assert await queue.view(id) == before


async def test_a_carried_lease_is_the_same_lease() -> None:
    queue = await make_queue()
    await queue.put_one("held", ttr=60)
    lease = await queue.take_one(["held"], holder="remote")
    await pass_jobs(queue, 30)
    await compact(queue)
    assert engine_of(queue).journal.oldest_segment > 1
    await queue.restart("crash")
    assert queue.engine.held_by("remote") == [lease.receipt]
    assert await queue.settle(lease) is None


async def test_what_happens_to_a_job_while_it_is_carried_counts() -> None:
    """The carry entry is on its way when the job ends: it stays ended, now and after a restart."""
    queue = await make_queue()
    ids = await queue.put(*(new_job("stays") for _ in range(3)))
    await pass_jobs(queue, 40)
    await queue.engine.tick()
    await asyncio.sleep(0)
    assert engine_of(queue)._compactor.carried == 0  # begun, and not done
    ends = [
        queue.engine.control("delete", Selection(ids[:1])),
        queue.engine.control("bury", Selection(ids[1:2])),
    ]
    await asyncio.gather(*ends)
    await compact(queue)
    assert engine_of(queue)._compactor.carried > 0
    for way in ("restart", "crash"):
        assert [view["state"] for view in await queue.everything()] == ["buried", "ready"]
        await queue.restart(way)


async def test_keys_outlive_the_segment_of_their_job() -> None:
    queue = await make_queue()
    [waiting] = await queue.put(keyed("waits"))
    [done] = await queue.put(keyed("done"))
    await queue.engine.control("delete", Selection([done]))
    for _ in range(3):
        await pass_jobs(queue, 30)
        await compact(queue)
        for key, id in (("waits", waiting), ("done", done)):
            inserted = await queue.engine.put([keyed(key)])
            assert (inserted.ids, inserted.duplicates) == ([id], (0,))
        await queue.restart("crash")
    assert engine_of(queue).journal.oldest_segment > 3


async def test_a_segment_is_kept_until_its_jobs_are_in_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers of many frames are told over many turns of the loop; meanwhile segments seem to be empty."""
    monkeypatch.setattr("kqs.journal.log.TOLD_AT_ONCE", 1)
    queue = await make_queue()
    engine = engine_of(queue)
    puts = [asyncio.ensure_future(queue.put_one(data=b'"%s"' % (b"x" * 300))) for _ in range(80)]
    ends: list[asyncio.Future[str | None]] = []
    given_up: list[tuple[list[int], int]] = []  # what would go, and how many were told then
    while not all(put.done() for put in puts):
        if len(ends) < 40:  # who is told first is done at once: nothing alive is known in the first segments
            ends += [asyncio.ensure_future(queue.settle(lease)) for lease in await queue.take(10)]
        given_up.append((engine._compactor._droppable(), sum(put.done() for put in puts)))
        await asyncio.sleep(0)
    numbers = [int(put.result().rpartition("-")[2]) for put in puts]
    places = [engine._index.table.row(number) for number in numbers]
    segments = [row and row.chunk.place[row.at] >> 32 for row in places]
    assert any(segments for segments, _told in given_up)
    for droppable, told in given_up:
        assert not set(droppable) & set(segments[told:]), "a segment with jobs that are not told of yet"
    await asyncio.gather(*ends)


async def live(queue: Queue, acked: dict[str, str]) -> None:
    """Keep a few jobs and a key while the log goes round; notes what was confirmed."""
    for number in range(4):
        [id] = await queue.put(keyed(f"key {number}"))
        acked[f"key {number}"] = id
        await pass_jobs(queue, 9)
        await compact(queue)


async def check(queue: Queue, acked: dict[str, str]) -> None:
    """Every job whose insert was confirmed is there once, and its key is known."""
    views = await queue.everything()
    ids = [view["id"] for view in views if view["type"] == "keyed"]
    assert len(ids) == len(set(ids))
    assert set(acked.values()) <= set(ids), "a job was lost"
    for key, id in acked.items():
        inserted = await queue.engine.put([keyed(key)])
        assert (inserted.ids, inserted.duplicates) == ([id], (0,)), "a key was forgotten"


async def test_a_power_cut_at_every_operation() -> None:
    queue, acked = await make_queue(), dict[str, str]()
    disk = queue.harness.disk  # type: ignore[attr-defined]
    before = sum(disk.counts[kind] for kind in CHANGES)
    await live(queue, acked)
    total = sum(disk.counts[kind] for kind in CHANGES) - before
    assert engine_of(queue).journal.oldest_segment > 2
    assert (await queue.engine.stats())["journal"]["carried"] > 3
    random = Random(1)
    for nth in range(1, total + 1):
        queue, acked = await make_queue(random.randrange(1 << 30)), {}
        harness = queue.harness
        assert isinstance(harness, Harness)
        harness.disk.inject = FaultAt(nth, CRASH, kinds=CHANGES)
        with pytest.raises((PowerLost, JournalFailed)):
            await live(queue, acked)
        harness.disk.inject = None
        harness.disk.crash()
        queue.engine = await harness.make_engine()
        await check(queue, acked)
        await harness.close()
