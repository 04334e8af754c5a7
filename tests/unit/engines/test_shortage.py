"""What lacks for a moment must not cost a job its place: descriptors, memory, a caller's patience."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from random import Random

import pytest
from structlog.testing import capture_logs

from kqs.core.job import JobOptions, NewJob
from kqs.errors import Busy, JournalFailed, NotFound
from kqs.testing.clock import VirtualClock
from kqs.testing.disk import SimDisk
from kqs.testing.embedded import PAYLOAD_WINDOW, SimulatedHarness, come_to_rest, open_embedded
from kqs.testing.engines import Queue, new_job
from kqs.testing.executor import SteppedExecutor
from kqs.testing.faults import Fault, FaultAt


@pytest.fixture
def harness() -> SimulatedHarness:
    return SimulatedHarness(seed=3)


@pytest.fixture
async def queue(harness: SimulatedHarness) -> Queue:
    return Queue(harness, await harness.make_engine())


async def put_beyond_the_window(queue: Queue) -> list[str]:
    """Three jobs of the type ``t``: the first in memory, the others only in the journal."""
    first = await queue.put_one(data=b'"1"')
    await queue.put(*(new_job("filler", b'"%s"' % (b"x" * 2000), delay=99) for _ in range(2)))
    assert (await queue.engine.stats())["memory"]["payload_bytes"] < PAYLOAD_WINDOW
    return [
        first,
        *await queue.put(new_job(data=b'"%s"' % (b"2" * 3000)), new_job(data=b'"%s"' % (b"3" * 3000))),
    ]


# -- what it takes to read a payload ------------------------------------------------------------


@pytest.mark.parametrize("lack", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_jobs_whose_payload_cannot_be_read_now_keep_their_place(
    harness: SimulatedHarness, queue: Queue, lack: int
) -> None:
    ids = await put_beyond_the_window(queue)
    woken: list[str] = []

    def notify(types: Sequence[str]) -> None:
        woken.extend(types)

    queue.engine.on_ready(notify)
    harness.disk.inject = FaultAt(1, Fault("error", lack), kinds=("open",), path=".seg", lasting=True)
    assert await queue.take_ids(types=["t"]) == ids[:1]
    assert await queue.take_ids(types=["t"]) == []
    assert await queue.counts() == {**await queue.counts(), "ready": 2, "reserved": 1, "buried": 0}
    with pytest.raises(Busy, match="cannot be read now"):
        await queue.engine.job(ids[1])
    await queue.advance(1)
    assert "t" in woken  # whoever waits is told to try again
    harness.disk.inject = None
    later = await queue.put_one(data=b'"4"')
    assert await queue.take_ids(types=["t"]) == [*ids[1:], later]


async def test_whatever_goes_wrong_while_jobs_are_taken_they_keep_their_place(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await queue.put(new_job(), new_job())
    index = queue.engine._index  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(index, "load", lambda *_args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await queue.take(2)
    assert await queue.take_ids() == ids


async def test_compaction_waits_when_an_entry_cannot_be_read_now(
    harness: SimulatedHarness, queue: Queue
) -> None:
    keep = await queue.put_one("kept", b'"%s"' % (b"k" * 3000), delay=9999)
    for _ in range(20):
        await queue.put(*(new_job(data=b'"%s"' % (b"x" * 900)) for _ in range(4)))
        for lease in await queue.take(4):
            await queue.settle(lease)
    lack = Fault("error", errno.EMFILE)
    harness.disk.inject = FaultAt(1, lack, kinds=("open", "pread"), path="0000000001.seg", lasting=True)
    engine = queue.engine
    engine._ledger.forget_entry(int(keep.rpartition("-")[2]))  # type: ignore[attr-defined]
    with capture_logs() as logs:
        await queue.advance(1)
        await come_to_rest()
    assert ((await engine.stats())["journal"]["carried"], logs) == (0, [])
    harness.disk.inject = None
    await queue.advance(1)
    await come_to_rest(50)
    assert (await engine.stats())["journal"]["carried"] == 1
    assert await queue.state(keep) == "delayed"


async def test_a_segment_that_is_gone_stops_the_journal_and_buries_nothing(
    harness: SimulatedHarness, queue: Queue
) -> None:
    ids = await put_beyond_the_window(queue)
    harness.disk.inject = FaultAt(1, Fault("error", errno.ENOENT), kinds=("open",), path=".seg", lasting=True)
    with pytest.raises(JournalFailed):
        await queue.take(3, ["t"])
    assert (await queue.counts())["buried"] == 0
    with pytest.raises(JournalFailed):
        await queue.put_one()
    harness.disk.inject = None
    await queue.restart("crash")
    assert await queue.take_ids(types=["t"]) == ids


# -- callers that give up -----------------------------------------------------------------------


def keyed(data: bytes) -> NewJob:
    return NewJob("t", data, False, 2, 0, 30_000, JobOptions(key="k"))


async def test_a_put_that_is_given_up_still_holds_its_key_and_its_job() -> None:
    disk, executor = SimDisk(1), SteppedExecutor()
    disk.makedirs("/data")
    engine = open_embedded(disk, executor, "/data", VirtualClock(), Random(1))
    executor.run()
    plain = asyncio.ensure_future(engine.put([new_job(data=b'"plain"')]))
    first = asyncio.ensure_future(engine.put([keyed(b'"first"')]))
    await come_to_rest()
    second = asyncio.ensure_future(engine.put([keyed(b'"second"')]))
    await come_to_rest()
    assert plain.cancel() and first.cancel()
    await come_to_rest()
    third = asyncio.ensure_future(engine.put([keyed(b'"third"')]))
    while not (second.done() and third.done()):
        executor.step()
        await come_to_rest()
    assert second.result() == third.result()
    assert second.result().duplicates == (0,)
    leases = await engine.reserve((), 9, holder="w")
    assert [lease.data for lease in leases] == [b'"plain"', b'"first"']
    assert second.result().ids == [leases[1].id]


# -- ids ----------------------------------------------------------------------------------------


async def test_a_job_has_one_id_only(queue: Queue) -> None:
    id = await queue.put_one()
    prefix, _, number = id.rpartition("-")
    for other in (
        f"{prefix}-0{number}",
        f"{prefix}-+{number}",
        f"{prefix}-{number} ",
        f"x{id}",
        number,
        f"-{number}",
    ):
        with pytest.raises(NotFound):
            await queue.engine.job(other)
    assert await queue.state(id) == "ready"
