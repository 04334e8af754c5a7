"""A journal rebuilt from what is left of a damaged one (ADR 0008).

The manifest's swap is the moment: until then the old journal is in use, afterwards the new one. Segments
before the first damage stay as they are. The others are written anew, under numbers that are not in use; the
original is kept whole in a folder beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from msgspec import Struct

from ..core import record
from ..core.record import SegmentHeader
from ..core.salvage import LossMark
from ..errors import WouldLose
from ..ports import Disk
from .copying import copy_file, keep_file
from .listing import Listing, list_segments
from .manifest import Manifest, SegmentInfo, segment_number, write_all
from .recovery import TORN_SKIP, make_segment
from .scan import Apply, scan_all
from .space import BALLAST, is_spare, store_manifest
from .survey import Part, Survey, parts

#: How far sequences jump where it is not known how many are lost: more than segments ever held.
SKIP: Final = 1_000_000_000
#: The same for epochs, when the manifest is lost.
EPOCH_SKIP: Final = 1000


class _Frame(Struct, frozen=True):
    """A frame to be written."""

    first: int
    entries: int
    data: bytes


def repair(
    disk: Disk,
    directory: str,
    found: Survey,
    apply: Apply,
    *,
    accept_loss: bool,
    random: Callable[[int], bytes],
    now: int,
) -> str:
    """Put a journal of everything that is left in the place of a damaged one.

    Args:
        disk: the file system.
        directory: DATA, locked by the caller.
        found: the damage, as :func:`~kqs.journal.survey.survey` tells it.
        apply: takes every frame of the new journal before it is put in place; what it raises ends the repair.
        accept_loss: whether entries may be lost.
        random: gives n random bytes.
        now: microseconds since 1970.

    Returns:
        The folder that holds the original.

    Raises:
        WouldLose: entries are lost; nothing was changed.
        OSError: the disk is full or broken; the old journal is still in use.
    """
    if found.lost and not accept_loss:
        raise WouldLose(found.lost)
    folder = f"{directory}/journal"
    listing = list_segments(disk, directory)
    kept = keep_original(disk, directory)
    for name in listing.left_over:
        disk.unlink(f"{folder}/{name}")
    builder = _Builder(disk, folder, listing, random, now)
    for part in parts(disk, directory, listing):
        builder.add(part)
    epoch = found.epoch + (0 if listing.manifest else EPOCH_SKIP)
    manifest = Manifest(record.FORMAT, found.journal, epoch, tuple(builder.segments))
    scan_all(disk, folder, manifest, apply)
    store_manifest(disk, directory, manifest)
    in_use = {info.file for info in manifest.segments}
    for info in listing.segments:
        if info.file not in in_use and info.file in disk.listdir(folder):
            disk.unlink(f"{folder}/{info.file}")
    return kept


def keep_original(disk: Disk, directory: str) -> str:
    """Keep the journal and its manifest, whole and durable, in a folder of their own; returns the folder."""
    names = disk.listdir(directory)
    number = 1
    while f"journal.before-repair-{number}" in names:
        number += 1
    kept = f"{directory}/journal.before-repair-{number}"
    building = f"{kept}.new"
    disk.makedirs(building)
    for name in disk.listdir(building):  # an earlier repair was ended
        disk.unlink(f"{building}/{name}")
    for name in disk.listdir(f"{directory}/journal"):
        if not is_spare(name) and name != BALLAST:
            keep_file(disk, f"{directory}/journal/{name}", f"{building}/{name}")
    if "manifest" in names:
        copy_file(disk, f"{directory}/manifest", f"{building}/manifest")
    disk.sync_dir(building)
    disk.rename(building, kept)
    disk.sync_dir(directory)
    return kept


class _Builder:
    """Writes the segments of the new journal.

    Attributes:
        segments: of the new journal; the last one is open.
    """

    def __init__(
        self,
        disk: Disk,
        folder: str,
        listing: Listing,
        random: Callable[[int], bytes],
        now: int,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._journal = bytes.fromhex(listing.journal)
        self._has_manifest = listing.manifest
        self._random = random
        self._now = now
        self._last = listing.segments[-1].number
        # One number is left out: so the next repair tells what this one left when it was ended from a
        # segment that rotation made.
        self._number = 2 + max(
            number for name in disk.listdir(folder) if (number := segment_number(name)) is not None
        )
        self._frame = max(1, listing.segments[0].first_frame)
        self._open_loss: int | None = None
        self._sound = True
        self.segments: list[SegmentInfo] = []

    def add(self, part: Part) -> None:
        """Take the next segment over, as it is or written anew."""
        is_last = part.info.number == self._last
        self._sound = self._sound and not part.damage and not is_last
        if self._sound:
            info = part.info
            place = (part.end, part.frame, part.crc)
            self.segments.append(SegmentInfo(info.number, info.first_frame, info.first_sequence, *place))
            self._frame = part.frame + 1
            return
        frames = list(self._frames(part))
        if is_last:
            frames += self._ending(part)
        if frames or is_last:
            self._write(frames, part.following, is_last)

    def _frames(self, part: Part) -> Iterator[_Frame]:
        """What is left of a segment, with a mark for what is lost."""
        lost = dict(damage.lost for damage in part.damage if damage.lost is not None)
        runs = {run.first: run for run in part.runs}
        for first in sorted([*runs, *lost]):
            if first in runs:
                run = runs[first]
                if self._open_loss is not None and self._open_loss < first:
                    yield _mark(self._open_loss, first - 1)
                self._open_loss = None
                yield _Frame(first, run.entries, part.data[run.start : run.end])
            elif (last := lost[first]) is not None:
                yield _mark(first, last)
            else:
                self._open_loss = first

    def _ending(self, part: Part) -> Iterator[_Frame]:
        """A frame that holds the next sequence: with a jump where it is not known which ones were used."""
        if self._open_loss is not None:
            yield _mark(self._open_loss, None)
        elif not self._has_manifest:
            yield _mark(part.following, None)
        else:
            yield _Frame(part.following + (0 if part.torn is None else TORN_SKIP), 0, b"")

    def _write(self, frames: list[_Frame], following: int, is_open: bool) -> None:
        first = frames[0].first if frames else following
        salt = int.from_bytes(self._random(8), "little")
        header = SegmentHeader(self._number, self._journal, salt, self._frame, first, self._now)
        size = record.SEGMENT_HEADER + sum(record.FRAME_HEADER + len(frame.data) for frame in frames)
        file, crc = make_segment(self._disk, self._folder, header, size)
        end = record.SEGMENT_HEADER
        try:
            for frame in frames:
                data, crc = record.encode_frame(
                    (frame.data,),
                    salt=salt,
                    frame=self._frame,
                    first_sequence=frame.first,
                    durable=self._frame - 1,
                    count=frame.entries,
                    previous=crc,
                )
                write_all(file, data, end)
                end += len(data)
                self._frame += 1
            file.datasync()
            info = SegmentInfo(self._number, header.first_frame, first)
            if is_open:
                info = msgspec.structs.replace(info, size=file.size())
            else:
                info = msgspec.structs.replace(info, end=end, last_frame=self._frame - 1, last_crc=crc)
        finally:
            file.close()
        self.segments.append(info)
        self._number += 1


def _mark(first: int, last: int | None) -> _Frame:
    """A mark that takes the last of the lost sequences' own number, which no job can have any more."""
    sequence = first + SKIP if last is None else last
    return _Frame(sequence, 1, record.encode_mark(sequence, msgspec.json.encode(LossMark((first, last)))))
