"""Copies of a journal, while its server writes, rotates and gives up segments at every moment of them."""

from __future__ import annotations

import pytest

from kqs.errors import DamagedJournal, DataDirError
from kqs.journal.backup import Copied, copy_journal
from kqs.journal.listing import list_segments
from kqs.journal.log import Journal
from kqs.journal.repair import EPOCH_SKIP, SKIP
from kqs.journal.survey import survey
from kqs.testing.disk import SimDisk
from kqs.testing.faults import CRASH, Fault, FaultAt, Operation, PowerLost

from .rig import DATA, Rig, append, numbered

COPY = "/copy"


def running(seed: int = 1) -> tuple[Rig, Journal]:
    """A journal of several segments that is open, with all its work done."""
    rig = Rig(SimDisk(seed), segment_size=1024, stepped=True)
    rig.disk.makedirs(COPY)
    rig.disk.sync_dir("/")
    journal = rig.open_at_rest()
    go_on(rig, journal)
    assert len(rig.manifest().segments) > 3
    return rig, journal


def go_on(rig: Rig, journal: Journal) -> None:
    for data in numbered(30):
        append(journal, data)
        rig.stepped.run()


def copied(rig: Rig) -> Rig:
    """The copy as a data directory of its own."""
    files = {path: data for path, data in rig.disk.files().items() if path.startswith(f"{COPY}/")}
    disk = SimDisk.holding({DATA + path.removeprefix(COPY): data for path, data in files.items()})
    return Rig(disk, segment_size=1024)


async def check(rig: Rig, made: Copied, last: int) -> int:
    """The copy holds everything of its segments up to ``last``, and goes on far behind; returns its first."""
    copy = copied(rig)
    assert survey(copy.disk, DATA).damage == []
    assert list_segments(copy.disk, DATA).left_over == ()
    journal = copy.open()
    sequences = [entry.sequence for entry in copy.replayed]
    first = copy.manifest().segments[0].first_sequence
    assert sequences == list(range(first, made.last_sequence + 1))
    assert made.last_sequence >= last
    assert journal.next_sequence == made.last_sequence + 1 + SKIP
    assert journal.epoch > EPOCH_SKIP
    await journal.close()
    return first


class Meanwhile:
    """Lets the server write, rotate and give up segments at the nth operation on its data."""

    def __init__(self, rig: Rig, journal: Journal, nth: int) -> None:
        self._rig = rig
        self._journal = journal
        self._nth = nth
        self._seen = 0

    @property
    def happened(self) -> bool:
        return self._seen >= self._nth

    def __call__(self, operation: Operation) -> Fault | None:
        if operation.path.startswith(DATA) and not self.happened:
            self._seen += 1
            if self.happened:
                go_on(self._rig, self._journal)
                self._journal.drop_before(self._journal.open_segment - self._nth % 3)
                self._rig.stepped.run()
        return None


async def test_a_copy_at_rest() -> None:
    rig, journal = running()
    before = {path: data for path, data in rig.disk.files().items() if path.startswith(DATA)}
    made = copy_journal(rig.disk, DATA, rig.disk, COPY)
    assert (made.journal, made.segments) == (journal.journal_id, len(rig.manifest().segments))
    assert {path: data for path, data in rig.disk.files().items() if path.startswith(DATA)} == before
    assert await check(rig, made, journal.next_sequence - 1) == 1


async def test_a_copy_while_segments_are_made_and_given_up_at_every_moment() -> None:
    firsts: set[int] = set()
    moments = 0
    for nth in range(1, 100):
        rig, journal = running(nth)
        last = journal.next_sequence - 1
        meanwhile = rig.disk.inject = Meanwhile(rig, journal, nth)
        made = copy_journal(rig.disk, DATA, rig.disk, COPY)
        rig.disk.inject = None
        if not meanwhile.happened:
            break
        moments += 1
        firsts.add(await check(rig, made, last))
    assert moments > 10
    assert 1 in firsts and len(firsts) > 1  # what was given up is in some copies, and not in others


async def test_damage_is_not_copied() -> None:
    rig, _journal = running()
    rig.disk.flip(rig.path(2), 200, 0)
    with pytest.raises(DamagedJournal, match=r"0000000002\.seg"):
        copy_journal(rig.disk, DATA, rig.disk, COPY)
    assert "/copy/manifest" not in rig.disk.files()


def test_nothing_to_copy() -> None:
    with pytest.raises(DataDirError, match="holds no journal"):
        copy_journal(SimDisk(), "/nowhere", SimDisk(), COPY)


async def test_a_copy_with_a_manifest_is_durable_and_whole() -> None:
    for nth in range(1, 100):
        rig, journal = running(nth)
        last = journal.next_sequence - 1
        fault = rig.disk.inject = FaultAt(nth, CRASH, path=COPY)
        made = None
        try:
            made = copy_journal(rig.disk, DATA, rig.disk, COPY)
        except PowerLost:
            pass
        rig.disk.inject = None
        rig.disk.crash()
        if f"{COPY}/manifest" in rig.disk.files():
            assert survey(copied(rig).disk, DATA).damage == []
        if not fault.met:
            assert made is not None
            await check(rig, made, last)
            return
    raise AssertionError("the copy never ended")
