"""The engine on a repaired journal: every event that is left is believed, whatever is lost before it.

A life with every kind of event is lived, then every single entry of its journal is lost, and every frame, one
after the other. What the engine makes of the rest is compared with what the entries that are left say.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from kqs.core import record
from kqs.core.lifecycle import Event
from kqs.engines.embedded.replay import rehearsal
from kqs.errors import DamagedJournal
from kqs.journal.repair import repair
from kqs.journal.scan import each_entry, read_only
from kqs.journal.survey import survey
from kqs.ports import Selection
from kqs.testing.disk import SimDisk
from kqs.testing.embedded import SimulatedHarness
from kqs.testing.engines import Queue, new_job

DATA = "/data"

Place = tuple[str, int, int]


class Left:
    """The entries of a journal, and what they make of each job.

    Attributes:
        places: where each lies: path, start and end.
        states: of every job that is there, as shown.
        last: the last sequence.
    """

    def __init__(self, disk: SimDisk) -> None:
        self.places: list[Place] = []
        self.states: dict[int, str] = {}
        self.last = 0
        read_only(disk, DATA, each_entry(self._take))

    def _take(self, kind: int, entry: bytes, segment: int, offset: int) -> None:
        path = f"{DATA}/journal/{segment:010d}.seg"
        self.places.append((path, offset, offset + len(entry)))
        if kind == record.ACCEPT:
            accept = record.decode_accept(entry)
            self.last = accept.sequence
            self.states[accept.sequence] = "delayed" if accept.due > accept.inserted else "ready"
        elif kind in record.EVENTS:
            event = record.decode_event(entry)
            self.last = event.sequence
            if event.job in self.states and kind != record.RENEW:
                self._move(event)

    def _move(self, event: record.EventRecord) -> None:
        lost_lease = event.kind == Event.CANCEL and self.states[event.job] != "reserved"
        if event.kind in (Event.ACK, Event.DELETE) or lost_lease:
            del self.states[event.job]
        elif event.kind in (Event.LEASE, Event.CANCEL):
            self.states[event.job] = "reserved"
        elif event.kind == Event.BURY:
            self.states[event.job] = "buried"
        else:
            self.states[event.job] = "delayed" if event.due > event.at else "ready"


async def live() -> dict[str, bytes]:
    """Jobs that meet everything that can happen to one; returns the files they leave."""
    harness = SimulatedHarness(seed=5)
    queue = Queue(harness, await harness.make_engine())
    await queue.put(*(new_job(data=b"%d" % number, ttr=1000) for number in range(8)))
    for _round in range(3):
        leases = await queue.take(6)
        outcomes = ["ok", "again", "fail", "release", "again", None]
        for lease, outcome in zip(leases, outcomes, strict=False):
            if outcome == "again":
                await queue.settle(lease, "again", delay=5 if lease.id.endswith("5") else 0)
            elif outcome is not None:
                await queue.settle(lease, outcome)
            else:
                await queue.engine.renew([lease.receipt])
        await queue.put_one(data=b"more", delay=100)
        await queue.put_one(data=b"yet more", ttr=1000)
    buried = [job["id"] for job in await queue.everything() if job["state"] == "buried"]
    await queue.engine.control("kick", Selection(buried[:1]))
    await queue.engine.control("delete", Selection(buried[1:2]))
    delayed = [job["id"] for job in await queue.everything() if job["state"] == "delayed"]
    await queue.engine.control("kick", Selection(delayed[:1]))
    await queue.engine.control("bury", Selection(delayed[1:2]))
    running = [job["id"] for job in await queue.everything() if job["state"] == "reserved"]
    await queue.engine.control("cancel", Selection(running[:1]))
    await queue.engine.rescue([(await queue.take_one()).receipt], reason="test")
    await queue.engine.close()
    return harness.disk.files()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return asyncio.run(live())


def lose(files: dict[str, bytes], place: Place) -> SimDisk:
    """A disk on which these bytes are zeros."""
    path, start, end = place
    data = files[path]
    return SimDisk.holding(files | {path: data[:start] + bytes(end - start) + data[end:]})


async def check_repaired(disk: SimDisk, last: int) -> None:
    """Repair; the engine starts, has the states that the entries say, and gives no number again."""
    found = survey(disk, DATA)
    assert found.lost
    repair(disk, DATA, found, rehearsal(), accept_loss=True, random=Random(1).randbytes, now=1)
    left = Left(disk)
    harness = SimulatedHarness(seed=6)
    harness.disk = disk
    queue = Queue(harness, await harness.make_engine())
    shown = {int(job["id"].rpartition("-")[2]): job["state"] for job in await queue.everything()}
    assert shown == left.states
    counts = await queue.counts()
    for state in ("ready", "delayed", "reserved", "buried"):
        assert counts[state] == sum(known == state for known in left.states.values())
    given = await queue.take_ids()
    assert sorted(given) == sorted(set(given)) and len(given) == counts["ready"]
    assert int((await queue.put_one()).rpartition("-")[2]) > last
    await queue.restart()
    await queue.engine.close()


async def test_any_entry_may_be_lost(files: dict[str, bytes]) -> None:
    whole = Left(SimDisk.holding(files))
    kinds = {files[path][start] for path, start, _end in whole.places}
    assert kinds >= {record.ACCEPT, record.LEASE, record.RENEW, *map(int, set(Event) - {Event.DUE})}
    for place in whole.places[:-1]:
        await check_repaired(lose(files, place), whole.last)


async def test_any_frame_may_be_lost(files: dict[str, bytes]) -> None:
    whole = Left(SimDisk.holding(files))
    frames: list[Place] = []
    read_only(
        SimDisk.holding(files),
        DATA,
        lambda _data, frame, number: frames.append(
            (f"{DATA}/journal/{number:010d}.seg", frame.start - record.FRAME_HEADER, frame.end)
        ),
    )
    assert len(frames) > 20
    for frame in frames[:-1]:
        await check_repaired(lose(files, frame), whole.last)


async def test_without_a_loss_a_contradiction_is_damage() -> None:
    """Believing events is for repaired journals only: elsewhere it would hide a bug."""
    harness = SimulatedHarness(seed=7)
    queue = Queue(harness, await harness.make_engine())
    await queue.put_one()
    lease = await queue.take_one()
    await queue.settle(lease)
    journal = queue.engine.journal  # type: ignore[attr-defined]
    first = journal.take_sequences(1)
    job = record.encode_accept(first, 0, 1, 1, 1, 2, b"t", b"", b"1")
    await journal.append([job], first)
    second = journal.take_sequences(1)
    again = record.encode_event(Event.KICK, second, 0, first, 1, 1, 0, 0, 2, 0)
    await journal.append([again], second)
    await queue.engine.close()
    with pytest.raises(DamagedJournal, match="ready job cannot take kick"):
        await harness.make_engine()
    assert survey(harness.disk, DATA).damage == []
