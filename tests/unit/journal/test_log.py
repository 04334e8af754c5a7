"""The append-only log: group commit, durability before the reply, rotation, full and failing disks."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import pytest

from kqs.core import record
from kqs.errors import Busy, DamagedJournal, JournalFailed
from kqs.journal import log
from kqs.journal.log import Journal
from kqs.journal.space import spare_names
from kqs.testing.disk import SimDisk
from kqs.testing.faults import CHANGES, EIO, ENOSPC, SHORT, Fault, FaultAt, Operation

from .rig import FOLDER, Rig, accept, append, fill, numbered, write

MANIFEST = "/data/manifest"


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def stepped() -> Rig:
    return Rig(stepped=True)


# -- group commit -------------------------------------------------------------------------------


async def test_appends_during_a_commit_make_up_one_next_frame(stepped: Rig) -> None:
    journal = stepped.open_at_rest()
    futures = [append(journal, b"1")]
    stepped.stepped.work()
    futures += [append(journal, b"2"), append(journal, b"3", b"4"), append(journal, b"5")]
    stepped.stepped.report()
    assert [future.done() for future in futures] == [True, False, False, False]
    assert stepped.stepped.waiting == 1
    stepped.stepped.run()
    assert all(future.done() for future in futures)
    assert [(frame.frame, frame.first_sequence, frame.entries) for frame in stepped.frames()] == [
        (1, 1, 1),
        (2, 2, 4),
    ]
    assert journal.commits == 2
    await journal.close()


async def test_one_frame_is_one_write_and_one_sync(stepped: Rig) -> None:
    stepped.segment_size = 1 << 16
    journal = stepped.open_at_rest()
    since = stepped.disk.operations
    append(journal, b"1")
    stepped.stepped.work()
    for number in range(50):
        append(journal, b"%d" % number)
    stepped.stepped.run()
    done = [operation.kind for operation in stepped.operations(*CHANGES, since=since)]
    assert done == ["pwrite", "datasync"] * 2
    await journal.close()


async def test_an_append_is_answered_only_after_the_sync_that_covers_it(stepped: Rig) -> None:
    journal = stepped.open_at_rest()
    watched: list[asyncio.Future[log.Location]] = []
    seen: list[str] = []

    def watch(operation: Operation) -> Fault | None:
        assert not any(future.done() for future in watched)
        seen.append(operation.kind)
        return None

    stepped.disk.inject = watch
    for number in range(5):
        data = b"payload %d" % number
        future = append(journal, data)
        watched[:] = [future]
        assert data not in (stepped.disk.durable(stepped.path(1)) or b"")
        stepped.stepped.work()
        assert data in (stepped.disk.durable(stepped.path(1)) or b"")
        assert not future.done()
        watched.clear()
        stepped.stepped.report()
        assert future.done()
    assert seen == ["pwrite", "datasync"] * 5
    await journal.close()


async def test_the_next_frame_is_not_written_before_the_sync_of_the_one_before(stepped: Rig) -> None:
    journal = stepped.open_at_rest()
    for number in range(20):
        append(journal, b"%d" % number)
        if number % 3 == 0 and stepped.stepped.waiting:
            stepped.stepped.work()
        if number % 4 == 0 and stepped.stepped.unreported:
            stepped.stepped.report()
    stepped.stepped.run()
    kinds = [o.kind for o in stepped.operations("pwrite", "datasync", path=".seg")]
    assert "pwrite pwrite" not in " ".join(kinds)
    await journal.close()


async def test_an_append_knows_where_its_entries_lie(rig: Rig) -> None:
    journal = rig.open()
    first, second = append(journal, b"a", b"bb", b"ccc"), append(journal, b"dddd")
    await asyncio.gather(first, second)
    location = first.result()
    offset = location.offset
    for number, data in enumerate((b"a", b"bb", b"ccc"), 1):
        entry = accept(number, data)
        assert journal.read(location.segment, offset, len(entry)) == entry
        offset += len(entry)
    entry = accept(4, b"dddd")
    assert journal.read(second.result().segment, second.result().offset, len(entry)) == entry
    await journal.close()


async def test_entries_nobody_waits_for_are_written_too(rig: Rig) -> None:
    journal = rig.open()
    first = journal.take_sequences(1)
    journal.append_unwaited([accept(first, b"lease")], first)
    await journal.sync()
    assert b"lease" in (rig.disk.durable(rig.path(1)) or b"")
    assert journal.synced_sequence == first
    await journal.close()


async def test_a_call_is_never_split_over_two_frames(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FRAME_TARGET", 1000)
    rig.segment_size = 1 << 16
    journal = rig.open()
    calls = [append(journal, *numbered(count, 50)) for count in (1, 5, 9, 30, 2, 2, 2)]
    await asyncio.gather(*calls)
    counts = [frame.entries for frame in rig.frames()]
    assert sum(counts) == 51
    assert max(counts) == 30  # larger than the target, and whole
    assert len(counts) > 3
    await journal.close()
    journal = rig.open()
    assert [entry.sequence for entry in rig.replayed] == list(range(1, 52))
    await journal.close()


async def test_sequences_that_jump_begin_a_new_frame(stepped: Rig) -> None:
    journal = stepped.open_at_rest()
    append(journal, b"1")
    append(journal, b"2")
    assert journal.take_sequences(10) == 3  # taken, never appended
    append(journal, b"13")
    append(journal, b"14")
    stepped.stepped.run()
    assert [(frame.first_sequence, frame.entries) for frame in stepped.frames()] == [(1, 1), (2, 1), (13, 2)]
    await journal.close()
    journal = stepped.open_at_rest()
    assert [entry.sequence for entry in stepped.replayed] == [1, 2, 13, 14]
    assert journal.next_sequence == 15
    await journal.close()


async def test_sync_returns_when_what_was_appended_before_it_is_durable(stepped: Rig) -> None:
    journal = stepped.open_at_rest()
    await journal.sync()  # nothing to wait for
    append(journal, b"1")
    stepped.stepped.work()
    append(journal, b"2")
    waiting = asyncio.ensure_future(journal.sync())
    await asyncio.sleep(0)
    stepped.stepped.report()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    stepped.stepped.work()
    append(journal, b"3")  # a busy server: there is always something on its way
    stepped.stepped.report()
    await asyncio.wait_for(waiting, 1)
    assert journal.synced_sequence == 2
    stepped.stepped.run()
    await journal.close()


async def test_figures(rig: Rig) -> None:
    journal = rig.open()
    assert journal.stats() == {"bytes": 64, "segments": 1, "last_seq": 0, "synced_seq": 0, "commits": 0}
    await fill(journal, numbered(40))
    stats = journal.stats()
    manifest = rig.manifest()
    assert stats["segments"] == len(manifest.segments) > 2
    assert stats["bytes"] == sum(info.end for info in manifest.segments[:-1]) + rig.frames()[-1].end
    assert (stats["last_seq"], stats["synced_seq"], stats["commits"]) == (40, 40, 40)
    assert journal.open_segment == manifest.segments[-1].number
    await journal.close()


async def test_closing_waits_for_what_is_on_its_way_and_lets_go_of_every_file(rig: Rig) -> None:
    journal = rig.open()
    await fill(journal, numbered(40))
    entry = accept(1, numbered(1)[0])
    assert journal.read(1, record.SEGMENT_HEADER + record.FRAME_HEADER, len(entry)) == entry
    last = append(journal, b"last")
    await journal.close()
    assert last.done()
    assert rig.disk.open_files == 0
    journal = rig.open()
    assert rig.data == [*numbered(40), b"last"]
    await journal.close()


# -- rotation -----------------------------------------------------------------------------------


async def test_a_full_segment_is_sealed_and_the_next_begun(rig: Rig) -> None:
    journal = rig.open()
    await fill(journal, numbered(40))
    *sealed, opened = rig.manifest().segments
    assert len(sealed) >= 2
    frames = rig.frames()
    for info in sealed:
        last = [frame for frame in frames if frame.segment == info.number][-1]
        assert (info.end, info.last_frame) == (last.end, last.frame)
        assert last.end <= rig.segment_size
    assert (opened.end, opened.last_frame) == (0, 0)
    assert [frame.frame for frame in frames] == list(range(1, 41))
    assert [frame.first_sequence for frame in frames] == list(range(1, 41))
    await journal.close()


async def test_a_frame_larger_than_a_segment_gets_one_of_its_own_size(rig: Rig) -> None:
    journal = rig.open()
    large = b"x" * 5000
    for data in (large, b"small", large):
        await write(journal, data)
    await journal.close()
    journal = rig.open()
    assert rig.data == [large, b"small", large]
    await journal.close()


async def test_rotation_makes_each_step_durable_before_the_next(rig: Rig) -> None:
    journal = rig.open()
    while len(rig.manifest().segments) == 1:
        since = rig.disk.operations
        await write(journal, b"x" * 150)
    done = [
        (operation.kind, operation.path.rpartition("/")[2])
        for operation in rig.operations(*CHANGES, since=since)
    ]
    segment = "0000000002.seg"
    assert done[: done.index(("pwrite", segment), 2) + 5][:10] == [
        ("rename", "spare-1"),
        ("pwrite", segment),
        ("datasync", segment),
        ("sync_dir", "journal"),
        ("create", "manifest.new"),
        ("pwrite", "manifest.new"),
        ("datasync", "manifest.new"),
        ("rename", "manifest.new"),
        ("sync_dir", "data"),
        ("pwrite", segment),
    ]
    await journal.close()


async def test_a_spare_segment_is_kept_ready(rig: Rig) -> None:
    journal = rig.open()
    await asyncio.sleep(0)
    assert rig.names() == ["0000000001.seg", "ballast", "spare-1"]
    assert rig.disk.content(f"{FOLDER}/spare-1") == bytes(rig.segment_size)
    await fill(journal, numbered(40))
    assert journal.open_segment > 2
    assert len(spare_names(rig.disk, FOLDER)) == 1
    created = [operation.path.rpartition("/")[2] for operation in rig.operations("create", path=FOLDER)]
    # Each segment after the first was a spare.
    assert [name for name in created if not name.startswith("spare-")] == ["0000000001.seg", "ballast"]
    await journal.close()


async def test_as_many_spares_are_kept_as_the_ends_of_the_jobs_need(rig: Rig) -> None:
    journal = rig.open()
    for needed, spares in ((0, 1), (1, 2), (3 * 2048, 4), (3 * 2048 + 1, 5), (2048, 2), (0, 2), (0, 2)):
        journal.reserve(needed)
        await journal.make_room()
        names = spare_names(rig.disk, FOLDER)
        assert len(names) == spares  # one too many is not worth the work
        assert all(rig.disk.content(f"{FOLDER}/{name}") == bytes(rig.segment_size) for name in names)
        assert journal.accepting
    await journal.close()
    journal = rig.open()
    await journal.make_room()
    assert len(spare_names(rig.disk, FOLDER)) == 1
    await journal.close()


async def test_new_jobs_are_refused_until_the_space_their_ends_need_is_there(stepped: Rig) -> None:
    journal = stepped.open_at_rest()
    assert journal.accepting
    journal.reserve(3 * 2048)
    assert (journal.accepting, journal.has_reserve) == (False, False)
    waiting = asyncio.ensure_future(journal.make_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    stepped.stepped.run()
    await asyncio.wait_for(waiting, 1)
    assert (journal.accepting, journal.has_reserve) == (True, True)
    await journal.close()


async def test_what_is_on_its_way_to_the_disk_takes_space(stepped: Rig) -> None:
    journal = stepped.open_at_rest()
    while journal.accepting:
        append(journal, b"x" * 200)
    assert journal.commits == 0
    assert 2 * 2048 - 64 - journal.pending_bytes < 1024
    assert journal.has_reserve
    stepped.stepped.run()
    assert journal.failed is None
    assert (journal.accepting, journal.pending_bytes) == (True, 0)
    await journal.close()


async def test_a_spare_that_is_gone_or_too_small_does_no_harm(rig: Rig) -> None:
    for spare in (None, b"", bytes(100)):
        journal = rig.open()
        for name in spare_names(rig.disk, FOLDER):
            rig.disk.remove(f"{FOLDER}/{name}")
        if spare is not None:
            rig.disk.put(f"{FOLDER}/spare-1", spare)
        await fill(journal, numbered(30))
        await journal.close()
    journal = rig.open()
    assert rig.data == numbered(30) * 3
    await journal.close()


async def test_segments_before_one_are_given_up_durably_before_they_are_removed(rig: Rig) -> None:
    journal = rig.open()
    await fill(journal, numbered(39))
    number = journal.open_segment
    since = rig.disk.operations
    journal.drop_before(number - 1)
    await write(journal, b"after")
    assert journal.open_segment == number
    done = [(o.kind, o.path.rpartition("/")[2]) for o in rig.operations(*CHANGES, since=since)]
    assert done[:5] == [
        ("create", "manifest.new"),
        ("pwrite", "manifest.new"),
        ("datasync", "manifest.new"),
        ("rename", "manifest.new"),
        ("sync_dir", "data"),
    ]
    assert done[5 : 5 + number - 2] == [("unlink", f"{n:010d}.seg") for n in range(1, number - 1)]
    assert [info.number for info in rig.manifest().segments] == [number - 1, number]
    assert journal.stats()["segments"] == 2
    kept = [frame.first_sequence for frame in rig.frames()]
    await journal.close()
    journal = rig.open()
    assert [entry.sequence for entry in rig.replayed] == kept
    assert rig.data[-1] == b"after"
    await journal.close()


async def test_a_journal_that_failed_gives_up_no_segment(rig: Rig) -> None:
    """And says so: whoever asks until the segments are gone would ask for ever."""
    journal = rig.open()
    await fill(journal, numbered(39))
    rig.disk.inject = FaultAt(1, EIO, kinds=("datasync",))
    with pytest.raises(JournalFailed):
        await write(journal, b"x")
    assert journal.segments_before(journal.open_segment)
    with pytest.raises(JournalFailed):
        journal.drop_before(journal.open_segment)
    await journal.close()


async def test_giving_up_nothing_does_nothing(rig: Rig) -> None:
    journal = rig.open()
    await fill(journal, numbered(40))
    journal.drop_before(3)
    await journal.sync()
    await asyncio.sleep(0)
    since = rig.disk.operations
    for number in (0, 1, 2, 3):
        journal.drop_before(number)
    await asyncio.sleep(0)
    assert rig.disk.operations == since
    await journal.close()


# -- reading back -------------------------------------------------------------------------------


async def test_an_entry_that_reads_back_otherwise_is_named(rig: Rig) -> None:
    journal = rig.open()
    location = await write(journal, b"payload", b"other")
    size, other = len(accept(1, b"payload")), len(accept(2, b"other"))
    rig.disk.flip(rig.path(1), location.offset + size - 6, 3)
    with pytest.raises(DamagedJournal) as caught:
        journal.read(location.segment, location.offset, size)
    assert (caught.value.segment, caught.value.offset) == ("0000000001.seg", location.offset)
    assert journal.read(1, location.offset + size, other) == accept(
        2, b"other"
    )  # alone, without its neighbour
    with pytest.raises(DamagedJournal):
        journal.read(1, location.offset + 1, size)
    await journal.close()


async def test_an_entry_the_disk_cannot_read_is_named(rig: Rig) -> None:
    journal = rig.open()
    location = await write(journal, b"payload")
    size = len(accept(1, b"payload"))
    rig.disk.inject = FaultAt(1, EIO, kinds=("pread",))
    with pytest.raises(DamagedJournal, match="Input/output error"):
        journal.read(location.segment, location.offset, size)
    assert journal.read(location.segment, location.offset, size) == accept(1, b"payload")
    await journal.close()


@pytest.mark.parametrize("kind", ["open", "pread"])
@pytest.mark.parametrize("lack", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_what_lacks_for_a_moment_is_no_damage(rig: Rig, lack: int, kind: str) -> None:
    journal = rig.open()
    location = await write(journal, b"payload")
    rig.disk.inject = FaultAt(1, Fault("error", lack), kinds=(kind,))
    with pytest.raises(Busy, match="cannot be read now"):
        journal.read(location.segment, location.offset)
    assert journal.read(location.segment, location.offset) == accept(1, b"payload")
    await journal.close()


async def test_a_segment_that_is_gone_stops_everything(rig: Rig) -> None:
    journal = rig.open()
    location = await write(journal, b"payload")
    rig.disk.inject = FaultAt(1, Fault("error", errno.ENOENT), kinds=("open",), lasting=True)
    for _ in range(2):
        with pytest.raises(JournalFailed, match="No such file"):
            journal.read(location.segment, location.offset)
    assert len(rig.failures) == 1
    with pytest.raises(JournalFailed):
        await write(journal, b"more")
    await journal.close()


async def test_any_number_of_segments_can_be_read_with_few_files_open(rig: Rig) -> None:
    rig.segment_size = 256
    journal = rig.open()
    places = [(await write(journal, data), data) for data in numbered(150)]
    assert journal.open_segment > 100
    for sequence, (location, data) in enumerate(places, 1):
        entry = accept(sequence, data)
        assert journal.read(location.segment, location.offset, len(entry)) == entry
    assert rig.disk.open_files < 80
    await journal.close()
    assert rig.disk.open_files == 0


# -- a full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, 2047])
async def test_a_spare_that_was_cut_short_is_not_counted_on(rig: Rig, size: int) -> None:
    journal = rig.open()
    await journal.close()
    for name in ("spare-2", "spare-7"):
        rig.disk.put(f"{FOLDER}/{name}", bytes(size))
    rig.disk.inject = FaultAt(1, ENOSPC, kinds=("create",), path="spare", lasting=True)
    journal = rig.open()  # the whole one is taken for the renewed open segment
    journal.reserve(100)
    await journal.make_room()
    assert spare_names(rig.disk, FOLDER) == []
    while journal.accepting:
        await write(journal, b"x" * 100)
    assert journal.open_segment == 1  # nothing was put where there may be no space
    rig.disk.inject = None
    journal.reserve(100, retry=True)
    await journal.make_room()
    assert [len(rig.disk.content(f"{FOLDER}/{name}")) for name in spare_names(rig.disk, FOLDER)] == [2048] * 2
    await journal.close()


@pytest.mark.parametrize("spares", ["one", "short", "none"])
async def test_a_journal_starts_on_a_disk_that_is_full_to_the_last_byte(rig: Rig, spares: str) -> None:
    rig.segment_size = 64 * 1024
    journal = rig.open()
    await fill(journal, numbered(30))
    await journal.close()
    if spares == "short":
        rig.disk.put(f"{FOLDER}/spare-0", bytes(10))
    if spares == "none":
        for name in spare_names(rig.disk, FOLDER):
            rig.disk.remove(f"{FOLDER}/{name}")
    rig.disk.capacity = sum(map(len, rig.disk.files().values()))
    journal = rig.open()
    assert rig.data == numbered(30)
    for _ in range(5):
        await write(journal, b"ack")
    await journal.close()
    for _ in range(3):  # again and again
        rig.disk.crash()
        journal = rig.open()
        assert rig.data == [*numbered(30), *[b"ack"] * 5]
        await journal.make_room()
        await journal.close()


async def test_ballast_for_a_start_is_made_when_there_is_space_again(rig: Rig) -> None:
    rig.segment_size = 1 << 20
    rig.disk.capacity = (1 << 20) + (100 << 10)
    journal = rig.open()
    await journal.make_room()
    assert len(rig.disk.content(f"{FOLDER}/ballast")) == 64 << 10  # enough for a manifest
    rig.disk.capacity = 4 << 20
    journal.reserve(0, retry=True)
    await journal.make_room()
    assert len(rig.disk.content(f"{FOLDER}/ballast")) == 1 << 20
    await journal.close()


async def test_without_space_for_a_spare_new_jobs_are_refused_and_acks_go_on() -> None:
    rig = Rig(segment_size=4096)
    ballast = 64 * 1024
    rig.disk.capacity = ballast + 3 * 4096 + 1000  # a segment, a spare, one more, the manifests
    journal = rig.open()
    await write(journal, b"x")
    assert journal.accepting
    rig.disk.put("/data/other", bytes(4096))
    while journal.open_segment == 1:  # into the spare; there is no room for another
        await write(journal, b"x" * 200)
    await journal.make_room()
    assert (spare_names(rig.disk, FOLDER), journal.failed) == ([], None)
    needed = 600
    journal.reserve(needed)
    taken = 0
    while journal.accepting:
        await write(journal, b"x" * 200)
        taken += 1
    assert taken > 0
    while journal.has_reserve:
        await write(journal, b"lease")
    before = journal.size
    while journal.size - before < needed:  # what ends jobs still fits
        await write(journal, b"ack")
    assert journal.open_segment == 2
    assert journal.failed is None

    journal.reserve(0, retry=True)
    await journal.make_room()
    assert not journal.accepting  # it looks again, and there is still none
    rig.disk.remove("/data/other")
    journal.reserve(0)
    await journal.make_room()
    assert journal.accepting  # and recovers by itself
    await write(journal, b"y" * 200)
    await journal.close()


@pytest.mark.parametrize("kind", ["create", "allocate", "datasync"])
@pytest.mark.parametrize("name", ["spare-1", "ballast"])
async def test_no_space_for_space_made_ahead_is_no_failure(rig: Rig, name: str, kind: str) -> None:
    rig.disk.inject = FaultAt(1, ENOSPC, kinds=(kind,), path=name)
    journal = rig.open()
    await journal.make_room()
    assert (journal.failed, rig.failures) == (None, [])
    await write(journal, b"x")
    journal.reserve(0, retry=True)
    await journal.make_room()
    assert rig.names() == ["0000000001.seg", "ballast", "spare-1"]
    assert rig.disk.content(f"{FOLDER}/spare-1") == bytes(rig.segment_size)
    await journal.close()


@pytest.mark.parametrize("kind", ["create", "pwrite", "datasync"])
async def test_no_space_for_a_manifest_is_met_by_giving_up_the_ballast(rig: Rig, kind: str) -> None:
    """Segments are given up, and the next begun, on a disk that is full to the last byte."""
    journal = rig.open()
    await fill(journal, numbered(39))
    number = journal.open_segment
    await journal.make_room()
    fault = rig.disk.inject = FaultAt(1, ENOSPC, kinds=(kind,), path="manifest.new")
    since = rig.disk.operations
    journal.drop_before(number)
    await write(journal, b"after")
    assert fault.met == 1
    unlinked = [o.path.rpartition("/")[2] for o in rig.operations("unlink", since=since)]
    gone = [f"{n:010d}.seg" for n in range(1, number)]
    assert [name for name in unlinked if name != "manifest.new"] == ["ballast", *gone]
    assert journal.failed is None
    journal.reserve(0, retry=True)
    assert [info.number for info in rig.manifest().segments] == [number]
    await journal.close()
    journal = rig.open()
    assert rig.data[-1] == b"after"
    await journal.make_room()
    assert "ballast" in rig.names()  # there for the next time
    await journal.close()


async def test_no_space_for_a_manifest_without_ballast_stops_everything(rig: Rig) -> None:
    journal = rig.open()
    await fill(journal, numbered(39))
    rig.disk.remove(f"{FOLDER}/ballast")
    rig.disk.inject = FaultAt(1, ENOSPC, kinds=("create",), path="manifest.new", lasting=True)
    journal.drop_before(journal.open_segment)
    await asyncio.sleep(0)
    assert isinstance(journal.failed, JournalFailed)
    with pytest.raises(JournalFailed, match="No space"):
        await write(journal, b"after")
    await journal.close()


async def test_a_batch_larger_than_a_segment_needs_that_much_free_space(rig: Rig) -> None:
    journal = rig.open()
    await journal.make_room()
    used = sum(map(len, rig.disk.files().values()))
    assert journal.has_room_for(100_000)
    rig.disk.capacity = used + 10_000
    assert journal.has_room_for(4_999)
    assert not journal.has_room_for(5_000)
    rig.disk.capacity = used
    assert journal.has_room_for(500)  # that the segment and its spares have
    await journal.close()


# -- a failing disk -----------------------------------------------------------------------------

Failing = Callable[[Rig], FaultAt]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("kind", ["pwrite", "datasync"])
async def test_a_failed_write_or_sync_stops_everything(stepped: Rig, kind: str, number: int) -> None:
    journal = stepped.open_at_rest()
    before = append(journal, b"before")
    stepped.stepped.run()
    assert before.done()
    stepped.disk.inject = FaultAt(1, Fault("error", number), kinds=(kind,))
    failed = append(journal, b"failed")
    stepped.stepped.work()
    behind = append(journal, b"behind")
    first = journal.take_sequences(1)
    journal.append_unwaited([accept(first, b"unwaited")], first)
    waiting = asyncio.ensure_future(journal.sync())
    await asyncio.sleep(0)
    since = stepped.disk.operations
    stepped.stepped.run()
    for future in (failed, behind):
        with pytest.raises(JournalFailed, match=r"Input/output|No space"):
            future.result()
    with pytest.raises(JournalFailed):
        await waiting
    assert stepped.failures == [journal.failed]
    for attempt in (lambda: append(journal, b"later"), lambda: journal.append_unwaited([accept(9, b"")], 9)):
        with pytest.raises(JournalFailed):
            attempt()
    with pytest.raises(JournalFailed):
        await journal.sync()
    journal.reserve(100_000, retry=True)
    with pytest.raises(JournalFailed):
        journal.drop_before(99)
    stepped.stepped.run()
    assert stepped.disk.operations == since  # nothing more was asked of the disk, least of all a sync
    await journal.close()
    assert stepped.operations(*CHANGES, since=since) == []


async def test_a_sync_is_never_tried_again_on_the_same_file(rig: Rig) -> None:
    journal = rig.open()
    await write(journal, b"before")
    rig.disk.inject = FaultAt(1, EIO, kinds=("datasync",))
    with pytest.raises(JournalFailed):
        await write(journal, b"failed")
    failed = rig.operations("datasync")[-1]
    assert failed.outcome == "error"
    await journal.close()
    assert rig.operations("datasync", path=failed.path, since=failed.number) == []


async def test_a_failure_while_work_is_queued_behind_it_stops_that_too(stepped: Rig) -> None:
    """Giving up segments, or reserving the next, is not done on a disk that has failed a write."""
    journal = stepped.open_at_rest()
    for data in numbered(39):
        append(journal, data)
        stepped.stepped.run()
    files = set(stepped.names())
    append(journal, b"failed")
    journal.drop_before(journal.open_segment)
    stepped.disk.inject = FaultAt(1, EIO, kinds=("datasync",))
    stepped.stepped.work()
    since = stepped.disk.operations
    stepped.stepped.run()
    assert stepped.operations(*CHANGES, since=since) == []
    assert set(stepped.names()) == files
    await journal.close()


@pytest.mark.parametrize(
    ("kind", "path", "nth"),
    [
        ("create", "spare", 1),
        ("allocate", "spare", 1),
        ("datasync", "spare", 1),
        ("rename", "spare", 1),
        ("datasync", "2.seg", 1),
        ("sync_dir", "/journal", 1),
        ("create", "manifest.new", 1),
        ("pwrite", "manifest.new", 1),
        ("datasync", "manifest.new", 1),
        ("rename", "manifest.new", 1),
        ("sync_dir", "/data", 2),
        ("unlink", "1.seg", 1),
    ],
)
async def test_failures_of_every_other_step_stop_the_journal(
    rig: Rig, kind: str, path: str, nth: int
) -> None:
    journal = rig.open()
    await write(journal, b"x")
    fault = rig.disk.inject = FaultAt(nth, EIO, kinds=(kind,), path=path)
    payloads, accepted = numbered(60), 0
    with pytest.raises(JournalFailed, match="Input/output error"):
        for data in payloads:
            await write(journal, data)
            accepted += 1
            if accepted == 40:
                journal.drop_before(journal.open_segment)
    since = rig.disk.operations
    assert fault.met == 1
    assert rig.failures == [journal.failed]
    await journal.close()
    assert rig.operations(*CHANGES, since=since) == []
    rig.disk.kill()
    journal = rig.open()
    if kind == "unlink":  # segments were given up before it
        assert rig.data[-1] == payloads[accepted - 1]
    else:
        assert rig.data in ([b"x", *payloads[:accepted]], [b"x", *payloads[: accepted + 1]])
    await journal.close()


async def test_short_writes_go_on_until_all_is_written() -> None:
    rig = Rig(SimDisk(3, trace=True))
    rig.disk.inject = FaultAt(1, SHORT, kinds=("pwrite",), lasting=True)
    journal = rig.open()
    await fill(journal, numbered(30))
    await journal.close()
    assert len(rig.operations("pwrite")) > 60
    rig.disk.inject = None
    journal = rig.open()
    assert rig.data == numbered(30)
    await journal.close()


async def test_a_write_that_takes_nothing_is_a_failure(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = rig.open()
    await write(journal, b"x")
    assert isinstance(journal, Journal)
    from kqs.testing.disk import SimFile

    monkeypatch.setattr(SimFile, "pwrite", lambda *_args: 0)
    with pytest.raises(JournalFailed, match="no progress"):
        await write(journal, b"y")
    await journal.close()
