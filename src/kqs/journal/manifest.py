"""The manifest: which segments make up the journal (ADR 0001)."""

from __future__ import annotations

from zlib import crc32

import msgspec
from msgspec import Struct

from ..core.record import FORMAT
from ..errors import DamagedJournal, NewerFormat
from ..ports import Disk, DiskFile


class SegmentInfo(Struct, omit_defaults=True, frozen=True):
    """One segment.

    Attributes:
        end, last_frame, last_crc: set when it is sealed: where its last frame ends, which one that is.
        size: of the file, set while it is open: its space was reserved, so it is never shorter.
    """

    number: int
    first_frame: int
    first_sequence: int
    end: int = 0
    last_frame: int = 0
    last_crc: int = 0
    size: int = 0

    @property
    def file(self) -> str:
        return f"{self.number:010d}.seg"


class Manifest(Struct, frozen=True):
    """All of the manifest.

    Attributes:
        format: of the journal, 1 or 2.
        journal: 16 hex digits, this journal's own id.
        epoch: how often a server started on it.
        segments: in order; the last is open, the others are sealed.
    """

    format: int
    journal: str
    epoch: int
    segments: tuple[SegmentInfo, ...]


class _FormatOnly(Struct):
    format: int


def encode(manifest: Manifest) -> bytes:
    line = msgspec.json.encode(manifest)
    return b"%b\n%08x\n" % (line, crc32(line))


def decode(text: bytes) -> Manifest:
    """Read a manifest's text.

    Raises:
        DamagedJournal: it is not what was written.
        NewerFormat: it is of a later version.
    """
    line, _, check = text.partition(b"\n")
    if check.strip() != b"%08x" % crc32(line):
        raise DamagedJournal("manifest", 0, None, "its checksum is wrong")
    try:
        version = msgspec.json.decode(line, type=_FormatOnly).format
        if version > FORMAT:
            raise NewerFormat(
                f"the journal has format {version}, this KQS reads up to {FORMAT}; nothing was changed. "
                f"Start the KQS version that wrote it"
            )
        manifest = msgspec.json.decode(line, type=Manifest)
    except msgspec.MsgspecError as error:
        raise DamagedJournal("manifest", 0, None, str(error)) from None
    if not manifest.segments:
        raise DamagedJournal("manifest", 0, None, "it lists no segment")
    return manifest


def load(disk: Disk, directory: str) -> Manifest | None:
    """The manifest of a data directory, or None when there is none yet."""
    if "manifest" not in disk.listdir(directory):
        return None
    file = disk.open(f"{directory}/manifest")
    try:
        return decode(file.pread(file.size(), 0))
    finally:
        file.close()


def store(disk: Disk, directory: str, manifest: Manifest) -> None:
    """Swap the manifest in durably: new file, sync, rename, directory sync.

    Ensures: after a crash at any point the old or the new one is there, whole.
    """
    path = f"{directory}/manifest"
    if "manifest.new" in disk.listdir(directory):
        disk.unlink(f"{path}.new")
    file = disk.open(f"{path}.new", create=True)
    try:
        write_all(file, encode(manifest), 0)
        file.datasync()
    finally:
        file.close()
    disk.rename(f"{path}.new", path)
    disk.sync_dir(directory)


def write_all(file: DiskFile, data: bytes | bytearray, offset: int) -> None:
    """Write all of it: short writes are looped.

    Raises:
        OSError: a write failed or made no progress.
    """
    view = memoryview(data)
    while view:
        written = file.pwrite(view, offset)
        if written <= 0:
            raise OSError(5, "write made no progress")
        view = view[written:]
        offset += written
