"""Exhaustive damage to a small journal: a named refusal, or everything that the tail rule lets be known (T3).

The journal has two sealed segments and an open one. Every file is cut at every byte, has bits flipped in
every byte, and has every 512-byte sector zeroed, and replaced by every other one. What opens must hold what
was written, byte for byte and in order, and may lack frames at the end of the open segment only if the damage
lies in each of them: a frame that is intact is never thrown away.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest

from kqs.errors import DamagedJournal, NewerFormat
from kqs.testing.disk import SimDisk
from kqs.testing.faults import CHANGES
from kqs.testing.media import SECTOR

from .rig import DATA, FOLDER, FrameAt, Rig, accept, append, frames_of

MANIFEST = f"{DATA}/manifest"
#: All eight bits of every byte instead of one.
EVERY_BIT = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"

Files = dict[str, bytes]


class Sound:
    """The journal before the damage."""

    def __init__(self, files: Files, entries: list[bytes]) -> None:
        self.files = files
        self.entries = entries
        self.frames = frames_of(files)
        self.segments = sorted({frame.segment for frame in self.frames})

    def path(self, segment: int) -> str:
        return f"{FOLDER}/{segment:010d}.seg"

    def hit(self, path: str, damaged: bytes) -> list[FrameAt]:
        """The frames of which a byte is not what it was."""
        old = self.files[path]
        mine = [frame for frame in self.frames if self.path(frame.segment) == path]
        return [f for f in mine if damaged[f.start : f.end] != old[f.start : f.end]]


@pytest.fixture(scope="module")
def sound() -> Sound:
    return asyncio.run(make_sound())


async def make_sound() -> Sound:
    """Calls of one and of several jobs; a sector holds many of the small ones, and the large fill several."""
    rig = Rig(SimDisk(5), segment_size=2048)
    journal = rig.open()
    entries: list[bytes] = []
    for number in range(18):
        sizes = [(30,), (30, 5, 90), (250,), (600,), (0,)][number % 5]
        payloads = [bytes([number, n]) + rig.random.randbytes(size) for n, size in enumerate(sizes)]
        first = journal.next_sequence
        await append(journal, *payloads)
        entries += [accept(first + n, data) for n, data in enumerate(payloads)]
    await journal.close()
    files = rig.disk.files()
    del files[f"{FOLDER}/spare"]
    sound = Sound(files, entries)
    assert len(sound.segments) == 3
    assert sum(frame.segment == sound.segments[-1] for frame in sound.frames) > 4
    assert sum(frame.entries for frame in sound.frames) == len(entries)
    return sound


async def open_damaged(sound: Sound, path: str, damaged: bytes) -> tuple[list[bytes] | Exception, Rig]:
    """Open the journal with one file replaced; returns its entries, or the refusal."""
    rig = Rig(SimDisk.holding(sound.files | {path: damaged}, trace=True))
    before = rig.disk.operations
    try:
        journal = rig.open()
    except (DamagedJournal, NewerFormat) as refusal:
        changes = CHANGES - {"makedirs"}  # of a folder that is there
        assert rig.operations(*changes, since=before) == [], "a refusal changes nothing"
        return refusal, rig
    await journal.close()
    return [entry.entry for entry in rig.replayed], rig


async def judge(sound: Sound, path: str, damaged: bytes) -> str:
    """Open the damaged journal and check the outcome; returns its name."""
    outcome, rig = await open_damaged(sound, path, damaged)
    name = path.rpartition("/")[2]
    hit = sound.hit(path, damaged) if name != "manifest" else []
    if isinstance(outcome, Exception):
        assert damaged != sound.files[path]
        assert isinstance(outcome, DamagedJournal), "damage is not a newer format"
        assert outcome.segment == name
        check_place(sound, outcome, hit, damaged)
        return "refused"
    assert outcome == sound.entries[: len(outcome)], "wrong jobs"
    kept = 0
    lost: list[FrameAt] = []
    for frame in sound.frames:
        if kept + frame.entries <= len(outcome) and not lost:
            kept += frame.entries
        else:
            lost.append(frame)
    assert kept == len(outcome), "half a call"
    if not lost:
        return "whole"
    assert all(frame.segment == sound.segments[-1] for frame in lost), "a sealed segment lost frames"
    assert all(frame in hit for frame in lost), "a frame that is intact was thrown away"
    rest = damaged[lost[0].start :].rstrip(b"\0")
    if rest:  # and what was cut is kept
        assert rig.disk.content(f"{FOLDER}/{name.removesuffix('.seg')}.torn-{lost[0].start}") == rest
    return f"tail of {len(lost)}"


def check_place(sound: Sound, refusal: DamagedJournal, hit: list[FrameAt], damaged: bytes) -> None:
    """The place that is named is where the damage begins, as far as frames can tell."""
    assert 0 <= refusal.offset <= max(len(damaged), SECTOR)
    if hit and refusal.offset > 0:
        first = hit[0]
        assert refusal.offset <= first.end
        assert refusal.sequence is not None
        assert refusal.sequence <= first.first_sequence + first.entries


async def judge_all(sound: Sound, path: str, cases: Iterable[bytes]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for damaged in cases:
        if damaged != sound.files[path]:
            outcomes[await judge(sound, path, damaged)] += 1
    return outcomes


def cuts(data: bytes) -> Iterator[bytes]:
    for size in range(len(data)):
        yield data[:size]


def zeroed_from(data: bytes) -> Iterator[bytes]:
    for size in range(len(data)):
        yield data[:size].ljust(len(data), b"\0")


def flips(data: bytes) -> Iterator[bytes]:
    damaged = bytearray(data)
    for offset in range(len(data)):
        for bit in range(8) if EVERY_BIT else (offset * 5 % 8,):
            damaged[offset] ^= 1 << bit
            yield bytes(damaged)
            damaged[offset] ^= 1 << bit


def sectors(data: bytes) -> Iterator[bytes]:
    """Each sector zeroed, filled, and made a copy of every other; every two of them swapped."""
    starts = range(0, len(data), SECTOR)
    for here in starts:
        for filling in (b"\0", b"\xff", b"KFRM"):
            yield put(data, here, (filling * SECTOR)[:SECTOR])
        for there in starts:
            other = data[there : there + SECTOR]
            yield put(data, here, other)
            if there > here:
                yield put(put(data, here, other), there, data[here : here + SECTOR])


def put(data: bytes, start: int, sector: bytes) -> bytes:
    room = len(data) - start
    return data[:start] + sector[:room] + data[start + len(sector) :]


Damage = Callable[[bytes], Iterator[bytes]]


@pytest.mark.parametrize("damage", [cuts, zeroed_from, flips, sectors])
async def test_the_open_segment(sound: Sound, damage: Damage) -> None:
    path = sound.path(sound.segments[-1])
    outcomes = await judge_all(sound, path, damage(sound.files[path]))
    assert outcomes["refused"] > 10
    if damage is cuts:
        assert set(outcomes) == {"refused"}  # its size is known
    if damage is flips:
        # One bit can take the last frame only, which is what a torn write looks like, or fall behind the end.
        assert set(outcomes) == {"refused", "tail of 1", "whole"}


@pytest.mark.parametrize("damage", [cuts, zeroed_from, flips, sectors])
@pytest.mark.parametrize("number", [0, 1])
async def test_a_sealed_segment(sound: Sound, number: int, damage: Damage) -> None:
    path = sound.path(sound.segments[number])
    outcomes = await judge_all(sound, path, damage(sound.files[path]))
    assert set(outcomes) <= {"refused", "whole"}  # whole: behind its end there is nothing
    assert outcomes["refused"] > 10


@pytest.mark.parametrize("damage", [cuts, zeroed_from, flips, sectors])
async def test_the_manifest(sound: Sound, damage: Damage) -> None:
    outcomes = await judge_all(sound, MANIFEST, damage(sound.files[MANIFEST]))
    assert set(outcomes) <= {"refused", "whole"}
    # Whole: its last byte is the end of the line.
    assert outcomes["whole"] <= 3 * (8 if EVERY_BIT else 1)
    assert outcomes["refused"] > 0


async def test_sectors_of_other_segments(sound: Sound) -> None:
    """Every sector of every segment in every place of every other."""
    outcomes: Counter[str] = Counter()
    for path in map(sound.path, sound.segments):
        for other in map(sound.path, sound.segments):
            if other != path:
                data = sound.files[path]
                for here in range(0, len(data), SECTOR):
                    for there in range(0, len(sound.files[other]), SECTOR):
                        sector = sound.files[other][there : there + SECTOR]
                        damaged = put(data, here, sector)
                        if damaged != data:
                            outcomes[await judge(sound, path, damaged)] += 1
    assert outcomes["refused"] > 30


async def test_whole_segments_in_the_wrong_place(sound: Sound) -> None:
    for path in map(sound.path, sound.segments):
        for other in map(sound.path, sound.segments):
            if other != path:
                refusal, _rig = await open_damaged(sound, path, sound.files[other])
                assert isinstance(refusal, DamagedJournal)
                assert refusal.segment == path.rpartition("/")[2]


async def test_the_undamaged_journal_is_whole(sound: Sound) -> None:
    for path, data in sound.files.items():
        assert await judge(sound, path, data) == "whole"
