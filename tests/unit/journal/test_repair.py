"""Surveys and repairs of damaged journals, on a simulated disk."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from kqs.core import record
from kqs.errors import DamagedJournal, DataDirError, NewerFormat, WouldLose
from kqs.journal.recovery import TORN_SKIP
from kqs.journal.repair import EPOCH_SKIP, SKIP, repair
from kqs.journal.survey import Survey, survey
from kqs.testing.disk import SimDisk
from kqs.testing.faults import CHANGES, CRASH, FLIP, Fault, FaultAt, Operation, PowerLost

from .rig import DATA, NOW, Rig, append, write

MANIFEST = f"{DATA}/manifest"


async def filled(seed: int = 1) -> Rig:
    """Three segments with calls of one and of several jobs, at rest."""
    rig = Rig(SimDisk(seed), segment_size=2048)
    journal = rig.open()
    for number in range(18):
        sizes = [(30,), (30, 5, 90), (250,), (600,), (0,)][number % 5]
        await append(journal, *(bytes([number, n]) + rig.random.randbytes(s) for n, s in enumerate(sizes)))
    await journal.close()
    assert len(rig.manifest().segments) == 3
    return rig


def entries(rig: Rig) -> dict[int, bytes]:
    """Every accept of an undamaged journal, by sequence."""
    found = {}
    files = rig.disk.files()
    for frame in rig.frames():
        data = files[rig.path(frame.segment)]
        at = frame.start + record.FRAME_HEADER
        for entry in record.entries_between(data, at, frame.end):
            found[record.decode_accept(entry).sequence] = entry
    return found


def mend(rig: Rig, *, accept_loss: bool = False) -> tuple[Survey, str]:
    """Repair as the command does; returns what was found, and where the original is kept."""
    disk = rig.disk.attach()
    found = survey(disk, DATA)
    assert found.damage
    kept = repair(
        disk,
        DATA,
        found,
        lambda *_frame: None,
        accept_loss=accept_loss,
        random=rig.random.randbytes,
        now=NOW,
    )
    return found, kept


async def reopened(rig: Rig) -> tuple[dict[int, bytes], int]:
    """The accepts of a journal that opens, and the next sequence; it can be written to."""
    journal = rig.open()
    replayed = {entry.sequence: entry.entry for entry in rig.replayed if entry.kind == record.ACCEPT}
    following = journal.next_sequence
    await write(journal, b"after the repair")
    await journal.close()
    assert survey(rig.disk, DATA).damage == []
    return replayed, following


def lost_numbers(found: Survey) -> set[int]:
    return {n for first, last in found.lost if last is not None for n in range(first, last + 1)}


# -- surveys ----------------------------------------------------------------------------------------


async def test_a_sound_journal() -> None:
    rig = await filled()
    before = rig.disk.files()
    found = survey(rig.disk, DATA)
    assert (found.damage, found.torn, found.segments) == ([], None, 3)
    assert found.entries == len(entries(rig)) == found.next_sequence - 1
    assert rig.disk.files() == before


async def test_all_damage_is_named() -> None:
    rig = await filled()
    frames = rig.frames()
    hit = [frames[1], frames[6], frames[8]]
    assert len({frame.segment for frame in hit}) > 1
    for frame in hit:
        rig.disk.flip(rig.path(frame.segment), frame.start + record.FRAME_HEADER + 20, 3)
    found = survey(rig.disk, DATA)
    places = [(damage.segment, damage.offset, damage.sequence) for damage in found.damage]
    expected = [(f"{frame.segment:010d}.seg", frame.start, frame.first_sequence) for frame in hit]
    assert places == expected
    assert [damage.lost for damage in found.damage] == [(f.first_sequence, f.first_sequence) for f in hit]


async def test_a_frame_that_is_lost_whole_tells_which_numbers_were_in_it() -> None:
    rig = await filled()
    frame = next(frame for frame in rig.frames() if frame.entries == 3)
    path = rig.path(frame.segment)
    data = rig.disk.content(path)
    size = frame.end - frame.start
    rig.disk.put(path, data[: frame.start] + bytes(size) + data[frame.end :])
    found = survey(rig.disk, DATA)
    assert found.lost == [(frame.first_sequence, frame.first_sequence + 2)]


async def test_damage_that_loses_nothing() -> None:
    rig = await filled()
    frame = rig.frames()[3]
    whole = entries(rig)
    rig.disk.flip(rig.path(frame.segment), frame.start + 24, 0)  # the watermark in the frame's header
    found, _kept = mend(rig)
    assert (len(found.damage), found.lost) == (1, [])
    replayed, following = await reopened(rig)
    assert (replayed, following) == (whole, len(whole) + 1)


async def test_a_torn_end_is_no_damage() -> None:
    rig = await filled()
    frame = rig.frames()[-1]
    rig.disk.flip(rig.path(frame.segment), frame.end - 1, 0)
    found = survey(rig.disk, DATA)
    assert found.damage == [] and found.torn is not None
    assert (found.torn.segment, found.torn.offset) == (f"{frame.segment:010d}.seg", frame.start)


async def test_a_place_that_cannot_be_read_costs_no_more_than_itself() -> None:
    rig = await filled()
    frame = rig.frames()[0]

    def bad_sector(operation: Operation) -> Fault | None:
        bad = operation.kind == "pread" and operation.path == rig.path(1) and operation.offset == 0
        return Fault("error") if bad and operation.size > 512 else None

    rig.disk.inject = bad_sector
    found = survey(rig.disk, DATA)
    assert "cannot be read" in found.damage[0].what
    assert {damage.segment for damage in found.damage} == {"0000000001.seg"}
    assert found.lost[0][0] == frame.first_sequence
    assert found.next_sequence == len(entries(rig)) + 1


async def test_a_newer_journal_is_left_alone() -> None:
    rig = await filled()
    data = bytearray(rig.disk.content(rig.path(2)))
    head = record.decode_segment_header(bytes(data))[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "FORMAT", record.FORMAT + 1)
        data[: record.SEGMENT_HEADER] = record.encode_segment_header(head)
    rig.disk.put(rig.path(2), bytes(data))
    with pytest.raises(NewerFormat):
        survey(rig.disk, DATA)


def test_no_journal() -> None:
    rig = Rig(SimDisk())
    with pytest.raises(DataDirError, match="holds no journal"):
        survey(rig.disk, DATA)


# -- repairs ----------------------------------------------------------------------------------------


async def test_without_consent_nothing_is_lost_and_nothing_is_changed() -> None:
    rig = await filled()
    frame = rig.frames()[2]
    rig.disk.flip(rig.path(frame.segment), frame.end - 1, 0)
    before = rig.disk.files()
    with pytest.raises(WouldLose, match=f"sequences {frame.first_sequence};") as refused:
        mend(rig)
    assert refused.value.lost == [(frame.first_sequence, frame.first_sequence)]
    assert rig.disk.files() == before


async def test_a_batch_loses_only_the_job_that_is_damaged() -> None:
    rig = await filled()
    frame = next(frame for frame in rig.frames() if frame.entries == 3)
    whole = entries(rig)
    middle = frame.first_sequence + 1
    data = rig.disk.content(rig.path(frame.segment))
    rig.disk.flip(rig.path(frame.segment), data.index(whole[middle]) + 45, 1)
    found, kept = mend(rig, accept_loss=True)
    assert found.lost == [(middle, middle)]
    replayed, following = await reopened(rig)
    del whole[middle]
    assert (replayed, following) == (whole, len(whole) + 2)
    marks = [entry for entry in rig.replayed if entry.kind == record.MARK]
    assert [record.decode_mark(mark.entry) for mark in marks] == [b'{"lost":[%d,%d]}' % (middle, middle)]
    assert rig.disk.content(f"{kept}/{frame.segment:010d}.seg")[: len(data)] != data


async def test_the_original_is_kept_whole() -> None:
    rig = await filled()
    rig.disk.flip(rig.path(2), 200, 0)
    before = {path.rpartition("/")[2]: data for path, data in rig.disk.files().items() if "spare" not in path}
    _found, kept = mend(rig, accept_loss=True)
    await reopened(rig)
    files = rig.disk.files()
    copy = {path.removeprefix(f"{kept}/"): data for path, data in files.items() if path.startswith(kept)}
    assert copy == {name: data for name, data in before.items() if name != "ballast"}


async def test_the_original_is_copied_where_files_have_one_name_only() -> None:
    rig = await filled()
    rig.disk.flip(rig.path(2), 200, 0)
    before = rig.disk.content(rig.path(2))
    no_links = Fault("error", errno.EPERM)
    fault = rig.disk.inject = FaultAt(1, no_links, kinds=("link",), lasting=True)
    _found, kept = mend(rig, accept_loss=True)
    assert fault.met == 3
    assert rig.disk.durable(f"{kept}/0000000002.seg") == before
    await reopened(rig)


async def test_the_manifest_is_lost() -> None:
    rig = await filled()
    whole, epoch, journal = entries(rig), rig.manifest().epoch, rig.manifest().journal
    rig.disk.flip(MANIFEST, 30, 2)
    with pytest.raises(DamagedJournal):
        rig.open()
    with pytest.raises(WouldLose, match="all after it"):
        mend(rig)
    found, _kept = mend(rig, accept_loss=True)
    assert found.lost == [(len(whole) + 1, None)]
    replayed, following = await reopened(rig)
    assert replayed == whole
    assert following > len(whole) + SKIP
    assert rig.manifest().journal == journal
    assert rig.manifest().epoch > epoch and rig.manifest().epoch > EPOCH_SKIP


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_segment_is_missing(number: int) -> None:
    rig = await filled()
    whole = entries(rig)
    gone = {f.first_sequence + n for f in rig.frames() if f.segment == number for n in range(f.entries)}
    rig.disk.remove(rig.path(number))
    found, _kept = mend(rig, accept_loss=True)
    assert "missing" in found.damage[0].what
    replayed, following = await reopened(rig)
    assert replayed == {n: entry for n, entry in whole.items() if n not in gone}
    if number == 3:
        assert found.lost == [(min(gone), None)]
        assert following > max(gone) + SKIP // 2
    else:
        assert lost_numbers(found) == gone


@pytest.mark.parametrize("number", [1, 2])
async def test_a_header_is_gone(number: int) -> None:
    """Without its salt no frame of the segment verifies, but each entry does."""
    rig = await filled()
    whole = entries(rig)
    rig.disk.flip(rig.path(number), 20, 0)
    found, _kept = mend(rig)
    assert found.lost == []
    replayed, _following = await reopened(rig)
    assert replayed == whole


async def test_another_segment_in_its_place_gives_no_entries() -> None:
    rig = await filled()
    whole = entries(rig)
    rig.disk.put(rig.path(2), rig.disk.content(rig.path(1)))
    found, _kept = mend(rig, accept_loss=True)
    assert "belongs elsewhere" in found.damage[0].what
    replayed, _following = await reopened(rig)
    assert set(replayed) == set(whole) - lost_numbers(found)


async def test_an_end_that_was_torn_beside_damage_is_cut_as_ever() -> None:
    rig = await filled()
    whole, frames = entries(rig), rig.frames()
    rig.disk.flip(rig.path(frames[0].segment), frames[0].end - 1, 0)
    rig.disk.flip(rig.path(frames[-1].segment), frames[-1].end - 1, 0)
    found, _kept = mend(rig, accept_loss=True)
    assert found.lost == [(1, 1)] and found.torn is not None
    replayed, following = await reopened(rig)
    assert set(replayed) == set(whole) - {1} - set(range(frames[-1].first_sequence, len(whole) + 1))
    assert following == frames[-1].first_sequence + TORN_SKIP


async def test_a_jump_of_an_earlier_start_is_kept() -> None:
    rig = await filled()
    frames = rig.frames()
    rig.disk.flip(rig.path(3), frames[-1].end - 1, 0)
    await rig.open().close()
    rig.disk.flip(rig.path(1), frames[0].end - 1, 0)
    found, _kept = mend(rig, accept_loss=True)
    assert found.torn is None
    _replayed, following = await reopened(rig)
    assert following == frames[-1].first_sequence + TORN_SKIP


async def test_a_payload_cannot_pass_for_entries() -> None:
    """A job's data that holds a whole frame and entries, next to damage in the frame's own header."""
    rig = Rig(SimDisk(3), segment_size=1 << 14)
    journal = rig.open()
    await write(journal, b"before")
    fake = record.encode_accept(2, 1, NOW, NOW, 1, 0, b"forged", b"", b"not a job")
    frame, _crc = record.encode_frame(
        [fake], salt=0, frame=2, first_sequence=2, durable=1, count=1, previous=0
    )
    await write(journal, (fake + bytes(frame)) * 20)
    await write(journal, b"after")
    await journal.close()
    second = rig.frames()[1]
    for harm in (second.start, second.start + 4, second.start + record.FRAME_HEADER + 4, second.end - 1):
        broken = Rig(SimDisk.holding(rig.disk.files()), segment_size=1 << 14)
        broken.disk.flip(broken.path(1), harm, 1)
        broken.disk.flip(broken.path(1), second.start + record.FRAME_HEADER + 6, 0)
        found, _kept = mend(broken, accept_loss=True)
        assert found.lost == [(2, 2)]
        replayed, _following = await reopened(broken)
        assert sorted(replayed) == [1, 3]
        assert all(record.decode_accept(entry).type.encode() != b"forged" for entry in replayed.values())


# -- exhaustive -------------------------------------------------------------------------------------


async def check_mended(rig: Rig, whole: dict[int, bytes]) -> str:
    """Repair what is there: the outcome holds entries that were written, and no number is lost unreported."""
    found = survey(rig.disk, DATA)
    if not found.damage:
        return "sound"
    mend(rig, accept_loss=True)
    replayed, following = await reopened(rig)
    assert all(whole[number] == entry for number, entry in replayed.items())
    gone = whole.keys() - replayed.keys()
    open_end = found.torn is not None or any(last is None for _first, last in found.lost)
    behind = range(found.next_sequence, len(whole) + 1) if open_end else range(0)
    assert gone <= lost_numbers(found) | set(behind)
    assert not lost_numbers(found) & replayed.keys()
    assert following > len(whole)
    return "mended" if gone else "mended whole"


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_bit_flipped_in_every_byte_of_a_segment(number: int) -> None:
    origin = await filled()
    whole, files = entries(origin), origin.disk.files()
    frames = [frame for frame in origin.frames() if frame.segment == number]
    outcomes: dict[str, int] = {}
    for offset in range(0, frames[-1].end, 3):
        rig = Rig(SimDisk.holding(files, offset), segment_size=2048)
        rig.disk.flip(rig.path(number), offset, offset % 8)
        outcome = await check_mended(rig, whole)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["mended"] > 100 and outcomes["mended whole"] > 10
    assert (outcomes.get("sound", 0) > 0) == (number == 3)  # its last frame looks torn


@pytest.mark.parametrize("size", [512, 1024])
async def test_every_sector_zeroed(size: int) -> None:
    origin = await filled()
    whole, files = entries(origin), origin.disk.files()
    for number in (1, 2, 3):
        data = files[origin.path(number)]
        for start in range(0, len(data), 512):
            rig = Rig(SimDisk.holding(files, start), segment_size=2048)
            zeroed = data[:start] + bytes(len(data[start : start + size])) + data[start + size :]
            rig.disk.put(rig.path(number), zeroed)
            await check_mended(rig, whole)


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_segment_cut_off_anywhere(number: int) -> None:
    origin = await filled()
    whole, files = entries(origin), origin.disk.files()
    data = files[origin.path(number)]
    for size in range(0, len(data), 13):
        rig = Rig(SimDisk.holding(files, size), segment_size=2048)
        rig.disk.put(rig.path(number), data[:size])
        await check_mended(rig, whole)


# -- crashes ----------------------------------------------------------------------------------------


def harm_a_frame(rig: Rig) -> None:
    frame = rig.frames()[4]
    rig.disk.flip(rig.path(frame.segment), frame.end - 1, 0)


def harm_the_manifest(rig: Rig) -> None:
    rig.disk.flip(MANIFEST, 30, 2)


def harm_the_open_segment(rig: Rig) -> None:
    """What its repair leaves when it is ended begins later than the segment itself: as after a rotation."""
    data = rig.disk.content(rig.path(3))
    second = [frame for frame in rig.frames() if frame.segment == 3][1]
    start = record.SEGMENT_HEADER
    rig.disk.put(rig.path(3), data[:start] + bytes(second.end - start) + data[second.end :])


@pytest.mark.parametrize("harm", [harm_a_frame, harm_the_manifest, harm_the_open_segment])
@pytest.mark.parametrize("end", ["power", "kill"])
async def test_a_repair_that_ends_at_any_operation(harm: Callable[[Rig], None], end: str) -> None:
    """Either the old journal is there, byte for byte, and can be repaired still, or the new one is."""
    origin = await filled()
    whole, files = entries(origin), origin.disk.files()
    old = {path: data for path, data in files.items() if path.endswith(".seg")}
    expected: dict[int, bytes] = {}
    outcomes: set[str] = set()
    for nth in range(1, 200):
        for seed in range(3):
            rig = Rig(SimDisk.holding(files, seed * 1000 + nth), segment_size=2048)
            harm(rig)
            damaged = rig.disk.files()
            fault = rig.disk.inject = FaultAt(nth, CRASH, kinds=CHANGES)
            try:
                mend(rig, accept_loss=True)
            except PowerLost:
                pass
            rig.disk.inject = None
            if end == "power":
                rig.disk.crash()
            else:
                rig.disk.revive()
            if rig.disk.content(MANIFEST) == damaged[MANIFEST]:
                outcomes.add("old")
                assert all(rig.disk.content(path) == damaged[path] for path in old)
                with pytest.raises(DamagedJournal):
                    rig.open()
                found, _kept = mend(rig, accept_loss=True)
                assert found.lost == survey(SimDisk.holding(damaged), DATA).lost
            else:
                outcomes.add("new")
            replayed, _following = await reopened(rig)
            expected = expected or replayed
            assert replayed == expected and replayed.items() <= whole.items()
            kept = f"{DATA}/journal.before-repair-1"
            copy = {path: data for path, data in rig.disk.files().items() if path.startswith(f"{kept}/")}
            assert copy.pop(f"{kept}/manifest") == damaged[MANIFEST]
            assert copy == {f"{kept}/{path.rpartition('/')[2]}": damaged[path] for path in old}
        if not fault.met:
            break
    assert nth > 15 and not fault.met
    assert outcomes == {"old", "new"}


async def test_a_disk_that_gives_back_something_else_keeps_the_old_journal() -> None:
    rig = await filled()
    rig.disk.flip(rig.path(1), 200, 0)
    found = survey(rig.disk, DATA)
    before = rig.disk.content(MANIFEST)
    rig.disk.inject = FaultAt(1, FLIP, kinds=("pread",), path="0000000005.seg")
    with pytest.raises(DamagedJournal):
        repair(
            rig.disk.attach(),
            DATA,
            found,
            lambda *_: None,
            accept_loss=True,
            random=rig.random.randbytes,
            now=NOW,
        )
    assert rig.disk.content(MANIFEST) == before
