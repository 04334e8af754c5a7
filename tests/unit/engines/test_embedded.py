"""What only the embedded engine can be asked: damaged payloads, full and failing disks, power cuts.

What every engine does is in tests/conformance.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest

from kqs.core.job import BulkRef, JobOptions, NewJob
from kqs.core.outcome import Settlement
from kqs.engines.embedded import EmbeddedEngine
from kqs.errors import DiskFull, JournalFailed
from kqs.journal.log import Journal
from kqs.journal.scan import Apply
from kqs.ports import Selection
from kqs.testing.clock import VirtualClock
from kqs.testing.disk import SimDisk
from kqs.testing.embedded import SimulatedHarness, come_to_rest, open_embedded
from kqs.testing.engines import Queue, new_job
from kqs.testing.executor import SteppedExecutor
from kqs.testing.faults import CHANGES, CRASH, EIO, Fault, FaultAt, Operation, PowerLost

FOLDER = "/data/journal"
MARK = b'"the payload of the job in question"'


@pytest.fixture
def harness() -> SimulatedHarness:
    return SimulatedHarness(seed=3)


@pytest.fixture
async def queue(harness: SimulatedHarness) -> Queue:
    return Queue(harness, await harness.make_engine())


def rot(disk: SimDisk, data: bytes) -> str:
    """Flip one bit of these bytes wherever they lie; returns the file's name."""
    for path, content in disk.files().items():
        at = content.find(data)
        if at >= 0:
            disk.flip(path, at + len(data) // 2, 1)
            return path.rpartition("/")[2]
    raise AssertionError("these bytes are nowhere")


def unreadable(disk: SimDisk, data: bytes) -> Callable[[Operation], Fault | None]:
    """Make every read that covers these bytes fail."""
    places = [(path, content.find(data)) for path, content in disk.files().items() if data in content]

    def inject(operation: Operation) -> Fault | None:
        if operation.kind != "pread":
            return None
        start, end = operation.offset, operation.offset + operation.size
        return EIO if any(path == operation.path and start <= at < end for path, at in places) else None

    return inject


# -- payloads -----------------------------------------------------------------------------------


async def test_payloads_over_the_window_are_read_back(queue: Queue) -> None:
    payloads = [b'"%d%s"' % (number, b"x" * 500) for number in range(40)]
    await queue.put(*(new_job(data=data) for data in payloads))
    assert (await queue.engine.stats())["memory"]["payload_bytes"] <= 4096
    assert [lease.data for lease in await queue.take(40)] == payloads


async def test_a_payload_that_does_not_read_back_is_buried_and_named(
    harness: SimulatedHarness, queue: Queue
) -> None:
    filler = [new_job("filler", b'"%s"' % (b"x" * 4000), delay=9) for _ in range(2)]
    await queue.put(*filler)  # the window is full
    before, bad, after = await queue.put(new_job(data=b'"1"'), new_job(data=MARK), new_job(data=b'"3"'))
    segment = rot(harness.disk, MARK)
    assert await queue.take_ids(types=["t"]) == [before, after]
    view = await queue.view(bad)
    assert view["state"] == "buried"
    assert segment in view["last_error"]["message"]
    assert view["attempt"] == 0
    await come_to_rest()


@pytest.mark.parametrize("how", ["rot", "unreadable"])
async def test_finding_a_damaged_payload_keeps_nobody_from_the_other_jobs(
    harness: SimulatedHarness, queue: Queue, how: str
) -> None:
    """A job that is deleted while the damage is dealt with is deleted, and the rest are given."""
    await queue.put(*(new_job("filler", b'"%s"' % (b"x" * 4000), delay=9) for _ in range(2)))
    ids = await queue.put(new_job(data=b'"1"'), new_job(data=MARK), new_job(data=b'"3"'))
    if how == "rot":
        rot(harness.disk, MARK)
    else:
        harness.disk.inject = unreadable(harness.disk, MARK)
    taking = asyncio.ensure_future(queue.take(10, ["t"]))
    deleting = asyncio.ensure_future(queue.engine.control("delete", Selection([ids[0]])))
    leases = await taking
    assert await deleting == 1
    assert [lease.id for lease in leases] == [ids[0], ids[2]]
    assert await queue.settle(leases[0]) == "stale_receipt"
    assert await queue.settle(leases[1]) is None
    assert await queue.states(ids) == ["done", "buried", "done"]


async def test_damage_that_is_found_by_a_restart_stops_it_with_the_place(
    harness: SimulatedHarness, queue: Queue
) -> None:
    from kqs.errors import DamagedJournal

    await queue.put_one(data=MARK)
    await queue.put_one()
    assert harness.engine is not None
    await harness.engine.close()
    segment = rot(harness.disk, MARK)
    with pytest.raises(DamagedJournal) as caught:
        await harness.make_engine()
    assert (caught.value.segment, caught.value.sequence) == (segment, 1)


# -- a full disk --------------------------------------------------------------------------------


async def test_on_a_full_disk_jobs_are_refused_others_end_and_it_recovers(
    harness: SimulatedHarness, queue: Queue
) -> None:
    disk = harness.disk
    ids = await queue.put(*(new_job() for _ in range(20)))
    await come_to_rest()
    disk.capacity = sum(map(len, disk.files().values())) + 2000  # no room for another segment
    with pytest.raises(DiskFull):
        for _ in range(100):
            ids.append(await queue.put_one(data=b'"%s"' % (b"x" * 1000)))
            await come_to_rest()
    assert len(ids) > 25
    leases = await queue.take(10)
    outcomes = ["ok", "again", "fail", "release", "ok"]
    for lease, outcome in zip(leases, outcomes * 2, strict=True):
        refused = "disk_full" if outcome == "again" else None  # a retry frees nothing
        assert await queue.settle(lease, outcome) == refused
    assert await queue.engine.control("delete", Selection(ids[10:15])) == 5
    with pytest.raises(DiskFull):
        await queue.put_one()
    disk.capacity = None
    ids.append(await queue.put_one())
    before = await queue.everything()
    await queue.restart("crash")
    assert await queue.everything() == before


async def test_a_burst_is_not_taken_for_a_full_disk(queue: Queue) -> None:
    """More comes at once than there are segments made ahead for: they are made, and all of it is taken."""
    puts = [asyncio.ensure_future(queue.put_one(data=b'"%s"' % (b"x" * 1000))) for _ in range(300)]
    async with asyncio.timeout(60):
        ids = await asyncio.gather(*puts)
    assert len(set(ids)) == 300
    assert (await queue.engine.stats())["journal"]["segments"] > 10


async def test_a_batch_that_fits_into_no_segment_made_ahead_is_refused_on_a_full_disk(
    harness: SimulatedHarness, queue: Queue
) -> None:
    """However much space the segments made ahead have in all: one frame lies in one of them."""
    await queue.put(*(new_job() for _ in range(20)))
    await come_to_rest()
    disk = harness.disk
    disk.capacity = sum(map(len, disk.files().values()))
    large = [new_job(data=b'"%s"' % (b"x" * 1000)) for _ in range(18)]
    with pytest.raises(DiskFull):
        await queue.put(*large)
    await queue.settle(await queue.take_one())
    disk.capacity = None
    assert len(await queue.put(*large)) == 18


# -- a failing disk -----------------------------------------------------------------------------


async def test_after_a_failed_sync_nothing_is_accepted_or_confirmed(
    harness: SimulatedHarness, queue: Queue
) -> None:
    told: list[str] = []

    def notify(types: Sequence[str]) -> None:
        told.extend(types)

    kept = await queue.put_one("kept")
    await queue.put(new_job(), new_job())
    lease, expired = await queue.take(2, ["t"])
    await come_to_rest()
    queue.engine.on_ready(notify)
    harness.disk.inject = FaultAt(1, EIO, kinds=("datasync",))
    with pytest.raises(JournalFailed):
        async with asyncio.timeout(10):
            await queue.put_one()
    assert told == []  # a job that may not be durable is in nobody's sight
    assert (await queue.counts())["ready"] == 1
    with pytest.raises(JournalFailed):
        async with asyncio.timeout(10):
            await queue.put_one()
    with pytest.raises(JournalFailed):
        await queue.settle(lease)
    with pytest.raises(JournalFailed):
        await queue.engine.control("delete", Selection([kept]))
    with pytest.raises(JournalFailed):
        await queue.engine.rescue([expired.receipt])
    harness.disk.inject = None
    harness.disk.kill()
    queue.engine = await harness.make_engine()
    given = await queue.take_ids()
    assert given[0] == kept
    assert len(given) <= 2  # the put whose outcome was unknown: done, or not
    assert await queue.settle(lease) is None
    assert await queue.settle(expired) is None


# -- between sync and reply ---------------------------------------------------------------------


@pytest.fixture
def stepped() -> Iterator[tuple[Queue, SteppedExecutor, SimDisk]]:
    """An engine whose disk work is done only when the test says so."""
    disk = SimDisk(1)
    disk.makedirs("/data")
    executor = SteppedExecutor()

    async def make() -> EmbeddedEngine:
        return open_embedded(disk, executor, "/data", VirtualClock(), Random(1))

    harness = SimulatedHarness()
    loop = asyncio.new_event_loop()
    engine = loop.run_until_complete(make())
    loop.close()
    executor.run()
    yield Queue(harness, engine), executor, disk


async def through(executor: SteppedExecutor, work: asyncio.Future[object]) -> object:
    """Let a call's disk work be done."""
    while not work.done():
        await asyncio.sleep(0)
        executor.step()
    return work.result()


async def test_a_job_is_in_nobodys_sight_before_it_is_durable(
    stepped: tuple[Queue, SteppedExecutor, SimDisk],
) -> None:
    queue, executor, _disk = stepped
    put = asyncio.ensure_future(queue.put_one())
    await asyncio.sleep(0)
    executor.work()  # space for the end of the job that comes
    executor.report()
    assert executor.waiting == 1
    assert await queue.take() == []
    executor.work()
    assert await queue.take() == []
    assert not put.done()
    executor.report()
    await put
    assert await queue.take_ids() == [put.result()]


@pytest.mark.parametrize("outcome", ["ok", "again", "fail", "release"])
async def test_a_settlement_counts_at_once_and_is_answered_when_durable(
    stepped: tuple[Queue, SteppedExecutor, SimDisk], outcome: str
) -> None:
    queue, executor, _disk = stepped
    await through(executor, asyncio.ensure_future(queue.put_one()))
    lease = await queue.take_one()
    executor.run()
    first = asyncio.ensure_future(queue.settle(lease, outcome))
    await asyncio.sleep(0)
    other = asyncio.ensure_future(queue.settle(lease, "fail" if outcome != "fail" else "ok"))
    again = asyncio.ensure_future(queue.settle(lease, outcome))
    for _ in range(5):
        await asyncio.sleep(0)
    assert other.result() == "stale_receipt"  # no sync is needed to know that
    assert not first.done()
    assert not again.done()  # a repeated one is not confirmed before the first
    executor.work()
    await asyncio.sleep(0)
    assert not first.done()
    executor.report()
    assert await first is None
    assert await again is None


async def test_controls_are_answered_when_durable(stepped: tuple[Queue, SteppedExecutor, SimDisk]) -> None:
    queue, executor, _disk = stepped
    put = asyncio.ensure_future(queue.put_one())
    await through(executor, put)
    for verb in ("bury", "kick", "delete"):
        control = asyncio.ensure_future(queue.engine.control(verb, Selection([put.result()])))
        await asyncio.sleep(0)
        executor.work()
        await asyncio.sleep(0)
        assert not control.done()
        executor.report()
        assert await control == 1


# -- crashes ------------------------------------------------------------------------------------


class Account:
    """What was asked of an engine and what it confirmed."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.accepted: dict[bytes, str] = {}  # payload -> id
        self.tried: dict[bytes, str] = {}  # payload -> the end that was asked for
        self.confirmed: dict[bytes, str] = {}
        self.receipts: set[str] = set()


async def work(queue: Queue, account: Account) -> None:
    """Two rounds of batches put, jobs run to different ends, and a restart between them."""
    for round_ in range(2):
        for number in range(3):
            batch = [b'"%d/%d/%d%s"' % (round_, number, n, b" " * 400) for n in range(4)]
            account.batches.append(batch)
            ids = await queue.put(*(new_job(data=data) for data in batch))
            account.accepted.update(zip(batch, ids, strict=True))
            for lease, end in zip(await queue.take(3), ("ok", "fail", "delete"), strict=False):
                assert lease.receipt not in account.receipts
                account.receipts.add(lease.receipt)
                account.tried[lease.data] = end
                if end == "delete":
                    await queue.engine.control("delete", Selection([lease.id]))
                else:
                    await queue.settle(lease, end)
                account.confirmed[lease.data] = end
        if round_ == 0:
            await queue.restart()


async def check(queue: Queue, account: Account) -> None:
    """Batches are there whole or not at all, what was confirmed holds, and nothing runs that has ended."""
    found: dict[bytes, str] = {}
    for view in await queue.everything():
        shown = await queue.view(view["id"], data=True)
        payload = b'"%s"' % shown["data"].encode()
        assert payload not in found, "a job is there twice"
        assert account.accepted.get(payload, view["id"]) == view["id"]
        found[payload] = view["state"]
    for batch in account.batches:
        kept = [payload for payload in batch if payload in found]
        missing = [payload for payload in batch if payload not in found]
        ended = [payload for payload in missing if account.tried.get(payload) in ("ok", "delete")]
        if batch[0] in account.accepted:
            assert missing == ended, "an accepted job is lost"
        else:
            assert kept in ([], batch), "a batch is there in part"
    for payload, end in account.confirmed.items():
        assert found.get(payload) == {"ok": None, "delete": None, "fail": "buried"}[end]
    ready = [payload for payload, state in found.items() if state == "ready"]
    given = [lease.data for lease in await queue.take(1000)]
    assert sorted(given) == sorted(ready)
    assert not any(account.confirmed.get(payload) for payload in given)


async def test_a_power_cut_at_every_operation() -> None:
    random = Random(1)
    harness = SimulatedHarness(0)
    queue, account = Queue(harness, await harness.make_engine()), Account()
    before = sum(harness.disk.counts[kind] for kind in CHANGES)
    await work(queue, account)
    total = sum(harness.disk.counts[kind] for kind in CHANGES) - before
    await check(queue, account)
    assert total > 70
    for nth in [*range(1, total + 1)] * 6:
        harness = SimulatedHarness(random.randrange(1 << 30))
        queue, account = Queue(harness, await harness.make_engine()), Account()
        harness.disk.inject = FaultAt(nth, CRASH, kinds=CHANGES)
        with pytest.raises((PowerLost, JournalFailed)):
            await work(queue, account)
        harness.disk.inject = None
        harness.disk.crash()
        queue.engine = await harness.make_engine()
        await check(queue, account)
        await harness.close()


# -- oversize payloads --------------------------------------------------------------------------


class WatchedStore:
    """A bulk store that notes what is deleted, and whether the journal was durable then."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.journal: Journal | None = None

    async def put(self, data: bytes) -> BulkRef:
        raise NotImplementedError

    async def get(self, ref: BulkRef) -> bytes:
        return b'"large"'

    async def delete(self, refs: Sequence[BulkRef]) -> None:
        assert self.journal is not None
        assert self.journal.synced_sequence == self.journal.next_sequence - 1
        self.deleted += [ref.name for ref in refs]

    async def close(self) -> None:
        pass


async def test_an_oversize_payload_is_deleted_only_after_the_end_of_its_job_is_durable() -> None:
    disk, store, executor = SimDisk(1), WatchedStore(), SteppedExecutor()
    disk.makedirs("/data")

    def open_journal(apply: Apply) -> Journal:
        return Journal.open(disk, executor, "/data", apply, now=0, segment_size=4096)

    random = Random(1)
    engine = EmbeddedEngine(
        open_journal, VirtualClock(), random=random.random, nonce=random.getrandbits, bulk=store
    )
    store.journal = engine.journal
    executor.run()
    refs = [BulkRef(name, "0" * 64, 100_000) for name in ("one", "two", "three")]
    jobs = [NewJob("t", b"", False, 2, 0, 30_000, JobOptions(bulk=ref)) for ref in refs]
    ids = (await through(executor, asyncio.ensure_future(engine.put(jobs)))).ids  # type: ignore[attr-defined]
    assert await engine.bulk_names() == {"one", "two", "three"}
    leases = await engine.reserve((), 2, holder="w")
    assert [lease.bulk for lease in leases] == refs[:2]
    assert (await engine.job(ids[0]))["size"] == 100_000
    executor.run()
    ends = [
        asyncio.ensure_future(engine.settle([Settlement(leases[0].receipt, "ok")])),
        asyncio.ensure_future(engine.settle([Settlement(leases[1].receipt, "fail")])),
        asyncio.ensure_future(engine.control("delete", Selection([ids[2]]))),
    ]
    await come_to_rest()
    executor.work()
    await come_to_rest()
    assert store.deleted == []
    for end in ends:
        await through(executor, end)
    await come_to_rest()
    assert sorted(store.deleted) == ["one", "three"]  # what was buried keeps its payload
    assert await engine.bulk_names() == {"two"}


async def test_a_payload_stays_without_a_word_when_the_journal_fails_before_its_turn() -> None:
    """The end of its job may not be durable; and it is the journal's failure that is reported, once."""
    disk, store, executor = SimDisk(1), WatchedStore(), SteppedExecutor()
    disk.makedirs("/data")

    def open_journal(apply: Apply) -> Journal:
        return Journal.open(disk, executor, "/data", apply, now=0, segment_size=4096)

    random = Random(1)
    engine = EmbeddedEngine(
        open_journal, VirtualClock(), random=random.random, nonce=random.getrandbits, bulk=store
    )
    executor.run()
    job = NewJob("t", b"", False, 2, 0, 30_000, JobOptions(bulk=BulkRef("one", "0" * 64, 100_000)))
    await through(executor, asyncio.ensure_future(engine.put([job])))
    [lease] = await engine.reserve((), 1, holder="w")
    executor.run()
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    disk.inject = FaultAt(1, EIO, kinds=("datasync",))
    with pytest.raises(JournalFailed):
        await through(executor, asyncio.ensure_future(engine.settle([Settlement(lease.receipt, "ok")])))
    await come_to_rest()
    gc.collect()  # tells of exceptions nobody retrieved
    assert (store.deleted, reported) == ([], [])


# -- the wall clock between two runs ------------------------------------------------------------


async def test_no_lease_outlasts_its_ttr_because_the_clock_was_set_back(
    harness: SimulatedHarness, queue: Queue
) -> None:
    id = await queue.put_one(ttr=10)
    lease = await queue.take_one()
    await harness.engine.journal.sync()  # type: ignore[union-attr]
    harness.clock.jump(-3650 * 86_400)
    await queue.restart("crash")
    assert await queue.advance(9) == []
    assert [expired.id for expired in await queue.run_out(1)] == [id]
    assert await queue.settle(lease) is None  # until it is rescued it may still be settled
