"""Which segments make up a journal: what the manifest lists, or, when that is damaged, what is there."""

from __future__ import annotations

from collections import Counter

from msgspec import Struct

from ..core import record
from ..core.record import Damaged, Newer, SegmentHeader
from ..errors import DamagedJournal, DataDirError
from ..ports import Disk
from . import manifest as manifests
from .manifest import SegmentInfo, segment_number
from .scan import newer_format, read_file


class Listing(Struct, frozen=True):
    """The segments of a journal.

    Attributes:
        journal: 16 hex digits.
        epoch: of the manifest; 0 without one.
        segments: in order.
        manifest: whether the manifest is sound; else ``segments`` is told by the files themselves.
        damage: (file, what is wrong) of the manifest, and of files that it should list.
        left_over: files of segments that are not part of the journal.
    """

    journal: str
    epoch: int
    segments: tuple[SegmentInfo, ...]
    manifest: bool
    damage: tuple[tuple[str, str], ...]
    left_over: tuple[str, ...]

    @property
    def first_sequence(self) -> int:
        """The first sequence that can be there."""
        return max(1, self.segments[0].first_sequence)


def list_segments(disk: Disk, directory: str) -> Listing:
    """Find out which segments a journal has.

    Raises:
        DataDirError: there is no journal, or nothing that tells which one it was.
        NewerFormat: written by a later version.
    """
    try:
        names = disk.listdir(f"{directory}/journal")
        what = "it is missing"
        try:
            manifest = manifests.load(disk, directory)
        except DamagedJournal as damaged:
            manifest, what = None, damaged.what
    except (FileNotFoundError, NotADirectoryError):
        names, manifest = [], None
    numbers = sorted(number for name in names if (number := segment_number(name)) is not None)
    if manifest is None:
        if not numbers:
            raise DataDirError(f"{directory} holds no journal; give the data directory with --data")
        return _found(disk, directory, numbers, what)
    segments = manifest.segments
    damage: list[tuple[str, str]] = []
    listed = {info.number for info in segments}
    left_over: list[str] = []
    for number in numbers:
        if number in listed:
            continue
        info = _of_file(disk, directory, number)
        if number <= segments[-1].number or not _has_frames(disk, directory, info.file):
            left_over.append(info.file)
        elif number == segments[-1].number + 1 and info.first_sequence > segments[-1].first_sequence:
            # What rotation made next: it is written to only after the manifest lists it.
            damage.append(("manifest", f"it does not list {info.file}, which has frames"))
            last = segments[-1]
            sealed = SegmentInfo(last.number, last.first_frame, last.first_sequence)
            segments = (*segments[:-1], sealed, info)
        else:
            damage.append((info.file, "the manifest does not list it; a repair that was ended leaves such"))
            left_over.append(info.file)
    if damage and manifests.load(disk, directory) != manifest:
        return list_segments(disk, directory)  # a server runs: that was a rotation
    return Listing(manifest.journal, manifest.epoch, segments, True, tuple(damage), tuple(left_over))


def _found(disk: Disk, directory: str, numbers: list[int], what: str) -> Listing:
    """Without a manifest: segments of the journal that most of them are of, as long as they go on."""
    headers = {number: _header(disk, directory, number) for number in numbers}
    journals = Counter(header.journal for header in headers.values() if header is not None)
    if not journals:
        raise DataDirError(
            f"{directory}: neither the manifest nor any segment tells which journal this was; "
            f"restore a backup"
        )
    segments: list[SegmentInfo] = []
    left_over: list[str] = []
    first_sequence = 0
    for number in numbers:
        info = _of_file(disk, directory, number)
        goes_on = info.first_sequence > first_sequence
        if goes_on or (not info.first_sequence and _has_frames(disk, directory, info.file)):
            segments.append(info)
            first_sequence = info.first_sequence or first_sequence
        else:
            left_over.append(info.file)  # a repair that was ended leaves such
    journal = journals.most_common(1)[0][0].hex()
    return Listing(journal, 0, tuple(segments), False, (("manifest", what),), tuple(left_over))


def _of_file(disk: Disk, directory: str, number: int) -> SegmentInfo:
    """What a segment's own header tells of it; zeros when it is damaged."""
    header = _header(disk, directory, number)
    if header is None:
        return SegmentInfo(number, 0, 0)
    return SegmentInfo(number, header.first_frame, header.first_sequence)


def _header(disk: Disk, directory: str, number: int) -> SegmentHeader | None:
    try:
        file = disk.open(f"{directory}/journal/{SegmentInfo(number, 0, 0).file}")
    except OSError:
        return None
    try:
        return record.decode_segment_header(file.pread(record.SEGMENT_HEADER, 0))[0]
    except (Damaged, OSError):
        return None
    except Newer as newer:
        raise newer_format(newer) from None
    finally:
        file.close()


def _has_frames(disk: Disk, directory: str, name: str) -> bool:
    try:
        data = read_file(disk, f"{directory}/journal/{name}")
        return bool(data[record.SEGMENT_HEADER :].strip(b"\0"))
    except OSError:
        return True
