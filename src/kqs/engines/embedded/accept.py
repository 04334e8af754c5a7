"""Jobs on their way in: their journal entries first, then, durable, their rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate

import msgspec

from ...core import record
from ...core.job import NO_OPTIONS, JobOptions, NewJob
from ...core.record import FLAG_BINARY, FLAG_BULK
from ...errors import Busy, DiskFull, ShuttingDown
from ...journal.log import Location
from ...ports import Inserted
from .index import DELAYED, READY, Index
from .keys import KEY_BYTES, KeyIndex
from .ledger import Ledger
from .table import pack_meta
from .unique import Name

_READY, _DELAYED = int(READY), int(DELAYED)  # plain integers: an IntEnum's arithmetic is slow
#: Bytes an entry takes beside its payload, at a guess that is mostly too high.
_ENTRY_OVERHEAD = 256


class Batch:
    """New jobs with consecutive numbers. On the hot path of ``insert``.

    Args:
        jobs: valid jobs.
        first: the first one's number.
        now: microseconds since 1970.
        index: where they will go.

    Attributes:
        entries: their accept entries.
        size: bytes of these.
        ready: the types of those that need not wait.
    """

    def __init__(self, jobs: Sequence[NewJob], first: int, now: int, index: Index) -> None:
        self._first = first
        self._now = now
        self._index = index
        self.entries: list[bytes] = []
        self.ready: dict[str, None] = {}
        self._dues: list[int] = []
        self._metas: list[int] = []
        self._groups: dict[int, list[int]] = {}
        self._special: list[tuple[int, NewJob]] = []
        add_entry, add_due, add_meta = self.entries.append, self._dues.append, self._metas.append
        encode = record.encode_accept
        like: tuple[str, int, bool, str | None] | None = None
        meta, type_bytes, add_number = 0, b"", add_due  # of the first job's kind, soon
        number = first
        for job in jobs:
            flags = FLAG_BINARY if job.binary else 0
            options = b""
            if job.options is not NO_OPTIONS:
                options = msgspec.json.encode(job.options)
                if job.options.bulk is not None:
                    flags |= FLAG_BULK
                self._special.append((number, job))
            prio, due = job.prio, now + job.delay
            kind = (job.type, prio, due > now, job.options.fair)
            if kind != like:  # jobs mostly come in runs of one kind
                like = kind
                meta, add_number = self._group(*kind)
                type_bytes = job.type.encode()
            add_entry(encode(number, flags, now, due, job.ttr, prio, type_bytes, options, job.data))
            add_due(due)
            add_meta(meta)
            add_number(number)
            number += 1
        index.join(self._groups)
        self._sizes = list(map(len, self.entries))
        self.size = sum(self._sizes)

    def _group(
        self, type_: str, prio: int, delayed: bool, key: str | None
    ) -> tuple[int, Callable[[int], None]]:
        """What the table calls such jobs, and where to put their numbers."""
        if not delayed:
            self.ready[type_] = None
        meta = pack_meta(self._index.lane(type_, key).id, prio, _DELAYED if delayed else _READY)
        return meta, self._groups.setdefault(meta, []).append

    def enter(self, keys: KeyIndex, location: Location) -> None:
        """The entries are durable: into the index."""
        segment, offset = location
        places = list(accumulate(self._sizes[:-1], initial=segment << 32 | offset))
        self._index.extend(self._first, places, self._sizes, self._dues, self._metas, self._groups, segment)
        for number, job in self._special:
            if job.options.bulk is not None:
                self._index.bulk[number] = job.options.bulk
            if job.options.key is not None:
                keys.add(job.options.key, number, self._now, segment, self._now)
            if job.options.expires:
                self._index.expire(number, self._now + job.options.expires)


class Acceptor:
    """Takes new jobs: room, keys, journal, index.

    Args:
        ledger: the books.
        make_room: returns when the space that is wanted was made, or can't be; tells which.
        memory_limit: bytes of everything kept in memory, estimated; jobs are refused beyond it.
    """

    def __init__(self, ledger: Ledger, make_room: Callable[[], Awaitable[bool]], memory_limit: int) -> None:
        self._ledger = ledger
        self._make_room = make_room
        self.memory_limit = memory_limit
        self._keys_under_way: dict[str, int] = {}
        self._under_way: dict[int, asyncio.Future[Location]] = {}
        self.closing = False

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        await self.admit(jobs)
        if any(job.options is not NO_OPTIONS and _may_meet(job.options) for job in jobs):
            return await self._put_once(jobs)
        first, durable = self._begin(jobs)
        await durable
        return Inserted(self._ledger.ids(first, len(jobs)))

    async def admit(self, jobs: Sequence[NewJob]) -> None:
        """Return when there is room for jobs, which are to be entered before anything is awaited.

        Raises:
            Busy, DiskFull, ShuttingDown, JournalFailed: there is none.
        """
        size = sum(len(job.data) for job in jobs) + _ENTRY_OVERHEAD * len(jobs)
        self._ledger.reserve(len(jobs))
        await self._find_room(size)
        self._admit(size)

    async def _find_room(self, size: int) -> None:
        """Return when there is room, or none can be made. Others may take what was made while we waited."""
        journal = self._ledger.journal
        while not journal.has_room_for(size):
            if not await self._make_room() or size > journal.segment_size // 2:
                return

    def _admit(self, size: int) -> None:
        """Refuse what there is no room for, before anything is done."""
        if self.closing:
            raise ShuttingDown("the server is shutting down; insert at another one or later")
        if self._ledger.journal.failed is not None:
            raise self._ledger.journal.failed
        if not self._ledger.journal.has_room_for(size):
            raise DiskFull("the disk is full: no new jobs until space is free; jobs still run and finish")
        if self.memory >= self.memory_limit:
            raise Busy(
                f"the backlog fills the memory limit of {self.memory_limit} bytes; try again when jobs are "
                f"done, or raise memory_limit"
            )

    @property
    def memory(self) -> int:
        """Estimated bytes kept in memory because of jobs."""
        return self._ledger.index.memory + self._ledger.cached + len(self._ledger.keys) * KEY_BYTES

    async def enter(self, jobs: Sequence[NewJob], also: Callable[[int], bytes]) -> int:
        """Journal new jobs that were admitted and have no keys; returns the first one's number, durable.

        Args:
            jobs: the jobs.
            also: makes an entry, with this sequence, that stands or falls with them.
        """
        first, durable = self._begin(jobs, also=also)
        await durable
        return first

    def _begin(
        self,
        jobs: Sequence[NewJob],
        entered: Callable[[], None] | None = None,
        also: Callable[[int], bytes] | None = None,
    ) -> tuple[int, asyncio.Future[Location]]:
        """Journal new jobs; when they are durable, they go into the index.

        Args:
            jobs: the jobs.
            entered: called when they are there.
            also: see :meth:`enter`.

        Returns:
            The first one's number, and what resolves after all that.
        """
        count = len(jobs)
        first = self._ledger.journal.take_sequences(count + (also is not None))
        batch = Batch(jobs, first, self._ledger.now(), self._ledger.index)
        entries = batch.entries if also is None else [*batch.entries, also(first + count)]

        def enter(location: Location) -> None:
            batch.enter(self._ledger.keys, location)
            self._ledger.keep(first, batch.entries, batch.size)
            if entered is not None:
                entered()
            if batch.ready:
                self._ledger.notify(list(batch.ready))
            if self._ledger.watchers:
                index = self._ledger.index
                rows = map(index.table.row, range(first, first + count))
                self._ledger.happened_now("accepted", (self._ledger.job(row) for row in rows if row))

        durable = self._ledger.journal.append(entries, first, enter)
        return first, durable

    async def _put_once(self, jobs: Sequence[NewJob]) -> Inserted:
        """Insert the jobs that are new; the others get the id of the one that has their key.

        All is decided and appended in one turn of the loop, so what others insert meanwhile is known by then.
        """
        ledger, now = self._ledger, self._ledger.now()
        first = ledger.journal.next_sequence
        numbers: list[int] = []
        fresh: list[NewJob] = []
        duplicates: list[int] = []
        keys: dict[str, int] = {}
        names: dict[Name, int] = {}
        for position, job in enumerate(jobs):
            number = self._earlier(job, keys, names, now)
            if number is None:
                number = first + len(fresh)
                fresh.append(job)
                if job.options.key is not None:
                    keys[job.options.key] = number
                if job.options.unique is not None:
                    names[job.type, job.options.unique.key] = number
            else:
                duplicates.append(position)
            numbers.append(number)
        if fresh:
            self._begin_once(fresh, keys)
        if any(jobs[position].options.unique is not None for position in duplicates):
            # What makes a job stand may have been done a moment ago: a kick, the end of an attempt. The reply
            # says that it stands, so it waits for that to be durable, too.
            await ledger.journal.sync()
        for durable in dict.fromkeys(map(self._under_way.get, numbers)):
            if durable is not None:
                # A caller that gives up must not take back what others wait for.
                await asyncio.shield(durable)
        return Inserted([ledger.id_of(number) for number in numbers], tuple(duplicates))

    def _earlier(self, job: NewJob, keys: dict[str, int], names: dict[Name, int], now: int) -> int | None:
        """The job that used this one's key before, or else stands with its unique key; None: it is new.

        Args:
            job: the job.
            keys, names: what jobs before it in the same call have.
            now: microseconds since 1970.
        """
        key, unique = job.options.key, job.options.unique
        if key is not None and (
            number := keys.get(key) or self._keys_under_way.get(key) or self._ledger.keys.find(key, now)
        ):
            return number
        if unique is None:
            return None
        name = (job.type, unique.key)
        return names.get(name) or self._ledger.index.unique.find(name)

    def _begin_once(self, jobs: list[NewJob], keys: dict[str, int]) -> None:
        """:meth:`_begin`, with callers who want the same jobs meanwhile in mind.

        Args:
            jobs: the jobs.
            keys: their idempotency keys, and the job that each is for.
        """

        def entered() -> None:
            for number in numbers:
                del self._under_way[number]
            for key in keys:
                self._keys_under_way.pop(key, None)

        first, durable = self._begin(jobs, entered)
        numbers = range(first, first + len(jobs))
        self._under_way.update(dict.fromkeys(numbers, durable))
        self._keys_under_way.update(keys)
        for number, job in enumerate(jobs, first):
            if job.options.unique is not None:
                self._ledger.index.unique.add(number, job.type, job.options.unique)


def _may_meet(options: JobOptions) -> bool:
    """Whether another job with the same key may be there already."""
    return options.key is not None or options.unique is not None
