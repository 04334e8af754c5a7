"""A consistent copy of a journal, also beside the server that writes it (ADR 0008).

Nothing is asked of the server. Sealed segments never change, so they are copied as they are, the oldest
first: that is the order in which compaction gives them up, and one that is gone before its turn is not needed
by a later manifest. Of the open segment the part up to its last valid frame is copied. A frame is in the
listed segments before its calls are answered; so everything that was answered before the copy began is in it.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from ..core import record
from ..errors import DamagedJournal, DataDirError
from ..ports import Disk
from . import manifest as manifests
from .copying import write_file
from .manifest import Manifest, SegmentInfo
from .repair import EPOCH_SKIP, SKIP
from .scan import Scan

#: How often the open segment is read again before what looks like damage in it is believed: each time the
#: server may have been writing there.
_PATIENCE: Final = 10


class Copied(Struct, frozen=True):
    """What a copy holds.

    Attributes:
        journal: its id.
        segments, bytes: of the journal.
        last_sequence: of the newest entry.
    """

    journal: str
    segments: int
    bytes: int
    last_sequence: int


def copy_journal(source: Disk, directory: str, target: Disk, into: str) -> Copied:
    """Copy the journal of a data directory, verified frame by frame, and durable.

    In the copy sequences and epochs jump ahead: a server that starts on it gives no id and no receipt that
    the original gives after the copy was made.

    Args:
        source, directory: where it is; nothing there is changed.
        target, into: an empty directory, which becomes a data directory.

    Raises:
        DataDirError: there is no journal; DamagedJournal, NewerFormat: it cannot be copied.
    """
    folder = f"{into}/journal"
    target.makedirs(folder)
    copied: set[SegmentInfo] = set()
    while True:
        manifest = _manifest(source, directory)
        try:
            for info in manifest.segments[:-1]:
                if info not in copied:
                    _copy_sealed(source, directory, target, folder, manifest, info)
                    copied.add(info)
            scan = _read_open(source, directory, manifest)
            break
        except DamagedJournal:
            if _manifest(source, directory) == manifest:
                raise
            # A segment was given up or sealed meanwhile: on with what the manifest lists now.
    for info in copied - set(manifest.segments):
        target.unlink(f"{folder}/{info.file}")
    data = _with_jump(scan)
    write_file(target, f"{folder}/{scan.info.file}", data)
    target.sync_dir(folder)
    target.sync_dir(into)  # the folder's own name, before a manifest says what is in it
    opened = msgspec.structs.replace(scan.info, size=len(data))
    segments = (*manifest.segments[:-1], opened)
    manifests.store(
        target, into, Manifest(manifest.format, manifest.journal, manifest.epoch + EPOCH_SKIP, segments)
    )
    size = sum(info.end for info in manifest.segments[:-1]) + scan.end
    return Copied(manifest.journal, len(segments), size, scan.next_sequence - 1)


def _manifest(disk: Disk, directory: str) -> Manifest:
    try:
        manifest = manifests.load(disk, directory)
    except FileNotFoundError:
        manifest = None
    if manifest is None:
        raise DataDirError(f"{directory} holds no journal; give the data directory with --data")
    return manifest


def _copy_sealed(
    source: Disk, directory: str, target: Disk, folder: str, manifest: Manifest, info: SegmentInfo
) -> None:
    scan = Scan(source, f"{directory}/journal", manifest, info)
    scan.run(lambda *_frame: None, info.first_sequence)
    scan.check_sealed()
    write_file(target, f"{folder}/{info.file}", scan.data[: scan.end])


def _read_open(disk: Disk, directory: str, manifest: Manifest) -> Scan:
    """The open segment up to its last valid frame."""
    for attempt in range(_PATIENCE):
        scan = Scan(disk, f"{directory}/journal", manifest, manifest.segments[-1])
        scan.run(lambda *_frame: None, scan.info.first_sequence)
        try:
            scan.torn_tail()
        except DamagedJournal:
            if attempt == _PATIENCE - 1:
                raise
        else:
            break
    return scan


def _with_jump(scan: Scan) -> bytes:
    """The open segment with a frame without entries, which holds a jump of the sequence."""
    jump, _crc = record.encode_frame(
        (),
        salt=scan.header.salt,
        frame=scan.frame + 1,
        first_sequence=scan.next_sequence + SKIP,
        durable=scan.frame,
        count=0,
        previous=scan.crc,
    )
    return scan.data[: scan.end] + jump
