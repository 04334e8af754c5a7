"""The append-only log: group commit, rotation, reading one entry back.

The loop's side collects what callers append; one commit at a time is on its way to the disk in the executor's
thread. While it is, further appends gather and make up the next frame: that is the whole of group commit, and
it needs no timer.

Ensures (with recovery.py): a future handed out by :meth:`Journal.append` is resolved only after the
``fdatasync`` that covers its frame returned (G1); a failed one stops everything (G5).
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..core import record
from ..core.record import Damaged, SegmentHeader
from ..errors import Busy, DamagedJournal, JournalFailed
from ..ports import FULL, LACKING, Disk, DiskFile, Executor
from .manifest import Manifest, SegmentInfo, write_all
from .recovery import Recovered, make_segment, recover
from .scan import Apply
from .space import BALLAST, SPARE, has_space, spare_names, store_manifest

SEGMENT_SIZE = 64 * 1024 * 1024
#: Appends are put into one frame until it has this many bytes.
FRAME_TARGET = 8 * 1024 * 1024
#: How far ahead of dispatch the disk is told to read.
READ_AHEAD = 4 * 1024 * 1024
#: Bytes of ballast that are enough for a manifest; no more than the smallest segment.
_MANIFEST_SPACE = 64 * 1024
#: When this many entries were told to be durable, the rest is told in the loop's next turn.
TOLD_AT_ONCE = 1000


class Location(NamedTuple):
    """Where the first entry of an append lies; the others follow it byte on byte."""

    segment: int
    offset: int


class _Append(NamedTuple):
    parts: list[bytes]
    size: int
    sequence: int
    future: asyncio.Future[Location] | None
    then: Callable[[Location], None] | None


class Journal:
    """An open journal. Everything but the thread's part (``_t_`` methods) runs on the loop.

    Args:
        disk: file system.
        executor: the one thread that writes and syncs.
        directory: DATA, locked by the caller.
        recovered: what :func:`~kqs.journal.recovery.recover` found.
        segment_size: bytes a segment is made with.
        on_failure: called once, on the loop, when the journal can't be trusted any more.
    """

    def __init__(
        self,
        disk: Disk,
        executor: Executor,
        directory: str,
        recovered: Recovered,
        *,
        segment_size: int = SEGMENT_SIZE,
        random: Callable[[int], bytes] = os.urandom,
        on_failure: Callable[[JournalFailed], None] | None = None,
    ) -> None:
        self._disk = disk
        self._executor = executor
        self._directory = directory
        self._folder = f"{directory}/journal"
        self.segment_size = segment_size
        self._random = random
        self._on_failure = on_failure
        # The thread's own state: touched on the loop only before the first submit.
        self._manifest = recovered.manifest
        self._file = recovered.file
        self._header = recovered.header
        self._end = recovered.end
        self._frame = recovered.frame
        self._crc = recovered.crc
        self._broken = False
        # The loop's state.
        self.next_sequence = recovered.next_sequence
        self.synced_sequence = recovered.next_sequence - 1
        self.torn = recovered.torn
        self.entries_replayed = recovered.entries
        self.failed: JournalFailed | None = None
        self._spares = recovered.spares
        self._spares_wanted = 1
        self._spares_settled = asyncio.Event()
        self._spares_settled.set()
        self._needed = 0
        self.commits = 0
        self.pending_bytes = 0
        self._pending: list[_Append] = []
        self._in_flight: list[_Append] | None = None
        self._appends = 0  # so far
        self._durable_appends = 0  # of these, the first ones
        self._syncs: list[tuple[int, asyncio.Future[None]]] = []
        self._durable: deque[tuple[_Append, Location]] = deque()
        self._telling = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._readers: dict[int, DiskFile] = {}
        self._ahead: dict[int, int] = {}
        self._sealed_bytes = {info.number: info.end for info in recovered.manifest.segments[:-1]}
        self._open_number = recovered.header.number
        self._open_end = recovered.end
        self._open_size = recovered.file.size()
        self._keep_spares()

    @classmethod
    def open(
        cls,
        disk: Disk,
        executor: Executor,
        directory: str,
        apply: Apply,
        *,
        now: int,
        segment_size: int = SEGMENT_SIZE,
        random: Callable[[int], bytes] = os.urandom,
        on_failure: Callable[[JournalFailed], None] | None = None,
    ) -> Journal:
        """Recover, replaying every entry into ``apply``, and open for appending.

        Raises:
            DamagedJournal, NewerFormat: see :func:`~kqs.journal.recovery.recover`.
        """
        recovered = recover(disk, directory, apply, random=random, now=now, segment_size=segment_size)
        return cls(
            disk,
            executor,
            directory,
            recovered,
            segment_size=segment_size,
            random=random,
            on_failure=on_failure,
        )

    @property
    def journal_id(self) -> str:
        """16 hex digits that tell this journal from all others."""
        return self._manifest.journal

    @property
    def epoch(self) -> int:
        """How often a server started on this data; part of every receipt."""
        return self._manifest.epoch

    # -- space ----------------------------------------------------------------------------------

    def reserve(self, size: int, *, retry: bool = False) -> None:
        """Keep space for this many bytes free, beside what is on its way, in segments made ahead.

        Args:
            size: bytes that the ends of all live jobs will take.
            retry: try again where the disk was full.
        """
        self._needed = size
        wanted = 1 + -(-(size + self.pending_bytes) // self.segment_size)
        if wanted > self._spares_wanted or self._spares > wanted + 1 or (retry and self._spares < wanted):
            self._spares_wanted = wanted
            self._keep_spares()

    @property
    def _available(self) -> int:
        """Bytes that can be written without asking the file system for space."""
        return self._open_size - self._open_end - self.pending_bytes + self._spares * self.segment_size

    @property
    def accepting(self) -> bool:
        """Whether there is space for new jobs, the reserve aside."""
        return self._available >= self._needed + self.segment_size // 2

    @property
    def has_reserve(self) -> bool:
        """Whether there is space for more leases; what ends jobs is always taken."""
        return self._available >= self._needed + self.segment_size // 4

    def has_room_for(self, size: int) -> bool:
        """Whether there is space for new jobs of this size, the reserve aside.

        More than half a segment in one frame may fit neither behind what is in the open segment nor into one
        made ahead, whatever these have left in all. It gets a segment of its own, if the file system has the
        space.
        """
        if size <= self.segment_size // 2:
            return self._available - size >= self._needed + self.segment_size // 2
        return self._disk.free(self._folder)[0] > 2 * size + self.pending_bytes

    async def make_room(self) -> bool:
        """Return when the space that is wanted has been made ahead, or can't be; tells which."""
        self._keep_spares()
        while not self._spares_settled.is_set():
            await self._spares_settled.wait()
        return self.failed is None and self._spares >= self._spares_wanted

    def _keep_spares(self) -> None:
        if self._spares_settled.is_set() and self.failed is None:
            self._spares_settled.clear()
            wanted = self._spares_wanted
            self._submit(lambda: self._t_spares(wanted), partial(self._spares_kept, wanted))

    def _spares_kept(self, wanted: int, count: int | None, error: BaseException | None) -> None:
        self._spares_settled.set()
        if error is not None and self.failed is None:
            self._fail(error, self._in_flight or [])
        elif count is not None:
            self._spares = count
            if count == wanted < self._spares_wanted:
                self._keep_spares()  # more are wanted meanwhile

    def take_sequences(self, count: int) -> int:
        """The first of ``count`` new sequence numbers; append their entries before doing anything else."""
        first = self.next_sequence
        self.next_sequence = first + count
        return first

    def append(
        self, parts: list[bytes], first_sequence: int, then: Callable[[Location], None] | None = None
    ) -> asyncio.Future[Location]:
        """Queue entries for one frame; the future resolves when they are durable.

        Args:
            parts: encoded entries, one each, in sequence order.
            first_sequence: what :meth:`take_sequences` gave for them.
            then: called with their location before the future is resolved, in the order of the appends.

        Raises (from the future):
            JournalFailed: they may or may not be on disk.
        """
        future: asyncio.Future[Location] = asyncio.get_running_loop().create_future()
        self._queue(parts, first_sequence, future, then)
        return future

    def append_unwaited(self, parts: list[bytes], first_sequence: int) -> None:
        """Queue entries nobody waits for (leases)."""
        self._queue(parts, first_sequence, None)

    def _queue(
        self,
        parts: list[bytes],
        first_sequence: int,
        future: asyncio.Future[Location] | None,
        then: Callable[[Location], None] | None = None,
    ) -> None:
        if self.failed is not None:
            raise self.failed
        size = sum(map(len, parts))
        self._pending.append(_Append(parts, size, first_sequence, future, then))
        self.pending_bytes += size
        self._appends += 1
        if self._in_flight is None:
            self._commit()

    def _submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Give work to the thread; after a failure there it is not done (ADR 0001, rule 4)."""

        def guarded() -> Any:
            if self._broken:
                raise OSError(errno.EIO, "not tried, as an earlier operation had failed")
            try:
                return work()
            except BaseException:
                self._broken = True
                raise

        self._executor.submit(guarded, done)

    def _commit(self) -> None:
        """Send what is pending to the thread, as one frame."""
        batch, size, following = self._pending, 0, self._pending[0].sequence
        target = min(FRAME_TARGET, self.segment_size // 2)
        for number, append in enumerate(batch):
            size += append.size
            if number > 0 and (size > target or append.sequence != following):
                batch, self._pending = batch[:number], batch[number:]
                break
            following = append.sequence + len(append.parts)
        else:
            self._pending = []
        self._in_flight = batch
        self._idle.clear()
        self._submit(lambda: self._t_write(batch), self._committed)

    def _committed(self, result: tuple[Location, int, int, int] | None, error: BaseException | None) -> None:
        batch = self._in_flight
        if batch is None or self.failed is not None:
            return
        self._in_flight = None
        if error is not None or result is None:
            self._fail(error, batch)
            return
        location, end, size, last_sequence = result
        if location.segment != self._open_number:
            self._sealed_bytes[self._open_number] = self._open_end
            self._open_number = location.segment
            self._spares = max(0, self._spares - 1)
            self._keep_spares()
        self._open_end, self._open_size = end, size
        self.synced_sequence = last_sequence
        self.commits += 1
        offset = location.offset
        for append in batch:
            self.pending_bytes -= append.size
            if append.future is not None:
                self._durable.append((append, Location(location.segment, offset)))
            offset += append.size
        self._durable_appends += len(batch)
        while self._syncs and self._syncs[0][0] <= self._durable_appends:
            waiter = self._syncs.pop(0)[1]
            if not waiter.done():
                waiter.set_result(None)
        if self._pending:
            self._commit()
        if not self._telling:
            self._tell()

    def _tell(self) -> None:
        """Resolve the futures of what is durable, those of some :data:`TOLD_AT_ONCE` entries now.

        Whoever waited has work to do for every entry, so a large frame's are told over several turns of the
        loop; others get theirs between.
        """
        durable, told = self._durable, 0
        while durable and told < TOLD_AT_ONCE:
            append, location = durable.popleft()
            told += len(append.parts)
            if append.then is not None:
                append.then(location)
            if append.future is not None and not append.future.done():
                append.future.set_result(location)
        self._telling = bool(durable)
        if durable:
            asyncio.get_running_loop().call_soon(self._tell)
        elif self._in_flight is None:
            self._idle.set()

    def _fail(self, error: BaseException | None, batch: list[_Append]) -> JournalFailed:
        """Poison the journal: everybody waiting learns that the outcome is unknown (G5)."""
        self.failed = failure = JournalFailed(f"the journal failed, the server stops: {error}")
        for append in (*batch, *self._pending):
            if append.future is not None and not append.future.done():
                append.future.set_exception(self.failed)
                append.future.exception()
        self._pending = []
        for _appends, waiter in self._syncs:
            if not waiter.done():
                waiter.set_exception(self.failed)
        self._syncs = []
        self._idle.set()
        if self._on_failure is not None:
            self._on_failure(failure)
        return failure

    async def sync(self) -> None:
        """Return when everything appended so far is durable, whatever is appended meanwhile.

        Raises:
            JournalFailed: it is not.
        """
        if self.failed is not None:
            raise self.failed
        if self._durable_appends < self._appends:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._syncs.append((self._appends, waiter))
            await waiter

    async def close(self) -> None:
        """Sync, then release the thread and the files."""
        await self._idle.wait()
        self._executor.close()
        self._file.close()
        for reader in self._readers.values():
            reader.close()

    def read(self, segment: int, offset: int, size: int | None = None) -> bytes:
        """One entry, read back and verified by its own CRC.

        Args:
            segment, offset: where it lies.
            size: its bytes, or None when its header must tell.

        Raises:
            DamagedJournal: the disk gave back something else.
            Busy: the system lacks what it takes to read now; the entry is no worse for it.
            JournalFailed: the segment is gone from the disk.
        """
        name = SegmentInfo(segment, 0, 0).file
        try:
            reader = self._reader(segment)
            entry = reader.pread(512 if size is None else size, offset)
            if size is None:
                size = record.entry_size(entry)
                entry = entry[:size] if size <= len(entry) else reader.pread(size, offset)
            record.check_entry(entry)
        except FileNotFoundError as error:
            raise self.failed or self._fail(error, self._in_flight or []) from None
        except OSError as error:
            if error.errno in LACKING:
                raise Busy(f"{name} cannot be read now: {error.strerror}; try again") from None
            raise DamagedJournal(name, offset, None, f"it cannot be read: {error.strerror}") from None
        except Damaged as damage:
            raise DamagedJournal(name, offset, None, damage.what) from None
        return entry

    def read_ahead(self, segment: int, offset: int) -> None:
        """Have the disk read on from here: what is dispatched next mostly lies behind what was."""
        if offset >= self._ahead.get(segment, 0):
            self._ahead = {segment: offset + READ_AHEAD // 2}
            self._reader(segment).will_need(READ_AHEAD, offset)

    def _reader(self, segment: int) -> DiskFile:
        reader = self._readers.get(segment)
        if reader is None:
            if len(self._readers) >= 64:
                self._readers.pop(next(iter(self._readers))).close()
            name = SegmentInfo(segment, 0, 0).file
            reader = self._readers[segment] = self._disk.open(f"{self._folder}/{name}")
        return reader

    def segments_before(self, segment: int) -> list[int]:
        """The sealed segments before this one."""
        return [number for number in self._sealed_bytes if number < segment]

    @property
    def size(self) -> int:
        """Bytes of all segments, the open one up to its last frame."""
        return sum(self._sealed_bytes.values()) + self._open_end

    @property
    def oldest_untold(self) -> int:
        """The oldest segment with entries that are durable, but whose callers were not told yet."""
        return self._durable[0][1].segment if self._durable else self._open_number

    @property
    def oldest_segment(self) -> int:
        return next(iter(self._sealed_bytes), self._open_number)

    def drop_before(self, segment: int) -> None:
        """Give up all segments before this one: no live job is in them (ADR 0001, rule 6).

        Raises:
            JournalFailed: nothing is given up any more.
        """
        if self.failed is not None:
            raise self.failed
        gone = self.segments_before(segment)
        if not gone:
            return
        for number in gone:
            del self._sealed_bytes[number]
            if (reader := self._readers.pop(number, None)) is not None:
                reader.close()
        self._submit(lambda: self._t_drop(segment), self._dropped)

    def _dropped(self, _result: Any, error: BaseException | None) -> None:
        if error is not None and self.failed is None:
            self._fail(error, self._in_flight or [])

    @property
    def open_segment(self) -> int:
        return self._open_number

    def stats(self) -> dict[str, int]:
        """``bytes segments last_seq synced_seq commits``."""
        return {
            "bytes": self.size,
            "segments": len(self._sealed_bytes) + 1,
            "last_seq": self.next_sequence - 1,
            "synced_seq": self.synced_sequence,
            "commits": self.commits,
        }

    # -- in the executor's thread ---------------------------------------------------------------

    def _t_write(self, batch: list[_Append]) -> tuple[Location, int, int, int]:
        """Write one frame and sync it.

        Assumes: the frame before is durable. Ensures: on return, so is this one; on an exception
        nothing more may be written to this file.
        """
        parts = [part for append in batch for part in append.parts]
        need = record.FRAME_HEADER + sum(append.size for append in batch)
        if self._end + need > self._file.size():
            self._t_rotate(batch[0].sequence, need)
        data, crc = record.encode_frame(
            parts,
            salt=self._header.salt,
            frame=self._frame + 1,
            first_sequence=batch[0].sequence,
            durable=self._frame,
            count=len(parts),
            previous=self._crc,
        )
        write_all(self._file, data, self._end)
        self._file.datasync()
        location = Location(self._header.number, self._end + record.FRAME_HEADER)
        self._end += len(data)
        self._frame += 1
        self._crc = crc
        return location, self._end, self._file.size(), batch[0].sequence + len(parts) - 1

    def _t_rotate(self, first_sequence: int, need: int) -> None:
        """Seal the open segment and start the next (ADR 0001, rule 5)."""
        header = SegmentHeader(
            self._header.number + 1,
            self._header.journal,
            int.from_bytes(self._random(8), "little"),
            self._frame + 1,
            first_sequence,
            0,
        )
        size = max(self.segment_size, record.SEGMENT_HEADER + need)
        file, crc = make_segment(self._disk, self._folder, header, size)
        *others, last = self._manifest.segments
        sealed = SegmentInfo(
            last.number, last.first_frame, last.first_sequence, self._end, self._frame, self._crc
        )
        opened = SegmentInfo(header.number, header.first_frame, first_sequence, size=file.size())
        self._t_store((*others, sealed, opened))
        self._file.close()
        self._file, self._header, self._crc = file, header, crc
        self._end = record.SEGMENT_HEADER

    def _t_store(self, segments: tuple[SegmentInfo, ...]) -> None:
        old = self._manifest
        new = Manifest(old.format, old.journal, old.epoch, segments)
        store_manifest(self._disk, self._directory, new)
        self._manifest = new

    def _t_drop(self, segment: int) -> None:
        kept = tuple(info for info in self._manifest.segments if info.number >= segment)
        gone = [info for info in self._manifest.segments if info.number < segment]
        self._t_store(kept)
        for info in gone:
            self._disk.unlink(f"{self._folder}/{info.file}")

    def _t_spares(self, wanted: int) -> int:
        """Make or remove spare segments; returns how many there are. A full disk is no failure."""
        spares: list[str] = []
        made = False
        for name in spare_names(self._disk, self._folder):
            path = f"{self._folder}/{name}"
            if len(spares) < wanted and has_space(self._disk, path, self.segment_size):
                spares.append(name)
            else:
                self._disk.unlink(path)
        # Where not even a manifest's space can be had as ballast, half of it stays free: without a manifest a
        # new segment is worth nothing.
        left = 0 if self._t_ballast() else _MANIFEST_SPACE // 2
        number = 1 + max((int(name.removeprefix(SPARE)) for name in spares), default=0)
        while len(spares) < wanted:
            name = f"{SPARE}{number}"
            if left and self._disk.free(self._folder)[0] < self.segment_size + left:
                break
            if not self._t_allocate(f"{self._folder}/{name}", self.segment_size):
                break
            spares.append(name)
            number += 1
            made = True
        if made:
            self._disk.sync_dir(
                self._folder
            )  # after a crash, too, the space must be there, not used otherwise
        return len(spares)

    def _t_ballast(self) -> bool:
        """Keep the space the next start's copy of the open segment takes, or at least that of a manifest.

        Returns:
            False: the disk is too full for either.
        """
        path, size = f"{self._folder}/{BALLAST}", max(_MANIFEST_SPACE, self.segment_size)
        if BALLAST in self._disk.listdir(self._folder):
            if has_space(self._disk, path, size) or self._disk.free(self._folder)[0] < size:
                return True
            self._disk.unlink(path)
        return self._t_allocate(path, size) or self._t_allocate(path, _MANIFEST_SPACE)

    def _t_allocate(self, path: str, size: int) -> bool:
        """A new file with its space; False: the disk is full."""
        file = None
        try:
            file = self._disk.open(path, create=True)
            file.allocate(size)
            file.datasync()
        except OSError as error:
            if file is not None:
                self._disk.unlink(path)
            if error.errno in FULL:
                return False
            raise
        finally:
            if file is not None:
                file.close()
        return True
