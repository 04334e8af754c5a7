"""Opening a data directory: lock, manifest, every frame verified, torn tail cut (ADR 0001, rules 2, 3, 5)."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..core import record
from ..core.record import Damaged, Frame, Newer, SegmentHeader
from ..errors import DamagedJournal, DataDirError, DataDirInUse, NewerFormat
from ..ports import Disk, DiskFile
from . import manifest as manifests
from .disk import make_directory
from .manifest import Manifest, SegmentInfo, write_all
from .space import BALLAST, is_spare, spare_names, store_manifest, take_spare

#: Takes a verified frame: the segment's bytes, the frame, the segment's number. Raises Damaged or Newer when
#: the frame's entries are not what they must be.
Apply = Callable[[bytes, Frame, int], None]
#: Takes an entry: its kind, its bytes, the segment's number, its offset in the segment.
ApplyEntry = Callable[[int, bytes, int, int], None]


def each_entry(apply: ApplyEntry) -> Apply:
    """An :data:`Apply` that takes a frame apart: each entry verified by its own CRC."""

    def frame(data: bytes, frame: Frame, segment: int) -> None:
        for kind, start, end in record.entry_bounds(data, frame):
            entry = data[start:end]
            try:
                record.check_entry(entry)
                apply(kind, entry, segment, start)
            except Damaged as damage:
                raise Damaged(start + damage.offset, damage.what) from None

    return frame


_SEGMENT_FILE = re.compile(r"(\d{10})\.seg")
#: How far sequences jump after a torn tail was cut, so that no id of the cut frame is given again.
TORN_SKIP = 1_000_000


@dataclass
class Recovered:
    """The state an existing or new journal is continued from."""

    manifest: Manifest
    file: DiskFile
    header: SegmentHeader
    end: int
    frame: int
    crc: int
    next_sequence: int
    torn: str | None
    entries: int
    spares: int


def lock_directory(directory: str) -> int:
    """Take the data directory's lock; returns the descriptor that holds it.

    Raises:
        DataDirInUse: another server has it.
        DataDirError: the directory can't be made or written.
    """
    try:
        make_directory(directory)
        fd = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataDirError(
            f"data directory {directory} cannot be written: {error.strerror}; choose another with --data"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 64, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise DataDirInUse(
            f"data directory {directory} is in use by another server"
            f"{f' (process {holder})' if holder else ''}; stop it, or choose another with --data"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def recover(
    disk: Disk, directory: str, apply: Apply, *, random: Callable[[int], bytes], now: int, segment_size: int
) -> Recovered:
    """Read the whole journal, calling ``apply`` for every frame in order, and get it ready for appending.

    Args:
        disk: the file system.
        directory: DATA, locked by the caller.
        apply: takes each verified frame.
        random: gives n random bytes (journal id, salts).
        now: microseconds since 1970.
        segment_size: bytes a new segment is made with.

    Raises:
        DamagedJournal: the first damage, named; nothing was changed.
        NewerFormat: written by a later version; nothing was changed.
    """
    folder = f"{directory}/journal"
    disk.makedirs(folder)
    manifest = manifests.load(disk, directory)
    if manifest is None:
        return _create(disk, directory, random=random, now=now, segment_size=segment_size)
    entries = 0
    following = manifest.segments[0].first_sequence
    for info in manifest.segments:
        is_open = info is manifest.segments[-1]
        scan = _Scan(disk, folder, manifest, info)
        entries += scan.run(apply, following)
        following = scan.next_sequence
        if not is_open:
            scan.check_sealed()
    torn = scan.torn_tail()
    unlisted = _unlisted(disk, folder, manifest)
    if torn:
        following += TORN_SKIP
    file, torn_file = _renew_open_segment(disk, folder, info, scan, torn, following)
    opened = SegmentInfo(info.number, info.first_frame, info.first_sequence, size=file.size())
    segments = (*manifest.segments[:-1], opened)
    manifest = Manifest(record.FORMAT, manifest.journal, manifest.epoch + 1, segments)
    store_manifest(disk, directory, manifest)
    # Only now: the manifest that was read may not have been durable, and the one before it may list them.
    for name in unlisted:
        disk.unlink(f"{folder}/{name}")
    return Recovered(
        manifest,
        file,
        scan.header,
        scan.end,
        scan.frame,
        scan.crc,
        following,
        torn_file,
        entries,
        len(spare_names(disk, folder)),
    )


def read_only(disk: Disk, directory: str, apply: Apply) -> None:
    """Call ``apply`` for every frame, changing nothing.

    Raises:
        DataDirError: there is no journal; DamagedJournal, NewerFormat: as :func:`recover`.
    """
    try:
        manifest = manifests.load(disk, directory)
    except FileNotFoundError:
        manifest = None
    if manifest is None:
        raise DataDirError(f"{directory} holds no journal; give the data directory with --data")
    following = manifest.segments[0].first_sequence
    for info in manifest.segments:
        scan = _Scan(disk, f"{directory}/journal", manifest, info)
        scan.run(apply, following)
        following = scan.next_sequence
        if info is not manifest.segments[-1]:
            scan.check_sealed()
    try:
        scan.torn_tail()
    except DamagedJournal:
        # Beside a running server that may have been read while it was written: is it there now?
        again = _Scan(disk, f"{directory}/journal", manifest, info)
        again.run(lambda *_entry: None, info.first_sequence)
        if again.end == scan.end:
            raise


class _Scan:
    """One segment's frames, verified one after the other."""

    def __init__(self, disk: Disk, folder: str, manifest: Manifest, info: SegmentInfo) -> None:
        self.info = info
        try:
            file = disk.open(f"{folder}/{info.file}")
        except FileNotFoundError:
            raise DamagedJournal(info.file, 0, info.first_sequence, "the segment is missing") from None
        try:
            self.data = file.pread(file.size(), 0)
        finally:
            file.close()
        try:
            self.header, self.crc = record.decode_segment_header(self.data)
        except Damaged as damage:
            raise self._damaged(damage.offset, damage.what, info.first_sequence) from None
        except Newer as newer:
            raise _newer(newer) from None
        header = self.header
        expected = (info.number, bytes.fromhex(manifest.journal), info.first_frame)
        if (header.number, header.journal, header.first_frame) != expected:
            raise self._damaged(0, "the segment belongs elsewhere", info.first_sequence)
        self.end = record.SEGMENT_HEADER
        self.frame = info.first_frame - 1
        self.next_sequence = info.first_sequence

    def _damaged(self, offset: int, what: str, sequence: int | None = None) -> DamagedJournal:
        return DamagedJournal(
            self.info.file, offset, self.next_sequence if sequence is None else sequence, what
        )

    def run(self, apply: Apply, next_sequence: int) -> int:
        """Apply all valid frames from the start; stop at the first that is not. Returns the entries."""
        self.next_sequence = max(next_sequence, self.info.first_sequence)
        limit = self.info.end or len(self.data)
        entries = 0
        while self.end < limit:
            try:
                frame, previous = record.decode_frame(self.data, self.end, self.header.salt)
            except Damaged:
                break
            except Newer as newer:
                raise _newer(newer) from None
            if frame.frame != self.frame + 1 or previous != self.crc:
                raise self._damaged(self.end, f"frame {frame.frame} does not follow frame {self.frame}")
            if frame.first_sequence < self.next_sequence:
                raise self._damaged(self.end, f"sequence {frame.first_sequence} comes twice")
            self.next_sequence = frame.first_sequence
            try:
                apply(self.data, frame, self.info.number)
            except Damaged as damage:
                sequence = self._sequence_at(frame, damage.offset)
                raise self._damaged(damage.offset, damage.what, sequence) from None
            except Newer as newer:
                raise _newer(newer) from None
            entries += frame.entries
            self.next_sequence += frame.entries
            self.end, self.frame, self.crc = frame.end, frame.frame, frame.crc
        if len(self.data) < self.info.size:
            raise self._damaged(
                self.end, f"the file was cut off: {self.info.size} bytes were reserved for it"
            )
        return entries

    def _sequence_at(self, frame: Frame, offset: int) -> int:
        """The sequence of the entry at an offset of a valid frame, as far as its entries' lengths tell."""
        sequence = frame.first_sequence
        try:
            for _kind, start, end in record.entry_bounds(self.data, frame):
                if start <= offset < end:
                    break
                sequence += 1
        except Damaged:
            pass
        return sequence

    def check_sealed(self) -> None:
        """A sealed segment must end exactly where the manifest says it does."""
        info = self.info
        if (self.end, self.frame, self.crc) != (info.end, info.last_frame, info.last_crc):
            raise self._damaged(self.end, f"frame {self.frame + 1} of {info.last_frame} is not readable")

    def torn_tail(self) -> bytes:
        """What stands behind the last valid frame of the open segment: ``b""`` or one torn frame.

        Raises:
            DamagedJournal: a valid frame follows, so this is not a torn tail.
        """
        rest = self.data[self.end :].rstrip(b"\0")
        if not rest:
            return b""
        later = record.find_later_frame(self.data, self.end, self.header.salt, self.frame)
        if later is not None:
            raise self._damaged(
                self.end, f"frame {self.frame + 1} is not readable, yet a valid one follows at byte {later}"
            )
        return rest


def _newer(newer: Newer) -> NewerFormat:
    return NewerFormat(
        f"the journal was written by a newer KQS ({newer}); nothing was changed. Start that version"
    )


def _create(
    disk: Disk, directory: str, *, random: Callable[[int], bytes], now: int, segment_size: int
) -> Recovered:
    """A new journal. A start that crashed before its manifest left one segment without frames at most."""
    folder = f"{directory}/journal"
    disk.sync_dir(directory)  # the folder's own name, before a manifest says what is in it
    for name in disk.listdir(folder):
        if name != f"{1:010d}.seg" and not is_spare(name) and name != BALLAST:
            raise DamagedJournal("manifest", 0, None, f"it is missing, yet journal/{name} is there")
        if name.endswith(".seg"):
            _refuse_frames(disk, folder, name)
        disk.unlink(f"{folder}/{name}")
    header = SegmentHeader(1, random(8), int.from_bytes(random(8), "little"), 1, 1, now)
    file, crc = make_segment(disk, folder, header, segment_size)
    info = SegmentInfo(1, 1, 1, size=file.size())
    manifest = Manifest(record.FORMAT, header.journal.hex(), 1, (info,))
    manifests.store(disk, directory, manifest)
    return Recovered(manifest, file, header, record.SEGMENT_HEADER, 0, crc, 1, None, 0, 0)


def make_segment(disk: Disk, folder: str, header: SegmentHeader, size: int) -> tuple[DiskFile, int]:
    """A new durable segment file with its header and space; returns it and the start of its chain.

    A spare file, if there is one that is large enough, becomes the segment: its space is reserved already.
    """
    path = f"{folder}/{header.number:010d}.seg"
    file = disk.open(path, create=not take_spare(disk, folder, path, size))
    try:
        if file.size() < size:
            file.allocate(size)
        data = record.encode_segment_header(header)
        write_all(file, data, 0)
        file.datasync()
        disk.sync_dir(folder)
    except BaseException:
        file.close()
        raise
    return file, record.decode_segment_header(data)[1]


def _refuse_frames(disk: Disk, folder: str, name: str) -> None:
    """A segment no manifest lists may go only if it holds no frame."""
    file = disk.open(f"{folder}/{name}")
    try:
        head = file.pread(record.SEGMENT_HEADER + record.FRAME_HEADER, 0)
    finally:
        file.close()
    if head[record.SEGMENT_HEADER :].strip(b"\0"):
        raise DamagedJournal(
            name, record.SEGMENT_HEADER, None, "the manifest does not list it, yet it has frames"
        )


def _unlisted(disk: Disk, folder: str, manifest: Manifest) -> list[str]:
    """What a crash left: segments dropped but not unlinked, or made but not yet listed.

    Raises:
        DamagedJournal: one that was never dropped holds frames.
    """
    listed = {info.file for info in manifest.segments}
    first = manifest.segments[0].number
    unlisted = []
    for name in disk.listdir(folder):
        match = _SEGMENT_FILE.fullmatch(name)
        if match is None or name in listed:
            continue
        if int(match[1]) >= first:
            _refuse_frames(disk, folder, name)
        unlisted.append(name)
    return unlisted


def _renew_open_segment(
    disk: Disk, folder: str, info: SegmentInfo, scan: _Scan, torn: bytes, following: int
) -> tuple[DiskFile, str | None]:
    """Rewrite the open segment's valid part into a new file, durable and read back (rule 3).

    Ensures: the file the server appends to holds no byte whose durability was left to an earlier process;
    when a torn tail is cut, the jump of the sequence to ``following`` is as durable as the cut.
    """
    torn_file = None
    if torn:
        torn_file = f"{info.file.removesuffix('.seg')}.torn-{scan.end}"  # where it was cut
        if torn_file in disk.listdir(folder):
            disk.unlink(f"{folder}/{torn_file}")
        keep = disk.open(f"{folder}/{torn_file}", create=True)
        write_all(keep, torn, 0)
        keep.datasync()
        keep.close()
        disk.sync_dir(folder)
    valid = scan.data[: scan.end]
    if torn:
        scan.frame += 1
        jump, scan.crc = record.encode_frame(
            (),
            salt=scan.header.salt,
            frame=scan.frame,
            first_sequence=following,
            durable=scan.frame - 1,
            count=0,
            previous=scan.crc,
        )
        valid += jump
        scan.end = len(valid)
    path = f"{folder}/{info.file}"
    if f"{info.file}.new" in disk.listdir(folder):
        disk.unlink(f"{path}.new")
    size = max(len(scan.data), len(valid))
    if spare := take_spare(disk, folder, f"{path}.new", size):  # its space is there, also on a full disk
        # A spare is blank: no crash may give this one its old name back when frames are in it.
        disk.sync_dir(folder)
    file = disk.open(f"{path}.new", create=not spare)
    file.allocate(max(size, file.size()))
    write_all(file, valid, 0)
    file.datasync()
    if file.pread(len(valid), 0) != valid:
        raise DamagedJournal(
            info.file, 0, info.first_sequence, "the disk does not give back what was written"
        )
    disk.rename(f"{path}.new", path)
    disk.sync_dir(folder)
    return file, torn_file
