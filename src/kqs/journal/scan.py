"""Reading segments: every frame verified, the first damage refused by name (ADR 0001, rules 2 and 5)."""

from __future__ import annotations

from collections.abc import Callable

from ..core import record
from ..core.record import Damaged, Frame, Newer
from ..errors import DamagedJournal, DataDirError, NewerFormat
from ..ports import Disk
from . import manifest as manifests
from .manifest import Manifest, SegmentInfo

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


def read_file(disk: Disk, path: str) -> bytes:
    """All of a file.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    file = disk.open(path)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()


class Scan:
    """One segment's frames, verified one after the other."""

    def __init__(self, disk: Disk, folder: str, manifest: Manifest, info: SegmentInfo) -> None:
        self.info = info
        try:
            self.data = read_file(disk, f"{folder}/{info.file}")
        except FileNotFoundError:
            raise DamagedJournal(info.file, 0, info.first_sequence, "the segment is missing") from None
        try:
            self.header, self.crc = record.decode_segment_header(self.data)
        except Damaged as damage:
            raise self._damaged(damage.offset, damage.what, info.first_sequence) from None
        except Newer as newer:
            raise newer_format(newer) from None
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
                raise newer_format(newer) from None
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
                raise newer_format(newer) from None
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


def newer_format(newer: Newer) -> NewerFormat:
    """The refusal of what a later version wrote."""
    return NewerFormat(
        f"the journal was written by a newer KQS ({newer}); nothing was changed. Start that version"
    )


def scan_all(disk: Disk, folder: str, manifest: Manifest, apply: Apply) -> tuple[Scan, int]:
    """Call ``apply`` for every frame of every segment; returns the open one's scan, and how many entries.

    Raises:
        DamagedJournal: the first damage, but for what stands behind the last valid frame.
        NewerFormat: written by a later version.
    """
    entries = 0
    following = manifest.segments[0].first_sequence
    for info in manifest.segments:
        scan = Scan(disk, folder, manifest, info)
        entries += scan.run(apply, following)
        following = scan.next_sequence
        if info is not manifest.segments[-1]:
            scan.check_sealed()
    return scan, entries


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
    scan, _entries = scan_all(disk, f"{directory}/journal", manifest, apply)
    try:
        scan.torn_tail()
    except DamagedJournal:
        # Beside a running server that may have been read while it was written: is it there now?
        again = Scan(disk, f"{directory}/journal", manifest, scan.info)
        again.run(lambda *_entry: None, scan.info.first_sequence)
        if again.end == scan.end:
            raise
