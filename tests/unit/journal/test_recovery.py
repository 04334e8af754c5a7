"""Opening a data directory: what is replayed, what is cut, what is refused and named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kqs.core import record
from kqs.errors import DamagedJournal, DataDirError, DataDirInUse, NewerFormat
from kqs.journal import manifest as manifests
from kqs.journal.manifest import Manifest
from kqs.journal.recovery import TORN_SKIP, lock_directory
from kqs.journal.scan import each_entry, read_only
from kqs.testing.disk import SimDisk
from kqs.testing.faults import CHANGES, FLIP, FaultAt

from .rig import DATA, FOLDER, FrameAt, Rig, accept, fill, numbered, write

MANIFEST = f"{DATA}/manifest"


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def filled(rig: Rig, count: int = 40, size: int = 100) -> list[FrameAt]:
    """A closed journal of single-entry frames in several segments; returns its frames."""
    journal = rig.open()
    await fill(journal, numbered(count, size))
    await journal.close()
    frames = rig.frames()
    assert [frame.entries for frame in frames] == [1] * count
    return frames


def refused(rig: Rig, kind: type[Exception] = DamagedJournal) -> Any:
    """Open and be refused, without any file being changed; returns the refusal."""
    before = rig.disk.files()
    with pytest.raises(kind) as caught:
        rig.open()
    assert rig.disk.files() == before
    assert rig.disk.open_files == 0
    return caught.value


def swap_manifest(rig: Rig, **changes: Any) -> None:
    """Write a manifest that differs in some members."""
    old = rig.manifest()
    members = {name: getattr(old, name) for name in Manifest.__struct_fields__} | changes
    rig.disk.put(MANIFEST, manifests.encode(Manifest(**members)))


# -- opening ------------------------------------------------------------------------------------


async def test_a_new_journal_is_empty_and_durable(rig: Rig) -> None:
    journal = rig.open()
    assert (rig.replayed, journal.next_sequence, journal.epoch, journal.torn) == ([], 1, 1, None)
    assert len(bytes.fromhex(journal.journal_id)) == 8
    await journal.close()
    rig.disk.crash()
    again = rig.open()
    assert (again.journal_id, again.epoch) == (journal.journal_id, 2)
    await again.close()


async def test_every_entry_is_replayed_in_order_with_its_place(rig: Rig) -> None:
    journal = rig.open()
    places = [await write(journal, b"%d" % n, b"%d'" % n) for n in range(30)]
    await journal.close()
    journal = rig.open()
    assert rig.data == [text for n in range(30) for text in (b"%d" % n, b"%d'" % n)]
    assert [entry.sequence for entry in rig.replayed] == list(range(1, 61))
    assert [(e.segment, e.offset) for e in rig.replayed[::2]] == [(p.segment, p.offset) for p in places]
    assert journal.entries_replayed == 60
    for entry in rig.replayed:
        assert journal.read(entry.segment, entry.offset, len(entry.entry)) == entry.entry
    assert journal.next_sequence == 61
    await journal.close()


async def test_sequences_and_frames_go_on_over_restarts(rig: Rig) -> None:
    for epoch in range(1, 8):
        journal = rig.open()
        assert journal.epoch == epoch
        await fill(journal, numbered(7, 100, 7 * (epoch - 1)))
        await journal.close()
    journal = rig.open()
    assert rig.data == numbered(49)
    assert [entry.sequence for entry in rig.replayed] == list(range(1, 50))
    assert [frame.frame for frame in rig.frames()] == list(range(1, 50))
    await journal.close()


@pytest.mark.parametrize("space", ["spare-1", "ballast", ""])
async def test_the_open_segment_is_rewritten_synced_and_read_back_before_it_is_trusted(
    rig: Rig, space: str
) -> None:
    """Into a spare or the ballast, whose space is there on a full disk too, and whose name goes before a byte
    is written."""
    frames = await filled(rig, 5)
    for name in ("spare-1", "ballast"):
        if name == space:
            break
        rig.disk.remove(f"{FOLDER}/{name}")
    since = rig.disk.operations
    journal = rig.open()
    done = [
        (operation.kind, operation.path.rpartition("/")[2])
        for operation in rig.operations(*CHANGES, "pread", since=since)
    ]
    new = "0000000001.seg.new"
    taken = [("rename", space), ("sync_dir", "journal")] if space else [("create", new)]
    at = done.index(taken[0])
    assert done[at : at + len(taken) + 11] == [
        *taken,
        ("allocate", new),
        ("pwrite", new),
        ("datasync", new),
        ("pread", new),
        ("rename", new),
        ("sync_dir", "journal"),
        ("create", "manifest.new"),
        ("pwrite", "manifest.new"),
        ("datasync", "manifest.new"),
        ("rename", "manifest.new"),
        ("sync_dir", "data"),
    ]
    assert rig.frames() == frames
    await journal.close()


async def test_a_disk_that_does_not_give_back_what_was_written_is_refused(rig: Rig) -> None:
    await filled(rig, 5)
    rig.disk.inject = FaultAt(1, FLIP, kinds=("pread",), path=".new")
    with pytest.raises(DamagedJournal, match="does not give back"):
        rig.open()
    rig.disk.inject = None
    journal = rig.open()
    assert rig.data == numbered(5)
    await journal.close()


async def test_data_a_failed_sync_lost_is_durable_again_after_a_restart() -> None:
    """What the cache shows and the disk has not is written anew before anybody is told of it."""
    for seed in range(20):
        rig = Rig(SimDisk(seed))
        journal = rig.open()
        await fill(journal, numbered(3))
        await journal.close()
        content = rig.disk.open(rig.path(1))
        content.pwrite(content.pread(2048, 0), 0)
        rig.disk.inject = FaultAt(1, FLIP._replace(effect="error"), kinds=("datasync",))
        with pytest.raises(OSError):
            content.datasync()
        rig.disk.inject = None
        journal = rig.open()
        await journal.close()
        rig.disk.crash()
        journal = rig.open()
        assert rig.data == numbered(3)
        await journal.close()


async def test_a_larger_or_smaller_segment_size_later_is_fine(rig: Rig) -> None:
    count = 0
    for size in (2048, 512, 8192, 300):
        rig.segment_size = size
        journal = rig.open()
        await fill(journal, numbered(25, 100, count))
        await journal.close()
        count += 25
    journal = rig.open()
    assert rig.data == numbered(count)
    await journal.close()


# -- a torn tail --------------------------------------------------------------------------------


def tear(rig: Rig, frame: FrameAt, keep: int) -> bytes:
    """Leave only the first bytes of the last frame, as a write that broke off does; returns them."""
    path = rig.path(frame.segment)
    data = rig.disk.content(path)
    rest = data[frame.start : frame.start + keep]
    rig.disk.put(path, data[: frame.start] + rest.ljust(len(data) - frame.start, b"\0"))
    return rest.rstrip(b"\0")


@pytest.mark.parametrize("keep", [1, 3, 4, 40, 47, 48, 49, 100, -1])
async def test_a_torn_tail_is_kept_and_cut(rig: Rig, keep: int) -> None:
    last = (await filled(rig))[-1]
    rest = tear(rig, last, keep if keep > 0 else last.end - last.start - 1)
    journal = rig.open()
    assert rig.data == numbered(39)
    assert journal.torn == f"{last.segment:010d}.torn-{last.start}"
    assert rig.disk.content(f"{FOLDER}/{journal.torn}") == rest
    assert rig.disk.durable(f"{FOLDER}/{journal.torn}") == rest
    await write(journal, b"next")
    await journal.close()
    journal = rig.open()
    assert rig.data == [*numbered(39), b"next"]
    assert journal.torn is None
    await journal.close()


async def test_a_tail_torn_to_nothing_is_no_tail(rig: Rig) -> None:
    last = (await filled(rig))[-1]
    tear(rig, last, 0)
    journal = rig.open()
    assert rig.data == numbered(39)
    assert (journal.torn, journal.next_sequence) == (None, 40)
    await journal.close()


async def test_no_sequence_of_a_cut_frame_is_given_again(rig: Rig) -> None:
    """Also when the next start comes before anything was written."""
    last = (await filled(rig))[-1]
    tear(rig, last, 60)
    for _ in range(3):
        journal = rig.open()
        assert journal.next_sequence == 40 + TORN_SKIP
        await journal.close()
        rig.disk.crash()
    journal = rig.open()
    await write(journal, b"next")
    await journal.close()
    journal = rig.open()
    assert [entry.sequence for entry in rig.replayed] == [*range(1, 40), 40 + TORN_SKIP]
    await journal.close()


async def test_a_tail_can_be_torn_again_at_the_same_place(rig: Rig) -> None:
    last = (await filled(rig, 10))[-1]
    tear(rig, last, 60)
    journal = rig.open()
    await write(journal, b"x" * 100)
    await journal.close()
    tear(rig, rig.frames()[-1], 70)
    journal = rig.open()
    assert rig.data == numbered(9)
    assert journal.next_sequence == 10 + 2 * TORN_SKIP
    torn = [name for name in rig.names() if "torn" in name]
    assert len(torn) == 2
    await journal.close()


async def test_a_torn_tail_in_a_segment_that_is_full_to_the_last_byte(rig: Rig) -> None:
    frames = await filled(rig, 3)
    last = frames[-1]
    data = rig.disk.content(rig.path(1))
    rig.disk.put(rig.path(1), data[: last.start + 60].ljust(len(data), b"\xff"))
    journal = rig.open()
    assert rig.data == numbered(2)
    await write(journal, b"x" * 500)
    await journal.close()
    journal = rig.open()
    assert rig.data == [*numbered(2), b"x" * 500]
    await journal.close()


async def test_a_payload_cannot_pass_for_a_frame(rig: Rig) -> None:
    """A torn frame is cut although its payload holds frames made by somebody who knows all but the salt."""
    numbers = {"frame": 99, "first_sequence": 99, "durable": 98, "count": 1, "previous": 0}
    forged = b"".join(bytes(record.encode_frame([accept(99, b"!")], salt=s, **numbers)[0]) for s in range(3))
    journal = rig.open()
    await fill(journal, [b"before", forged + bytes(100)])
    await journal.close()
    assert rig.disk.content(rig.path(1)).count(record.FRAME_MAGIC_BYTES) > 2
    last = rig.frames()[-1]
    tear(rig, last, last.end - last.start - 50)
    journal = rig.open()
    assert rig.data == [b"before"]
    assert journal.torn is not None
    await journal.close()


# -- damage -------------------------------------------------------------------------------------


async def test_damage_in_the_middle_of_the_open_segment_is_named(rig: Rig) -> None:
    frames = await filled(rig)
    victim = frames[-2]
    rig.disk.flip(rig.path(victim.segment), victim.start + 70, 5)
    refusal = refused(rig)
    assert refusal.segment == f"{victim.segment:010d}.seg"
    assert refusal.offset == victim.start
    assert refusal.sequence == victim.first_sequence
    assert f"byte {frames[-1].start}" in refusal.what
    text = str(refusal)
    assert f"{victim.segment:010d}.seg at byte {victim.start}, from sequence {victim.first_sequence}" in text


async def test_damage_in_a_sealed_segment_is_named_even_at_its_end(rig: Rig) -> None:
    frames = await filled(rig)
    for victim in (frames[0], [frame for frame in frames if frame.segment == 1][-1]):
        rig.disk.flip(rig.path(1), victim.end - 10, 0)
        refusal = refused(rig)
        assert (refusal.segment, refusal.offset) == ("0000000001.seg", victim.start)
        assert refusal.sequence == victim.first_sequence
        rig.disk.flip(rig.path(1), victim.end - 10, 0)


async def test_a_sealed_segment_that_is_cut_off_is_named(rig: Rig) -> None:
    frames = [frame for frame in await filled(rig) if frame.segment == 1]
    data = rig.disk.content(rig.path(1))
    for size in (frames[-1].end - 1, frames[-1].start, frames[3].start + 20, 64, 63, 0):
        rig.disk.put(rig.path(1), data[:size])
        refusal = refused(rig)
        assert refusal.segment == "0000000001.seg"
        assert refusal.offset <= size
    rig.disk.put(rig.path(1), data[: frames[-1].end])  # the space behind the end is nothing
    journal = rig.open()
    assert rig.data == numbered(40)
    await journal.close()


async def test_an_open_segment_that_is_cut_off_is_named(rig: Rig) -> None:
    """Its space was reserved and synced when it was made: no crash makes it shorter."""
    frames = await filled(rig)
    path = rig.path(frames[-1].segment)
    data = rig.disk.content(path)
    for size in (len(data) - 1, frames[-1].end, frames[-1].start, frames[-2].start + 10, 64, 63, 0):
        rig.disk.put(path, data[:size])
        refusal = refused(rig)
        assert refusal.segment == path.rpartition("/")[2]
        assert refusal.offset <= size
        whole = [frame for frame in frames if frame.segment < frames[-1].segment or frame.end <= size]
        assert refusal.sequence == (
            len(whole) + 1 if size >= 64 else rig.manifest().segments[-1].first_sequence
        )


async def test_a_segment_that_is_missing_is_named(rig: Rig) -> None:
    await filled(rig)
    for info in rig.manifest().segments:
        path = f"{FOLDER}/{info.file}"
        data = rig.disk.content(path)
        rig.disk.remove(path)
        refusal = refused(rig)
        assert (refusal.segment, refusal.offset) == (info.file, 0)
        assert refusal.sequence == info.first_sequence
        rig.disk.put(path, data)


async def test_segments_that_changed_places_are_refused(rig: Rig) -> None:
    await filled(rig)
    first, second = rig.disk.content(rig.path(1)), rig.disk.content(rig.path(2))
    rig.disk.put(rig.path(1), second)
    assert refused(rig).what == "the segment belongs elsewhere"
    rig.disk.put(rig.path(1), first)
    rig.disk.put(rig.path(2), first)
    assert refused(rig).segment == "0000000002.seg"


async def test_a_segment_of_another_journal_is_refused(rig: Rig) -> None:
    await filled(rig)
    other = Rig()
    other.random.seed(99)
    await filled(other)
    for number in (1, rig.manifest().segments[-1].number):
        mine = rig.disk.content(rig.path(number))
        rig.disk.put(rig.path(number), other.disk.content(rig.path(number)))
        assert refused(rig).what == "the segment belongs elsewhere"
        rig.disk.put(rig.path(number), mine)


async def test_a_frame_that_does_not_follow_the_one_before_is_refused(rig: Rig) -> None:
    """A valid frame in the wrong place: its checksum is right, the chain is not."""
    frames = await filled(rig, 6, 200)
    data = bytearray(rig.disk.content(rig.path(1)))
    second, third = frames[1], frames[2]
    data[second.start : second.end] = data[third.start : third.end]
    rig.disk.put(rig.path(1), bytes(data))
    refusal = refused(rig)
    assert refusal.what == "frame 3 does not follow frame 1"
    assert (refusal.offset, refusal.sequence) == (second.start, 2)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"frame": 9}, "frame 9 does not follow frame 3"),
        ({"previous": 1}, "frame 4 does not follow frame 3"),
        ({"first_sequence": 3}, "sequence 3 comes twice"),
        ({"count": 2}, "cut off"),
        ({"count": 0}, "longer than its entries"),
    ],
)
async def test_frames_whose_numbers_cannot_be_are_refused(
    rig: Rig, change: dict[str, int], what: str
) -> None:
    end = (await filled(rig, 3))[-1].end
    data = bytearray(rig.disk.content(rig.path(1)))
    header, _crc = record.decode_segment_header(bytes(data))
    last = record.decode_frame(bytes(data), rig.frames()[-1].start, header.salt)[0]
    sequence = change.get("first_sequence", 4)
    numbers = {"frame": 4, "first_sequence": sequence, "durable": 3, "count": 1, "previous": last.crc}
    frame, _crc = record.encode_frame([accept(sequence, b"forged")], salt=header.salt, **(numbers | change))
    data[end : end + len(frame)] = frame
    rig.disk.put(rig.path(1), bytes(data))
    refusal = refused(rig)
    assert what in refusal.what
    assert end <= refusal.offset <= end + len(frame)
    assert refusal.sequence == (5 if change.get("count") == 2 else 4)


async def test_an_entry_that_is_damaged_inside_a_valid_frame_is_refused(rig: Rig) -> None:
    end = (await filled(rig, 3))[-1].end
    data = bytearray(rig.disk.content(rig.path(1)))
    header, _crc = record.decode_segment_header(bytes(data))
    last = record.decode_frame(bytes(data), rig.frames()[-1].start, header.salt)[0]
    bad = bytearray(accept(5, b"bad"))
    bad[-6] ^= 1
    frame, _crc = record.encode_frame(
        [accept(4, b"good"), bytes(bad)],
        salt=header.salt,
        frame=4,
        first_sequence=4,
        durable=3,
        count=2,
        previous=last.crc,
    )
    data[end : end + len(frame)] = frame
    rig.disk.put(rig.path(1), bytes(data))
    refusal = refused(rig)
    assert "checksum" in refusal.what
    assert refusal.sequence == 5


async def test_what_the_owner_of_the_entries_finds_impossible_is_damage(rig: Rig) -> None:
    frames = await filled(rig)

    def apply(_kind: int, entry: bytes, _segment: int, _offset: int) -> None:
        if record.decode_accept(entry).sequence == 17:
            raise record.Damaged(0, "it cannot be")

    before = rig.disk.files()
    with pytest.raises(DamagedJournal, match="it cannot be") as caught:
        rig.open(apply)
    assert caught.value.sequence == 17
    assert caught.value.segment == f"{frames[16].segment:010d}.seg"
    assert rig.disk.files() == before


# -- files that are not listed ------------------------------------------------------------------


async def test_what_a_crash_left_is_removed(rig: Rig) -> None:
    await filled(rig)
    number = rig.manifest().segments[-1].number
    header = record.SegmentHeader(number + 1, bytes(8), 1, 41, 41, 0)
    unborn = record.encode_segment_header(header).ljust(2048, b"\0")
    rig.disk.put(rig.path(number + 1), unborn)  # made, not listed yet
    rig.disk.put(rig.path(number + 2), bytes(2048))
    rig.disk.put(f"{rig.path(number)}.new", b"half")
    rig.disk.put(f"{MANIFEST}.new", b"half")
    journal = rig.open()
    assert rig.data == numbered(40)
    await journal.close()
    listed = [info.file for info in rig.manifest().segments]
    assert rig.names() == [*listed, "ballast", "spare-1"]
    assert sorted(path for path in rig.disk.files() if FOLDER not in path) == [MANIFEST]


async def test_segments_given_up_and_not_yet_removed_are_removed(rig: Rig) -> None:
    frames = await filled(rig)
    segments = rig.manifest().segments
    swap_manifest(rig, segments=segments[2:])
    journal = rig.open()
    first = segments[2].first_sequence
    assert rig.data == numbered(40)[first - 1 :]
    assert rig.names() == [*(info.file for info in segments[2:]), "ballast", "spare-1"]
    assert frames[0].segment == 1
    await journal.close()


async def test_a_segment_with_frames_that_is_not_listed_is_refused(rig: Rig) -> None:
    await filled(rig)
    segments = rig.manifest().segments
    swap_manifest(rig, segments=(*segments[:-2], segments[-2]))
    swap_manifest(rig, segments=(*segments[:-1][:-1], type(segments[0])(*_opened(segments[-2]))))
    refusal = refused(rig)
    assert refusal.segment == segments[-1].file
    assert "does not list it" in refusal.what


def _opened(info: Any) -> tuple[int, int, int]:
    return info.number, info.first_frame, info.first_sequence


async def test_files_of_others_in_the_folder_are_left_alone(rig: Rig) -> None:
    await filled(rig, 5)
    for name in ("notes.txt", "0000000001.seg.bak", "1.seg", "0000000001.torn-5"):
        rig.disk.put(f"{FOLDER}/{name}", b"mine")
    journal = rig.open()
    await journal.close()
    for name in ("notes.txt", "0000000001.seg.bak", "1.seg", "0000000001.torn-5"):
        assert rig.disk.content(f"{FOLDER}/{name}") == b"mine"


async def test_segments_without_a_manifest_are_refused(rig: Rig) -> None:
    await filled(rig)
    rig.disk.remove(MANIFEST)
    refusal = refused(rig)
    assert refusal.segment == "manifest"
    assert "it is missing" in refusal.what


async def test_one_segment_with_frames_and_no_manifest_is_refused(rig: Rig) -> None:
    await filled(rig, 3)
    rig.disk.remove(MANIFEST)
    assert "has frames" in refused(rig).what


async def test_a_start_that_died_before_its_manifest_begins_anew(rig: Rig) -> None:
    journal = rig.open()
    await journal.close()
    rig.disk.remove(MANIFEST)
    again = rig.open()
    assert again.journal_id != journal.journal_id
    assert again.epoch == 1
    await write(again, b"x")
    await again.close()


# -- newer formats ------------------------------------------------------------------------------


async def test_a_newer_manifest_is_refused(rig: Rig) -> None:
    await filled(rig)
    swap_manifest(rig, format=9)
    assert "format 9" in str(refused(rig, NewerFormat))


async def test_a_newer_manifest_of_another_shape_is_refused_as_newer(rig: Rig) -> None:
    from zlib import crc32

    await filled(rig)
    line = b'{"format":9,"chapters":{"a":1},"segments":"elsewhere"}'
    rig.disk.put(MANIFEST, b"%b\n%08x\n" % (line, crc32(line)))
    assert "format 9" in str(refused(rig, NewerFormat))


@pytest.mark.parametrize(("offset", "value"), [(8, 9), (10, 1)])  # format, flags
async def test_a_newer_segment_is_refused(rig: Rig, offset: int, value: int) -> None:
    from zlib import crc32

    await filled(rig)
    for number in (1, rig.manifest().segments[-1].number):
        old = rig.disk.content(rig.path(number))
        data = bytearray(old)
        data[offset] = value
        data[12:16] = crc32(data[16:64], crc32(data[:12])).to_bytes(4, "little")
        rig.disk.put(rig.path(number), bytes(data))
        refused(rig, NewerFormat)
        rig.disk.put(rig.path(number), old)


async def test_newer_frames_are_refused(rig: Rig) -> None:
    from zlib import crc32

    frame = (await filled(rig, 5))[2]
    data = bytearray(rig.disk.content(rig.path(1)))
    header, _crc = record.decode_segment_header(bytes(data))
    data[frame.start + 40] = 1
    body = crc32(data[frame.start : frame.start + 44], header.salt & 0xFFFFFFFF)
    crc = crc32(data[frame.start + 48 : frame.end], body)
    data[frame.start + 44 : frame.start + 48] = crc.to_bytes(4, "little")
    rig.disk.put(rig.path(1), bytes(data))
    refused(rig, NewerFormat)


async def test_entries_nobody_knows_are_refused(rig: Rig) -> None:
    await filled(rig)

    def apply(kind: int, entry: bytes, _segment: int, _offset: int) -> None:
        if record.decode_accept(entry).sequence == 30:
            raise record.Newer(f"entry kind {kind}")

    before = rig.disk.files()
    with pytest.raises(NewerFormat, match="entry kind 1"):
        rig.open(apply)
    assert rig.disk.files() == before


# -- reading only -------------------------------------------------------------------------------


async def test_reading_only_changes_nothing(rig: Rig) -> None:
    frames = await filled(rig)
    tear(rig, frames[-1], 60)
    before, since = rig.disk.files(), rig.disk.operations
    read: list[int] = []
    read_only(
        rig.disk,
        DATA,
        each_entry(lambda _kind, entry, *_: read.append(record.decode_accept(entry).sequence)),
    )
    assert read == list(range(1, 40))
    assert rig.disk.files() == before
    assert rig.operations(*CHANGES, since=since) == []


async def test_reading_only_names_damage(rig: Rig) -> None:
    frames = await filled(rig)
    rig.disk.flip(rig.path(1), frames[2].start + 60, 0)
    with pytest.raises(DamagedJournal) as caught:
        read_only(rig.disk, DATA, lambda *_: None)
    assert (caught.value.segment, caught.value.offset) == ("0000000001.seg", frames[2].start)


def test_reading_only_where_there_is_no_journal() -> None:
    disk = SimDisk()
    disk.makedirs("/empty")
    for directory in ("/empty", "/none"):
        with pytest.raises(DataDirError, match="holds no journal"):
            read_only(disk, directory, lambda *_: None)
    assert disk.files() == {}


# -- the lock -----------------------------------------------------------------------------------

HOLD = """
import sys
from kqs.journal.recovery import lock_directory
lock_directory(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    directory = str(tmp_path / "data")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(DataDirInUse, match=rf"in use by another server \(process {holder.pid}\)"):
            lock_directory(directory)
    finally:
        holder.kill()
        holder.communicate()
    fd = lock_directory(directory)
    with pytest.raises(DataDirInUse, match=f"process {os.getpid()}"):
        lock_directory(directory)
    os.close(fd)
    os.close(lock_directory(directory))


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataDirError, match="cannot be written"):
        lock_directory(str(tmp_path / "file" / "data"))
