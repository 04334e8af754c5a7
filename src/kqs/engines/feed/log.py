"""The accepted jobs an engine has not got yet, in a journal of their own, and how far it got.

The cursor is an entry that says up to which number all jobs are delivered, and which before it are not. It is
written behind the jobs it is about, so a segment in which no undelivered job stands can go: what tells that
its jobs are delivered goes with them, or stands later.

Jobs are kept in memory as long as a window has room for their payloads; what is over it is only a range of
numbers and a place, and is read back when its turn comes. So an engine that is away for hours costs journal
space, and next to no memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import msgspec
from msgspec import Struct

from ...core import record
from ...core.job import NO_OPTIONS, JobOptions, NewJob
from ...core.record import FLAG_BINARY, FLAG_BULK, Damaged, Newer
from ...errors import Busy, DiskFull, ShuttingDown
from ...journal.log import Journal, Location
from ...journal.scan import Apply, each_entry
from ..marks import CronEntry, CronIndex, Pause, Paused, decode_pause

#: Undelivered jobs that stand byte on byte are one range, up to so many.
_RANGE = 1000
#: Bytes an entry takes beside its payload, at a guess that is mostly too high.
_ENTRY_OVERHEAD = 256
#: Journal space kept free for cursors and marks: what they say lets segments go.
_RESERVE = 64 * 1024
#: Memory of a range, and of a job that is kept in memory beside its payload, at a guess.
_RANGE_BYTES = 200
_JOB_BYTES = 600

_options = msgspec.json.Decoder(JobOptions).decode


class Fed(Struct, gc=False, eq=False):
    """An accepted job on its way to the engine.

    Attributes:
        number: its place among all jobs this journal accepted.
        id: as its inserter was told.
        job: what was accepted.
        accepted: when, microseconds since 1970, each job of a journal at a moment of its own. Its delay
            counts from here.
        delivered: set by the engine, once it confirmed that it has it.
        refused: why the engine will not have it, set by the engine; the job is kept and offered again later.
    """

    number: int
    id: str
    job: NewJob
    accepted: int
    delivered: bool = False
    refused: str = ""

    def wait(self, now: int) -> int:
        """How long it is not due yet, microseconds."""
        return max(0, self.accepted + self.job.delay - now) if self.job.delay else 0


class Cursor(Struct, omit_defaults=True):
    """What a cursor entry holds: all jobs up to ``upto`` are delivered, but the ``rest``.

    ``last`` is the latest moment a job was accepted at.
    """

    upto: int
    rest: list[int] = []
    last: int = 0


class _Range(Struct, gc=False):
    """Jobs that stand byte on byte and were not offered to the engine yet.

    Attributes:
        first, count: their numbers.
        segment, start, end: where their entries lie.
        jobs: they themselves, or None when they must be read.
    """

    first: int
    count: int
    segment: int
    start: int
    end: int
    jobs: list[Fed] | None = None

    @property
    def next(self) -> int:
        """The number after its last."""
        return self.first + self.count


class _Offered(Struct, gc=False):
    """A job that was offered to the engine, its segment and the bytes of its entry."""

    fed: Fed
    segment: int
    size: int


_cursor = msgspec.json.Decoder(Cursor).decode


class _Replay:
    """What the entries of a feed's journal come to.

    Attributes:
        ranges: the jobs that are not delivered, with some that are between them.
        cursor: the latest.
        last: the latest moment a job was accepted at.
        crons, paused: as :class:`FeedLog` has them.
    """

    def __init__(self) -> None:
        self.ranges: deque[_Range] = deque()
        self.cursor = Cursor(0)
        self.last = 0
        self.crons = CronIndex()
        self.paused: dict[str, Paused] = {}
        self.frame = each_entry(self._entry)

    def _entry(self, kind: int, entry: bytes, segment: int, offset: int) -> None:
        try:
            if kind == record.ACCEPT:
                accept = record.decode_accept(entry)
                self.last = max(self.last, accept.inserted)
                add(self.ranges, _Range(accept.sequence, 1, segment, offset, offset + len(entry)))
            elif kind == record.FED:
                self.cursor = _cursor(record.decode_data(entry))
                self.last = max(self.last, self.cursor.last)
                while self.ranges and not self._count(self.ranges[0]):
                    self.ranges.popleft()
            elif kind == record.CRON:
                self.crons.put(record.decode_data(entry), segment)
            elif kind == record.PAUSE:
                put_pause(self.paused, decode_pause(record.decode_data(entry)), segment)
            elif kind == record.MARK:
                record.decode_mark(entry)  # a repair left it, and has named what is lost
            elif kind in record.KINDS:
                raise Damaged(0, "the journal of a feed holds an entry of the embedded engine")
            else:
                raise Newer(f"entry kind {kind}")
        except msgspec.MsgspecError as error:
            raise Damaged(0, f"an entry cannot be: {error}") from None

    def _count(self, range_: _Range) -> int:
        """How many jobs of a range are not delivered."""
        upto, rest = self.cursor.upto, self.cursor.rest
        if range_.first > upto:
            return range_.count
        return max(0, range_.next - 1 - upto) + sum(range_.first <= number < range_.next for number in rest)

    @property
    def waiting(self) -> int:
        """How many jobs are not delivered."""
        return sum(map(self._count, self.ranges))


def add(ranges: deque[_Range], new: _Range) -> None:
    """Add a range behind the others, as part of the last one where it can be."""
    if ranges and new.jobs is None:
        last = ranges[-1]
        follows = (last.next, last.segment, last.end) == (new.first, new.segment, new.start)
        if last.jobs is None and follows and last.count + new.count <= _RANGE:
            last.count += new.count
            last.end = new.end
            return
    ranges.append(new)


def put_pause(paused: dict[str, Paused], pause: Pause, segment: int) -> None:
    """Enter a pause, or its end."""
    if pause.paused:
        paused[pause.type] = Paused(pause.by, pause.at, segment)
    else:
        paused.pop(pause.type, None)


def rehearsal() -> Apply:
    """Takes every frame of a feed's journal as a start would, for nothing but what that raises."""
    return _Replay().frame


def undelivered(replay: Callable[[Apply], None]) -> int:
    """How many jobs of a feed's journal are not delivered.

    Args:
        replay: replays the journal's frames into the callback it is given.
    """
    found = _Replay()
    replay(found.frame)
    return found.waiting


class FeedLog:
    """See the module.

    Args:
        open_journal: opens the journal, replaying its frames into the callback it is given.
        window: bytes of undelivered jobs kept in memory.
        limit: bytes of memory all that is undelivered may take; inserts get ``busy`` beyond it.

    Attributes:
        journal: where it is kept.
        id_of: names a job, by its number and the moment it was accepted at.
        last: the latest moment a job was accepted at, microseconds since 1970.
        crons: the marks of the crons.
        paused: the paused types.
        waiting: how many jobs are undelivered.
        bytes: the journal bytes these take.
        delivered: how many were delivered since the start.
    """

    def __init__(self, open_journal: Callable[[Apply], Journal], *, window: int, limit: int) -> None:
        self._window = window
        self._limit = limit
        self._kept = 0  # bytes of jobs in memory
        self._offered: dict[int, _Offered] = {}
        self.delivered = 0
        self.closing = False
        found = _Replay()
        self.journal = open_journal(found.frame)
        self.journal.reserve(_RESERVE)
        prefix = f"{self.journal.journal_id[:8]}-"
        self.id_of: Callable[[int, int], str] = lambda number, _accepted: f"{prefix}{number}"
        self.last = found.last
        self._ranges = found.ranges
        self._upto = found.cursor.upto  # all up to here are delivered, or offered
        self._left = frozenset(found.cursor.rest)  # but these, as the start found them
        self.crons, self.paused = found.crons, found.paused
        self.waiting = found.waiting
        self.bytes = sum(range_.end - range_.start for range_ in self._ranges)

    def _is_left(self, number: int) -> bool:
        return number > self._upto or number in self._left

    # -- accepting ------------------------------------------------------------------------------

    def moments(self, count: int, now: int) -> range:
        """Moments that no other job of this journal has, from now on if it can be."""
        first = max(now, self.last + 1)
        self.last = first + count - 1
        return range(first, first + count)

    async def admit(self, jobs: Sequence[NewJob]) -> None:
        """Return when there is room for jobs, which are to be appended before anything is awaited.

        Raises:
            Busy, DiskFull, ShuttingDown, JournalFailed: there is none.
        """
        journal = self.journal
        size = sum(len(job.data) for job in jobs) + _ENTRY_OVERHEAD * len(jobs)
        if not journal.has_room_for(size):
            await journal.make_room()
        if self.closing:
            raise ShuttingDown("the server is shutting down; insert at another one or later")
        if journal.failed is not None:
            raise journal.failed
        if not journal.has_room_for(size):
            raise DiskFull("the disk is full: no new jobs until space is free or the engine took what waits")
        if self.memory >= self._limit:
            raise Busy(
                f"the jobs the engine has not taken yet fill the memory limit of {self._limit} bytes; try "
                "again when it has, or raise memory_limit"
            )

    @property
    def memory(self) -> int:
        """Estimated bytes kept in memory because of undelivered jobs."""
        return len(self._ranges) * _RANGE_BYTES + self._kept

    async def append(self, jobs: Sequence[NewJob], now: int, mark: CronEntry | None = None) -> list[str]:
        """Journal jobs that were admitted, and a cron's mark with them; returns their ids, durable.

        Args:
            jobs: the jobs.
            now: microseconds since 1970.
            mark: of the cron they are of.
        """
        journal, count = self.journal, len(jobs)
        first = journal.take_sequences(count + (mark is not None))
        entries: list[bytes] = []
        fed: list[Fed] = []
        for number, moment, job in zip(
            range(first, first + count), self.moments(count, now), jobs, strict=True
        ):
            flags, options = (FLAG_BINARY if job.binary else 0), b""
            if job.options is not NO_OPTIONS:
                options = msgspec.json.encode(job.options)
                flags |= FLAG_BULK if job.options.bulk is not None else 0
            type_, due = job.type.encode(), moment + job.delay
            entries.append(
                record.encode_accept(number, flags, moment, due, job.ttr, job.prio, type_, options, job.data)
            )
            fed.append(Fed(number, self.id_of(number, moment), job, moment))
        size = sum(map(len, entries))
        if mark is not None:
            entries.append(self._cron_entry(mark, first + count))

        def enter(location: Location) -> None:
            keep = self._kept < self._window
            self._kept += self._weight(fed) if keep else 0
            end = location.offset + size
            add(
                self._ranges,
                _Range(first, count, location.segment, location.offset, end, fed if keep else None),
            )
            self.waiting += count
            self.bytes += size

        await journal.append(entries, first, enter)
        return [accepted.id for accepted in fed]

    @staticmethod
    def _weight(jobs: Sequence[Fed]) -> int:
        return sum(len(fed.job.data) for fed in jobs) + _JOB_BYTES * len(jobs)

    # -- delivering -----------------------------------------------------------------------------

    def offer(self, most: int, most_bytes: int) -> list[Fed]:
        """The jobs to deliver next, oldest first; those that were offered and not taken come again.

        Args:
            most, most_bytes: how many at most, and how much payload; at least one is given.

        Raises:
            DamagedJournal, Busy, JournalFailed: what waits cannot be read (now).
        """
        jobs = [offered.fed for offered in self._offered.values() if not offered.fed.refused]
        size = sum(len(fed.job.data) for fed in jobs)
        while self._ranges and (not jobs or (len(jobs) < most and size < most_bytes)):
            ahead = self._ranges[0]
            fresh = [(fed, size) for fed, size in self._load(ahead) if self._is_left(fed.number)]
            self._ranges.popleft()
            self._kept -= self._weight(ahead.jobs) if ahead.jobs is not None else 0
            self.bytes -= ahead.end - ahead.start
            for fed, entry_size in fresh:
                self._offered[fed.number] = _Offered(fed, ahead.segment, entry_size)
                self.bytes += entry_size
                jobs.append(fed)
                size += len(fed.job.data)
            self._upto = max(self._upto, ahead.next - 1)
            self._left = frozenset(number for number in self._left if number >= ahead.next)
        return jobs

    def _load(self, range_: _Range) -> Iterator[tuple[Fed, int]]:
        """The jobs of a range, each with the bytes of its entry."""
        if range_.jobs is not None:
            each = (range_.end - range_.start) // range_.count
            yield from ((fed, each) for fed in range_.jobs)
            return
        offset = range_.start
        self.journal.read_ahead(range_.segment, offset)
        while offset < range_.end:
            entry = self.journal.read(range_.segment, offset)
            offset += len(entry)
            accept = record.decode_accept(entry)
            options = _options(accept.options) if accept.options else NO_OPTIONS
            job = NewJob(
                accept.type,
                entry[accept.data_start : accept.data_end],
                bool(accept.flags & FLAG_BINARY),
                accept.prio,
                accept.due - accept.inserted,
                accept.ttr,
                options,
            )
            yield (
                Fed(accept.sequence, self.id_of(accept.sequence, accept.inserted), job, accept.inserted),
                len(entry),
            )

    def confirm(self) -> int:
        """Move the cursor over what was delivered; returns how many jobs that were."""
        done = [number for number, offered in self._offered.items() if offered.fed.delivered]
        for number in done:
            self.bytes -= self._offered.pop(number).size
        if done:
            self.waiting -= len(done)
            self.delivered += len(done)
            sequence = self.journal.take_sequences(1)
            data = msgspec.json.encode(Cursor(self._upto, sorted(self._offered), self.last))
            self.journal.append_unwaited([record.encode_data(record.FED, sequence, data)], sequence)
        return len(done)

    @property
    def refused(self) -> list[Fed]:
        """The jobs the engine will not have."""
        return [offered.fed for offered in self._offered.values() if offered.fed.refused]

    def oldest(self) -> int | None:
        """When the oldest undelivered job was accepted, microseconds; as far as that is in memory."""
        offered = next(iter(self._offered.values()), None)
        if offered is not None:
            return offered.fed.accepted
        jobs = self._ranges[0].jobs if self._ranges else None
        return jobs[0].accepted if jobs else None

    async def trim(self) -> None:
        """Give up the segments no undelivered job stands in, after what else stands there was written again.

        Raises:
            JournalFailed: nothing is given up any more.
        """
        journal = self.journal
        needed = [journal.open_segment, journal.oldest_untold]
        needed += [offered.segment for offered in islice(self._offered.values(), 1)]
        needed += [self._ranges[0].segment] if self._ranges else []
        segments = journal.segments_before(min(needed))
        if not segments:
            return
        for name in self.crons.standing_in(segments):
            mark = self.crons.marks[name]
            await self.write_mark(CronEntry(name, mark.at, mark.last))
        for type_, paused in list(self.paused.items()):
            if paused.segment in segments:
                await self.write_pause(Pause(type_, True, paused.by, paused.at))
        await journal.sync()  # the cursor that says what was delivered
        journal.drop_before(segments[-1] + 1)

    # -- marks ----------------------------------------------------------------------------------

    def _cron_entry(self, mark: CronEntry, sequence: int) -> bytes:
        """A mark's entry, appended next; from now on it counts."""
        data = msgspec.json.encode(mark)
        self.crons.put(data, self.journal.open_segment)
        return record.encode_data(record.CRON, sequence, data)

    async def write_mark(self, mark: CronEntry) -> None:
        """A cron's mark, alone; durable.

        Raises:
            ShuttingDown: nothing was done.
        """
        if self.closing:
            raise ShuttingDown("the server is shutting down")
        sequence = self.journal.take_sequences(1)
        await self.journal.append([self._cron_entry(mark, sequence)], sequence)

    async def write_pause(self, pause: Pause) -> None:
        """A pause or its end; durable."""
        put_pause(self.paused, pause, self.journal.open_segment)
        sequence = self.journal.take_sequences(1)
        await self.journal.append(
            [record.encode_data(record.PAUSE, sequence, msgspec.json.encode(pause))], sequence
        )
