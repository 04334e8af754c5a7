"""Opening a data directory: lock, manifest, every frame verified, torn tail cut (ADR 0001, rules 2, 3, 5)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass

from ..core import record
from ..core.record import SegmentHeader
from ..errors import DamagedJournal, DataDirError, DataDirInUse
from ..ports import Disk, DiskFile
from . import manifest as manifests
from .disk import make_directory
from .manifest import Manifest, SegmentInfo, segment_number, write_all
from .scan import Apply, Scan, scan_all
from .space import BALLAST, is_spare, spare_names, store_manifest, take_spare

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
        raise _unwritable(directory, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 64, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise DataDirInUse(
            f"data directory {directory} is in use by another server"
            f"{f' (process {holder})' if holder else ''}; stop it, or choose another with --data"
        ) from None
    try:
        os.pwrite(fd, b"%-20d\n" % os.getpid(), 0)  # over the one before: that needs no space
    except OSError as error:
        os.close(fd)
        raise _unwritable(directory, error) from None
    return fd


def _unwritable(directory: str, error: OSError) -> DataDirError:
    return DataDirError(
        f"data directory {directory} cannot be written: {error.strerror}; choose another with --data"
    )


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
    scan, entries = scan_all(disk, folder, manifest, apply)
    info, following = scan.info, scan.next_sequence
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


def _create(
    disk: Disk, directory: str, *, random: Callable[[int], bytes], now: int, segment_size: int
) -> Recovered:
    """A new journal. A start that crashed before its manifest left one segment without frames at most."""
    folder = f"{directory}/journal"
    disk.sync_dir(directory)  # the folder's own name, before a manifest says what is in it
    names = disk.listdir(folder)
    for name in names:
        if name != f"{1:010d}.seg" and not is_spare(name) and name != BALLAST:
            raise DamagedJournal("manifest", 0, None, f"it is missing, yet journal/{name} is there")
        if name.endswith(".seg"):
            _refuse_frames(disk, folder, name)
    for name in names:
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
    last = manifest.segments[-1].number
    unlisted = []
    for name in disk.listdir(folder):
        number = segment_number(name)
        if number is None or name in listed:
            continue
        if number > last:
            _refuse_frames(disk, folder, name)
        unlisted.append(name)
    return unlisted


def _renew_open_segment(
    disk: Disk, folder: str, info: SegmentInfo, scan: Scan, torn: bytes, following: int
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
    # The space of a spare is there on a full disk, too, and the old file's is free for the next ballast soon.
    if spare := take_spare(disk, folder, f"{path}.new", size, ballast=True):
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
