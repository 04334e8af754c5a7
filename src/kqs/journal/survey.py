"""All damage of a journal, and everything that is left of it (ADR 0008). Changes nothing.

Where scan.py stops at the first damage, as a start must, this goes on behind it: what ``kqs journal check``
reports and ``kqs journal repair`` works from.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from ..core import record
from ..core.record import Damaged, Frame, Newer
from ..core.salvage import Run, salvage
from ..ports import Disk
from .listing import Listing, list_segments
from .manifest import SegmentInfo
from .scan import newer_format, read_file

#: Bytes given up where a file cannot be read.
_BLOCK = 4096


class Damage(Struct, frozen=True):
    """One place where the journal is not what was written.

    Attributes:
        segment: file name of the segment, or "manifest".
        offset: byte offset in it.
        sequence: the first sequence that may be affected, or None when that is not known.
        lost: first and last sequence that cannot be read any more, or None when all can; no last one: it is
            not known how many there were. Not every number between needs to have been used.
        what: what is wrong.
    """

    segment: str
    offset: int
    sequence: int | None
    lost: tuple[int, int | None] | None
    what: str


class Torn(Struct, frozen=True):
    """The unfinished end of the open segment: no damage; the next start cuts it."""

    segment: str
    offset: int
    size: int


class Part(Struct):
    """What is left of one segment.

    Attributes:
        info: what the manifest says of it, or, without one, its own header.
        data: its bytes.
        runs: its readable entries, in order; of sound frames one run each.
        damage: everything wrong with it.
        end, frame, crc: of its last readable frame.
        following: the sequence after its last one.
        torn: its unfinished end.
    """

    info: SegmentInfo
    data: bytes
    runs: list[Run]
    damage: list[Damage]
    end: int
    frame: int
    crc: int
    following: int
    torn: Torn | None = None


class Survey(Struct):
    """What is there of a journal.

    Attributes:
        journal: its id.
        epoch: of the manifest, or the latest that any entry shows.
        segments: of the journal.
        entries, bytes: that are readable, and what they take.
        next_sequence: the one after the last that is readable.
        damage: all of it.
        torn: the unfinished end, if there is one.
    """

    journal: str
    epoch: int
    segments: int
    entries: int
    bytes: int
    next_sequence: int
    damage: list[Damage]
    torn: Torn | None

    @property
    def lost(self) -> list[tuple[int, int | None]]:
        """First and last of all sequences that are lost."""
        return [damage.lost for damage in self.damage if damage.lost is not None]


def survey(disk: Disk, directory: str) -> Survey:
    """Read the whole journal and tell all that is wrong with it; also beside a running server.

    Raises:
        DataDirError: there is no journal, or nothing that tells which one it was.
        NewerFormat: written by a later version.
    """
    listing = list_segments(disk, directory)
    found = Survey(
        listing.journal, listing.epoch, len(listing.segments), 0, 0, listing.first_sequence, [], None
    )
    for part in parts(disk, directory, listing):
        found.entries += sum(run.entries for run in part.runs)
        found.bytes += sum(run.end - run.start for run in part.runs)
        found.next_sequence = part.following
        found.damage += part.damage
        found.torn = part.torn
        if not listing.manifest:
            found.epoch = max(found.epoch, _latest_epoch(part))
    for name, what in listing.damage:
        # Without a manifest nobody knows what more there was.
        lost = None if listing.manifest else (found.next_sequence, None)
        found.damage.append(Damage(name, 0, found.next_sequence if lost else None, lost, what))
    return found


def parts(disk: Disk, directory: str, listing: Listing) -> Iterator[Part]:
    """What is left of each segment, in order."""
    folder = f"{directory}/journal"
    following = listing.first_sequence
    for position, info in enumerate(listing.segments):
        later = listing.segments[position + 1 :]
        part = _Reader(disk, folder, listing, info, later, following).read()
        while part.damage:
            again = _Reader(disk, folder, listing, info, later, following).read()
            if again.following <= part.following:
                break
            part = again  # beside a running server it may have been read while it was written
        if part.damage and info.number < list_segments(disk, directory).segments[0].number:
            continue  # given up meanwhile
        following = part.following
        yield part


def _latest_epoch(part: Part) -> int:
    """The latest epoch in any receipt of these entries: the upper bits of its nonce."""
    latest = 0
    for run in part.runs:
        for entry in record.entries_between(part.data, run.start, run.end):
            if entry[0] in record.EVENTS:
                latest = max(latest, record.decode_event(entry).nonce >> 40)
            elif entry[0] == record.CARRY:
                latest = max(latest, record.decode_carry(entry).nonce >> 40)
    return latest


def _is_open(damage: Damage) -> bool:
    """Whether it is not known how many sequences were lost."""
    return damage.lost is not None and damage.lost[1] is None


class _Reader:
    """Reads one segment, over all damage."""

    def __init__(
        self,
        disk: Disk,
        folder: str,
        listing: Listing,
        info: SegmentInfo,
        later: tuple[SegmentInfo, ...],
        following: int,
    ) -> None:
        self._disk = disk
        self._path = f"{folder}/{info.file}"
        self._journal = listing.journal
        self._info = info
        self._next = later[0] if later else None
        #: The last frame that must be in this segment, when only the next one tells.
        self._last_frame = later[0].first_frame - 1 if later and later[0].first_frame else None
        first = next((info.first_sequence for info in later if info.first_sequence), 0)
        #: The last sequence that can be in this segment, or None.
        self._last = first - 1 if first else None
        following = max(following, info.first_sequence)
        self._part = Part(info, b"", [], [], record.SEGMENT_HEADER, info.first_frame - 1, 0, following)

    def read(self) -> Part:
        part, info = self._part, self._info
        try:
            part.data = self._read()
        except FileNotFoundError:
            self._lose(0, "the segment is missing", self._last)
            return part
        try:
            header, part.crc = record.decode_segment_header(part.data)
        except Damaged as damage:
            self._without_header(damage.what)
            return part
        except Newer as newer:
            raise newer_format(newer) from None
        expected = (info.number, bytes.fromhex(self._journal), info.first_frame)
        if (header.number, header.journal, header.first_frame) != expected:
            what = f"the segment belongs elsewhere: it is number {header.number} of {header.journal.hex()}"
            self._lose(0, what, self._last)
            return part
        self._frames(header.salt)
        return part

    def _read(self) -> bytes:
        """The file; what cannot be read of it is zeros, and damage."""
        try:
            return read_file(self._disk, self._path)
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = error.strerror
        file = self._disk.open(self._path)
        data = bytearray()
        try:
            size = file.size()
            for offset in range(0, size, _BLOCK):
                wanted = min(_BLOCK, size - offset)
                try:
                    data += file.pread(wanted, offset)
                except OSError:
                    data += bytes(wanted)
                    self._note(offset, f"it cannot be read: {reason}")
        finally:
            file.close()
        return bytes(data)

    # -- finding --------------------------------------------------------------------------------

    def _frames(self, salt: int) -> None:
        """All frames that verify, and what is between them."""
        part, info = self._part, self._info
        stop = min(info.end or len(part.data), len(part.data))
        cut_off = len(part.data) < max(info.end, info.size)
        while part.end < stop:
            what = self._take(salt)
            if what is None:
                continue
            at = record.find_later_frame(part.data, part.end, salt, part.frame)
            if at is not None and at < stop:
                frame, previous = record.decode_frame(part.data, at, salt)
                self._stretch(at, what, frame.first_sequence - 1)
                part.end, part.frame, part.crc = at, frame.frame - 1, previous
                part.following = max(part.following, frame.first_sequence)
                continue
            if not info.end:
                self._tail(what, cut_off)
            else:
                self._stretch(stop, what, self._last, end_is_known=not cut_off)
                part.end, part.frame, part.crc = info.end, info.last_frame, info.last_crc
            break
        self._end(cut_off)

    def _take(self, salt: int) -> str | None:
        """Take the frame that is next; if that cannot be, says why."""
        part = self._part
        try:
            frame, previous = record.decode_frame(part.data, part.end, salt)
        except Damaged as damage:
            return damage.what
        except Newer as newer:
            raise newer_format(newer) from None
        if (frame.frame, previous) != (part.frame + 1, part.crc):
            return f"frame {frame.frame} does not follow frame {part.frame}"
        if frame.first_sequence < part.following:
            self._note(part.end, f"sequence {frame.first_sequence} comes twice")
            part.end, part.frame, part.crc = frame.end, frame.frame, frame.crc
            return None
        part.following = frame.first_sequence
        what = self._entries(frame)
        if what is not None:
            self._stretch(frame.end, what, frame.first_sequence + frame.entries - 1)
        elif frame.entries:
            part.runs.append(Run(frame.first_sequence, frame.entries, frame.start, frame.end))
        part.following = frame.first_sequence + frame.entries
        part.end, part.frame, part.crc = frame.end, frame.frame, frame.crc
        return None

    def _entries(self, frame: Frame) -> str | None:
        """Verify the entries of a frame, each by itself; says what is wrong."""
        view = memoryview(self._part.data)
        try:
            for kind, start, end in record.entry_bounds(view, frame):
                record.check_entry(view[start:end])
                if kind not in record.KINDS:
                    raise newer_format(Newer(f"entry kind {kind}"))
        except Damaged as damage:
            return damage.what
        return None

    def _tail(self, what: str, cut_off: bool) -> None:
        """What stands behind the last readable frame of a segment whose end no manifest tells."""
        part = self._part
        size = len(part.data[part.end :].rstrip(b"\0"))
        if not size:
            return
        if self._next is None and not cut_off:
            part.torn = Torn(self._info.file, part.end, size)
        else:
            self._stretch(part.end + size, what, self._last, end_is_known=False)
            part.frame = part.frame if self._last_frame is None else self._last_frame

    def _end(self, cut_off: bool) -> None:
        """Does it end where it must?"""
        part, info = self._part, self._info
        if info.end and (part.end, part.frame) != (info.end, info.last_frame):
            self._lose(part.end, f"frame {part.frame + 1} of {info.last_frame} is not there", self._last)
        elif info.end and part.crc != info.last_crc:
            self._note(part.end, f"frame {part.frame} is not the one that the manifest knows")
        elif not info.end and self._last_frame not in (None, part.frame):
            self._lose(part.end, f"frame {part.frame + 1} of {self._last_frame} is not there", self._last)
        elif cut_off and not info.end and not (part.damage and _is_open(part.damage[-1])):
            what = f"the file was cut off: {info.size} bytes were reserved for it"
            self._lose(len(part.data), what, self._last)

    def _without_header(self, what: str) -> None:
        """Without the header's salt no frame verifies; its entries do."""
        part, info = self._part, self._info
        end = min(info.end or len(part.data.rstrip(b"\0")), len(part.data))
        self._stretch(end, what, self._last, end_is_known=end == info.end)

    # -- telling --------------------------------------------------------------------------------

    def _stretch(self, to: int, what: str, last: int | None, *, end_is_known: bool = True) -> None:
        """A stretch from the last readable frame's end: take its entries, and tell which are lost."""
        part, at = self._part, self._part.end
        if last is not None and last < part.following:
            self._note(at, what)  # it held no entries
            return
        runs = salvage(part.data, at, to, part.following, last, end_is_known=end_is_known)
        found = len(part.damage)
        for run in runs:
            self._lose(at, what, run.first - 1)
            part.runs.append(run)
            at, part.following = run.end, run.first + run.entries
        self._lose(at, what, last)
        if len(part.damage) == found:
            self._note(part.end, what)

    def _lose(self, offset: int, what: str, last: int | None) -> None:
        """The sequences from the next one to this one are lost here, if there are any."""
        part, first = self._part, self._part.following
        if last is not None and last < first:
            return
        part.damage.append(Damage(self._info.file, offset, first, (first, last), what))
        part.following = first if last is None else last + 1

    def _note(self, offset: int, what: str) -> None:
        """Damage that no entry is lost by."""
        self._part.damage.append(Damage(self._info.file, offset, self._part.following, None, what))
