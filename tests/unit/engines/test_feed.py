"""The feed: what was accepted reaches the engine, whatever happens between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

import pytest

from kqs.core.job import BulkRef, JobOptions, NewJob
from kqs.engines.feed import Fed, Feed
from kqs.engines.feed.feed import OFFER_AGAIN
from kqs.errors import Busy, DamagedJournal, DiskFull, EngineAway, ShuttingDown
from kqs.ports import CronMark
from kqs.testing.clock import VirtualClock
from kqs.testing.disk import SimDisk
from kqs.testing.embedded import come_to_rest, journal_opener, open_embedded
from kqs.testing.engines import new_job
from kqs.testing.executor import InlineExecutor

SEGMENT = 16 * 1024


class World:
    """A feed on a simulated disk, and an engine that takes jobs as it is told.

    Attributes:
        got: what the engine confirmed, in order, with what came twice.
        away: why it takes nothing.
        most: how many jobs it takes before it goes away.
    """

    def __init__(self, seed: int = 0, window: int = 64 * 1024 * 1024, limit: int = 1 << 30) -> None:
        self.disk = SimDisk(seed)
        self.disk.makedirs("/data")
        self.disk.sync_dir("/")
        self.clock = VirtualClock()
        self.random = Random(seed)
        self.window, self.limit = window, limit
        self.got: list[Fed] = []
        self.away = ""
        self.most = 1 << 30
        self.refuse: Callable[[Fed], str] = lambda fed: ""

    async def open(self) -> None:
        executor = InlineExecutor(asyncio.get_running_loop())
        self.feed = Feed(
            journal_opener(self.disk.attach(), executor, "/data", self.clock, self.random, SEGMENT),
            self.clock,
            deliver=self.deliver,
            random=lambda: -0.5,  # no pause between tries
            window=self.window,
            limit=self.limit,
        )
        await self.feed.start()

    async def deliver(self, jobs: Sequence[Fed]) -> None:
        for fed in jobs:
            if self.away or not self.most:
                raise EngineAway(self.away or "it went away")
            if reason := self.refuse(fed):
                fed.refused = reason
                continue
            self.most -= 1
            self.got.append(fed)
            fed.delivered = True
            await asyncio.sleep(0)

    async def rest(self) -> None:
        await come_to_rest(40)

    async def restart(self) -> None:
        await self.feed.close()
        await self.open()

    async def crash(self) -> None:
        await self.rest()
        self.disk.crash()
        assert self.feed._task is not None
        self.feed._task.cancel()
        await asyncio.wait({self.feed._task})
        await self.open()

    @property
    def ids(self) -> list[str]:
        return [fed.id for fed in self.got]


async def started(*args: int, **settings: int) -> World:
    world = World(*args, **settings)
    await world.open()
    return world


@pytest.fixture
async def world() -> World:
    return await started()


async def test_jobs_are_delivered_in_order_as_they_were_accepted(world: World) -> None:
    jobs = [
        new_job("a", b'{"x":1}', prio="urgent", delay=2.5, ttr=7),
        new_job("\N{SNOWMAN}", bytes(range(256)), binary=True, max_attempts=3),
        NewJob("c", b"", False, 4, 0, 1000, JobOptions(bulk=BulkRef("f" * 32, "0" * 64, 9))),
    ]
    ids = await world.feed.put(jobs)
    ids += await world.feed.put([new_job("d")])
    await world.feed.drained()
    assert world.ids == ids
    assert [fed.job for fed in world.got] == [*jobs, new_job("d")]
    now = world.clock.now()
    assert [fed.accepted for fed in world.got] == [now, now + 1, now + 2, now + 3]  # each has its own
    assert world.feed.stats() == {"waiting": 0, "bytes": 0, "delivered": 4}
    await world.feed.close()


@pytest.mark.parametrize("window", [0, 1 << 20])
async def test_an_engine_that_is_away_costs_no_accepts(window: int) -> None:
    world = await started(window=window)
    world.away = "no route to it"
    jobs = [new_job("t", b'"%d%s"' % (number, b"x" * 300)) for number in range(300)]
    ids: list[str] = []
    for start in range(0, 300, 7):
        ids += await world.feed.put(jobs[start : start + 7])
    await world.rest()
    world.clock.advance(3600)
    stats = world.feed.stats()
    assert (stats["waiting"], stats["delivered"], stats["away"]) == (300, 0, "no route to it")
    assert stats["bytes"] > 300 * 300
    assert stats["oldest_age"] == 3600
    world.away = ""
    await world.feed.drained()
    assert world.ids == ids
    assert [fed.job for fed in world.got] == jobs
    assert world.feed.stats() == {"waiting": 0, "bytes": 0, "delivered": 300}
    await world.feed.close()


async def test_what_was_delivered_is_not_delivered_again_after_a_restart(world: World) -> None:
    world.most = 5
    ids = await world.feed.put([new_job() for _ in range(12)])
    await world.rest()
    assert world.ids == ids[:5]
    await world.restart()
    assert world.feed.waiting == 7
    world.most = 1000
    await world.feed.drained()
    assert world.ids == ids
    await world.restart()
    assert world.feed.waiting == 0
    assert await world.feed.put([new_job()]) != ids[:1]
    await world.feed.close()


@pytest.mark.parametrize("seed", range(40))
async def test_no_accepted_job_is_lost_whenever_the_power_goes(seed: int) -> None:
    random = Random(seed)
    world = await started(seed, window=random.choice([0, 2000, 1 << 20]))
    accepted: list[str] = []
    for _ in range(30):
        match random.choice(["put", "put", "put", "take", "away", "crash", "restart", "rest"]):
            case "put":
                jobs = [
                    new_job("t", b'"%s"' % (b"x" * random.choice([1, 500, 3000])))
                    for _ in range(random.randint(1, 8))
                ]
                accepted += await world.feed.put(jobs)
            case "take":
                world.away, world.most = "", random.randint(1, 20)
            case "away":
                world.away = "away"
            case "crash":
                await world.crash()
            case "restart":
                await world.restart()
            case "rest":
                await world.rest()
        assert world.feed.waiting >= len(set(accepted) - set(world.ids))
    world.away, world.most = "", 1 << 30
    await world.crash()
    await world.feed.drained()
    assert set(world.ids) == set(accepted)
    first = list(dict.fromkeys(world.ids))
    assert first == accepted, "the order was not kept"
    await world.feed.close()


async def test_a_job_the_engine_refuses_holds_up_no_other_and_stays(world: World) -> None:
    world.refuse = lambda fed: "too big" if fed.job.type == "big" else ""
    big, *others = await world.feed.put([new_job("big"), new_job("a"), new_job("b")])
    await world.feed.drained()
    assert world.ids == others
    assert world.feed.stats()["refused"] == {"jobs": 1, "reason": "too big"}
    others += await world.feed.put([new_job("c")])
    await world.rest()
    assert world.ids == others
    await world.restart()
    await world.rest()
    assert world.ids == others
    world.refuse = lambda fed: ""
    world.clock.advance(OFFER_AGAIN + 1)
    others += await world.feed.put([new_job("d")])
    await world.feed.drained()
    assert world.ids == [*others[:-1], big, others[-1]]
    await world.feed.close()


async def test_segments_go_when_all_their_jobs_are_delivered(world: World) -> None:
    assert await world.feed.fire("daily", 100, [new_job("cron")]) is not None
    await world.feed.pause("held", True, "me")
    for _ in range(60):
        await world.feed.put([new_job("t", b'"%s"' % (b"x" * 2000))])
        await world.feed.drained()
    await world.rest()
    assert world.feed.journal.stats()["segments"] <= 2
    assert world.feed.journal.oldest_segment > 3
    await world.restart()
    assert world.feed.fired() == {"daily": CronMark(100, 100)}
    assert world.feed.paused() == {"held": "me"}
    assert world.feed.waiting == 0
    await world.feed.close()


async def test_a_cron_fires_once(world: World) -> None:
    ids = await world.feed.fire("c", 100, [new_job(), new_job()])
    assert ids is not None
    assert await world.feed.fire("c", 100, [new_job()]) is None
    assert await world.feed.fire("c", 200, []) == []
    await world.crash()
    assert await world.feed.fire("c", 150, [new_job()]) is None
    assert world.feed.fired() == {"c": CronMark(200, 100)}
    await world.feed.drained()
    assert set(world.ids) == set(ids)
    await world.feed.forget_cron("c")
    await world.crash()
    assert world.feed.fired() == {}
    await world.feed.close()


async def test_a_pause_ends(world: World) -> None:
    await world.feed.pause("t", True)
    await world.feed.pause("t", False)
    await world.crash()
    assert world.feed.paused() == {}
    await world.feed.close()


async def test_pressure_is_told(world: World) -> None:
    small = await started(window=0, limit=1000)
    small.away = "away"
    with pytest.raises(Busy, match="memory_limit"):
        for _ in range(5000):
            await small.feed.put([new_job()])
    await small.feed.close()
    with pytest.raises(ShuttingDown):
        await small.feed.put([new_job()])
    world.away = "away"
    world.disk.capacity = 12 * SEGMENT
    accepted: list[str] = []
    with pytest.raises(DiskFull):
        while True:
            accepted += await world.feed.put([new_job("t", b'"%s"' % (b"x" * 1000))])
    world.away = ""
    await world.feed.drained()
    assert world.ids == accepted
    await world.rest()
    accepted += await world.feed.put([new_job()])  # its segments went: there is space again
    await world.feed.close()


async def test_the_embedded_engine_and_the_feed_refuse_each_others_journals(world: World) -> None:
    await world.feed.put([new_job()])
    await world.feed.drained()
    await world.feed.close()
    loop = asyncio.get_running_loop()
    with pytest.raises(DamagedJournal, match="feed"):
        open_embedded(world.disk.attach(), InlineExecutor(loop), "/data", world.clock, Random(0))
    other = await started()
    await other.feed.close()
    other.disk = SimDisk(0)
    other.disk.makedirs("/data")
    engine = open_embedded(other.disk.attach(), InlineExecutor(loop), "/data", world.clock, Random(0))
    await engine.put([new_job()])
    await engine.reserve((), 1, holder="w")
    await engine.close()
    with pytest.raises(DamagedJournal, match="embedded"):
        await other.open()
