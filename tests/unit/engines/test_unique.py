"""Unique jobs at the moments between a change and its sync, over crashes, and what they take.

What every engine does is in tests/conformance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from random import Random
from typing import Any

import pytest

from kqs.core.job import NewJob, Unique
from kqs.engines.embedded import EmbeddedEngine
from kqs.errors import Conflict, JournalFailed
from kqs.ports import Inserted, Selection
from kqs.testing.clock import VirtualClock
from kqs.testing.disk import SimDisk
from kqs.testing.embedded import SimulatedHarness, come_to_rest, open_embedded
from kqs.testing.engines import Queue, new_job
from kqs.testing.engines.unique import SCOPES, unique
from kqs.testing.executor import InlineExecutor, SteppedExecutor
from kqs.testing.faults import CHANGES, CRASH, EIO, FaultAt, PowerLost

SEGMENT = 4096


class Harness(SimulatedHarness):
    """With small segments, so that few jobs fill them."""

    async def make_engine(self) -> EmbeddedEngine:
        executor = InlineExecutor(asyncio.get_running_loop())
        place = (self.disk.attach(), executor, self.directory, self.clock, self._random)
        self.engine = open_embedded(*place, segment_size=SEGMENT)
        return self.engine


@pytest.fixture
async def queue() -> Queue:
    harness = Harness(seed=2)
    return Queue(harness, await harness.make_engine())


class Stepped:
    """An engine whose disk work is done only when the test says so."""

    def __init__(self) -> None:
        disk = SimDisk(1)
        disk.makedirs("/data")
        self.executor = SteppedExecutor()
        engine = open_embedded(disk, self.executor, "/data", VirtualClock(), Random(1))
        self.executor.run()
        self.queue = Queue(SimulatedHarness(), engine)

    async def begin(self, call: Awaitable[Any]) -> asyncio.Future[Any]:
        """Make a call, up to where it waits for the disk."""
        task = asyncio.ensure_future(call)
        await come_to_rest()
        return task

    async def through(self, call: Awaitable[Any]) -> Any:
        """Make a call and let its disk work be done."""
        task = await self.begin(call)
        while not task.done():
            self.executor.step()
            await asyncio.sleep(0)
        return task.result()

    def put(self, *jobs: NewJob) -> Awaitable[Inserted]:
        return self.queue.engine.put(jobs)


@pytest.fixture
async def stepped() -> Stepped:
    return Stepped()


# -- before the sync ------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [unique(), new_job(key="k")], ids=["unique", "key"])
async def test_a_duplicate_is_answered_when_the_job_is_durable(stepped: Stepped, job: NewJob) -> None:
    await stepped.through(stepped.put(new_job("other")))
    first = await stepped.begin(stepped.put(job))
    second = await stepped.begin(stepped.put(new_job("rest"), job))
    third = await stepped.begin(stepped.put(job))
    assert not any(put.done() for put in (first, second, third))
    while not first.done():
        assert not third.done()
        stepped.executor.step()
        await come_to_rest()
    await stepped.through(asyncio.gather(second, third))
    [id] = first.result().ids
    assert (second.result().ids[1], second.result().duplicates) == (id, (1,))
    assert (third.result().ids, third.result().duplicates) == ([id], (0,))


@pytest.mark.parametrize("how", ["kick", "again", "release", "rescue"])
async def test_a_duplicate_is_answered_when_it_is_durable_that_the_job_stands(
    stepped: Stepped, how: str
) -> None:
    """A crash that takes back what made it stand must not leave a caller with the promise that it does."""
    queue = stepped.queue
    [id] = (await stepped.through(stepped.put(unique("queued")))).ids
    if how == "kick":
        await stepped.through(queue.engine.control("bury", Selection([id])))
        back = await stepped.begin(queue.engine.control("kick", Selection([id])))
    else:
        lease = await queue.take_one()
        stepped.executor.run()
        rescue = queue.engine.rescue([lease.receipt])
        back = await stepped.begin(rescue if how == "rescue" else queue.settle(lease, how))
        if how != "rescue":
            rescue.close()
    assert not back.done()
    put = await stepped.begin(stepped.put(unique()))
    assert not put.done()
    stepped.executor.work()
    await come_to_rest()
    assert not put.done()
    stepped.executor.report()
    await come_to_rest()
    assert back.done()
    inserted = await stepped.through(put)
    assert (inserted.ids, inserted.duplicates) == ([id], (0,))


async def test_a_key_is_free_when_its_job_has_ended_though_that_is_not_durable(stepped: Stepped) -> None:
    """The new job is behind the end in the journal: no crash leaves both (the test of power cuts)."""
    [id] = (await stepped.through(stepped.put(unique()))).ids
    lease = await stepped.queue.take_one()
    stepped.executor.run()
    settled = await stepped.begin(stepped.queue.settle(lease))
    assert not settled.done()
    inserted = await stepped.through(stepped.put(unique()))
    assert settled.done()
    assert inserted.duplicates == ()
    assert inserted.ids != [id]


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_job_does_not_come_back_beside_one_that_is_on_its_way_in(
    stepped: Stepped, scope: Any
) -> None:
    queue = stepped.queue
    [id, buried] = (await stepped.through(stepped.put(unique("queued"), unique(name="v")))).ids
    await stepped.through(queue.engine.control("bury", Selection([buried])))
    lease = await queue.take_one()
    stepped.executor.run()
    put = await stepped.begin(stepped.put(unique(scope), unique(scope, "v")))
    back = await stepped.begin(queue.settle(lease, "again", delay=0))
    assert not put.done()
    assert await queue.state(id) == "buried"
    error = (await queue.view(id))["last_error"]
    assert error["kind"] == "unique"
    with pytest.raises(Conflict) as conflict:
        await queue.engine.control("kick", Selection([buried]))
    assert await queue.engine.control("kick", Selection(state="buried")) == 0
    await stepped.through(asyncio.gather(put, back))
    ids = put.result().ids
    assert put.result().duplicates == ()
    for text in (error["message"], str(conflict.value)):  # nobody may know an id before it is durable (G8)
        assert not any(id in text for id in ids)
    assert await queue.take_ids() == ids


async def test_who_waited_for_an_insert_that_failed_is_told(queue: Queue) -> None:
    queue.harness.disk.inject = FaultAt(1, EIO, kinds=("datasync",))  # type: ignore[attr-defined]
    puts = [asyncio.ensure_future(queue.engine.put([new_job("rest"), unique()])) for _ in range(3)]
    puts.append(asyncio.ensure_future(queue.engine.put([unique()])))
    async with asyncio.timeout(10):
        results = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(result) for result in results] == [JournalFailed] * 4


async def test_a_caller_that_gives_up_takes_nothing_back(stepped: Stepped) -> None:
    gives_up = await stepped.begin(stepped.put(unique(key="k")))
    waits = await stepped.begin(stepped.put(unique()))
    also = await stepped.begin(stepped.put(new_job(key="k")))
    gives_up.cancel()
    await stepped.through(asyncio.gather(waits, also))
    assert waits.result().duplicates == also.result().duplicates == (0,)
    assert await stepped.queue.take_ids() == waits.result().ids == also.result().ids


# -- crashes --------------------------------------------------------------------------------------


class Account:
    """What was confirmed of unique jobs.

    Attributes:
        stands: by unique key, the job that an insert said to stand, since when nothing was asked of it.
        asked: jobs that somebody began to change.
    """

    def __init__(self) -> None:
        self.stands: dict[str, str] = {}
        self.asked: set[str] = set()


async def live(queue: Queue, account: Account) -> None:
    """Unique jobs that wait, run, come back, are buried and brought back, while the log goes round."""

    async def insert(name: str, scope: Any) -> str:
        inserted = await queue.engine.put([unique(scope, name, type=name), new_job("rest")])
        await queue.engine.control("delete", Selection([inserted.ids[1]]))
        id = inserted.ids[0]
        account.stands[name] = id
        account.asked.discard(id)
        return id

    async def change(verb: str, id: str) -> None:
        account.asked.add(id)
        await queue.engine.control(verb, Selection([id]))

    for _round in range(3):
        for scope in SCOPES:
            id = await insert(scope, scope)
            assert await insert(scope, scope) == id
            await change("bury", id)
            kicked = change("kick", id)
            assert (await asyncio.gather(kicked, insert(scope, scope)))[1] == id
            account.asked.add(id)
            lease = await queue.take_one([scope])
            other = await insert(scope, scope)
            assert (other == id) == (scope == "queued_or_running")
            await queue.settle(lease, "again", delay=0)
            assert await insert(scope, scope) == other
            await change("delete", other)
            await asyncio.gather(*(insert("both", scope) for _ in range(3)))
            await queue.put_one("short", b'"%s"' % (b"s" * 600))
            for lease in await queue.take(1, ["short"]):
                await queue.settle(lease)
            await queue.engine.tick()
            await come_to_rest()
    await queue.put_one("short")  # what failed in the background is told by now


def standing(views: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """By unique key, the jobs that stand."""
    found: dict[str, list[str]] = {}
    for view in views:
        if view["state"] in ("ready", "delayed") or (
            view["state"] == "reserved" and view.get("unique_scope") != "queued"
        ):
            found.setdefault(view.get("unique", ""), []).append(view["id"])
    return found


async def check(queue: Queue, account: Account) -> None:
    """At most one stands; what an insert said to stand does; and what is inserted now agrees."""
    found = standing([view for view in await queue.everything() if "unique" in view])
    for name, ids in found.items():
        assert len(ids) == 1, f"two jobs stand with {name}"
    for name, id in account.stands.items():
        assert found.get(name) == [id] or id in account.asked, "a job that was said to stand does not"
    for name, ids in found.items():
        inserted = await queue.engine.put([unique(name=name, type=name)])
        assert (inserted.ids, inserted.duplicates) == (ids, (0,))


async def test_a_power_cut_at_every_operation(queue: Queue) -> None:
    disk = queue.harness.disk  # type: ignore[attr-defined]
    before = sum(disk.counts[kind] for kind in CHANGES)
    await live(queue, account := Account())
    total = sum(disk.counts[kind] for kind in CHANGES) - before
    await check(queue, account)
    assert (await queue.engine.stats())["journal"]["carried"] > 0
    random = Random(1)
    for nth in range(1, total + 1):
        harness = Harness(random.randrange(1 << 30))
        queue = Queue(harness, await harness.make_engine())
        harness.disk.inject = FaultAt(nth, CRASH, kinds=CHANGES)
        with pytest.raises((PowerLost, JournalFailed)):
            await live(queue, account := Account())
        harness.disk.inject = None
        harness.disk.crash()
        queue.engine = await harness.make_engine()
        await check(queue, account)
        await harness.close()


# -- what they take -------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
async def test_their_memory_is_counted_and_given_back(queue: Queue, scope: Any) -> None:
    async def memory() -> int:
        figures = (await queue.engine.stats())["memory"]
        return int(figures["bytes"] - figures["payload_bytes"])

    await queue.put(*(new_job() for _ in range(100)))
    plain = await memory()
    name = "\N{SNOWMAN}" * 100
    ids = await queue.put(*(unique(scope, f"{n}{name}") for n in range(100)))
    assert await memory() - plain > 100 * (300 + len(name.encode("utf-16")))
    before = await memory()
    await queue.restart("crash")
    assert await memory() == before
    await queue.engine.control("delete", Selection(ids[:30]))
    for lease in await queue.take(200):
        await queue.settle(lease, "fail" if lease.id in ids[50:] else "ok")
    await queue.engine.control("delete", Selection(ids[50:]))
    assert await memory() < plain
    assert isinstance(queue.engine, EmbeddedEngine)
    index = queue.engine._index.unique
    assert (len(index), index.memory, index._standing, index._while_queued) == (0, 0, {}, set())


async def test_of_two_that_a_repaired_journal_left_the_later_stands(queue: Queue) -> None:
    """The end of the earlier one does not make room for a third."""
    _first, later = await queue.put(unique(name="a"), unique(name="b"))
    assert isinstance(queue.engine, EmbeddedEngine)
    index = queue.engine._index
    for number in list(index.unique._names):
        index.unique.add(number, "t", Unique("u"))  # as after a loss of the end of one
    index.unique.rebuild(lambda number: index.state_of(index.row(number)))
    leases = await queue.take(2)
    assert (await queue.engine.put([unique()])).ids == [later]
    assert await queue.settle(leases[0]) is None
    assert (await queue.engine.put([unique()])).ids == [later]
    assert await queue.settle(leases[1]) is None
    assert (await queue.engine.put([unique()])).duplicates == ()
