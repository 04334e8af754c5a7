"""Jobs on their way in: their journal entries first, then, durable, their rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate

import msgspec

from ...core import record
from ...core.job import NO_OPTIONS, NewJob
from ...core.record import FLAG_BINARY, FLAG_BULK
from ...errors import Busy, DiskFull, ShuttingDown
from ...journal.log import Location
from ...ports import Inserted
from .index import DELAYED, READY, Index
from .keys import KEY_BYTES, KeyIndex
from .ledger import Ledger
from .table import pack_meta

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
        like: tuple[str, int, bool] | None = None
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
            kind = (job.type, prio, due > now)
            if kind != like:  # jobs mostly come in runs of one kind
                like = kind
                meta, add_number = self._group(*kind)
                type_bytes = job.type.encode()
            add_entry(encode(number, flags, now, due, job.ttr, prio, type_bytes, options, job.data))
            add_due(due)
            add_meta(meta)
            add_number(number)
            number += 1
        self._sizes = list(map(len, self.entries))
        self.size = sum(self._sizes)

    def _group(self, type_: str, prio: int, delayed: bool) -> tuple[int, Callable[[int], None]]:
        """What the table calls such jobs, and where to put their numbers."""
        if not delayed:
            self.ready[type_] = None
        meta = pack_meta(self._index.type_id(type_), prio, _DELAYED if delayed else _READY)
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
    """Takes new jobs: room, idempotency keys, journal, index.

    Args:
        ledger: the books.
        make_room: returns when the space that is wanted was made, or can't be.
        memory_limit: bytes of everything kept in memory, estimated; jobs are refused beyond it.
    """

    def __init__(self, ledger: Ledger, make_room: Callable[[], Awaitable[None]], memory_limit: int) -> None:
        self._ledger = ledger
        self._make_room = make_room
        self.memory_limit = memory_limit
        self._keys_pending: dict[str, asyncio.Future[int]] = {}
        self.closing = False

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        size = sum(len(job.data) for job in jobs) + _ENTRY_OVERHEAD * len(jobs)
        self._ledger.reserve(len(jobs))
        if not self._ledger.journal.has_room_for(size):
            await self._make_room()
        self._admit(size)
        if any(job.options.key is not None for job in jobs):
            return await self._put_keyed(jobs)
        first = await self._put(jobs)
        return Inserted(self._ledger.ids(first, len(jobs)))

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

    async def _put(self, jobs: Sequence[NewJob]) -> int:
        """Journal new jobs; when they are durable, into the index. Returns the first one's number."""
        first = self._ledger.journal.take_sequences(len(jobs))
        batch = Batch(jobs, first, self._ledger.now(), self._ledger.index)

        def enter(location: Location) -> None:
            batch.enter(self._ledger.keys, location)
            self._ledger.keep(first, batch.entries, batch.size)
            if batch.ready:
                self._ledger.notify(list(batch.ready))
            if self._ledger.watchers:
                index = self._ledger.index
                rows = map(index.table.row, range(first, first + len(jobs)))
                self._ledger.happened_now("accepted", (self._ledger.job(row) for row in rows if row))

        await self._ledger.journal.append(batch.entries, first, enter)
        return first

    async def _put_keyed(self, jobs: Sequence[NewJob]) -> Inserted:
        """Insert the jobs whose key is new; the others get the id of the job that used theirs first."""
        now = self._ledger.now()
        numbers: list[int | asyncio.Future[int]] = []
        fresh: list[NewJob] = []
        own: list[tuple[str, asyncio.Future[int]]] = []
        duplicates: list[int] = []
        for position, job in enumerate(jobs):
            key = job.options.key
            known = None if key is None else self._keys_pending.get(key) or self._ledger.keys.find(key, now)
            if known is not None:
                duplicates.append(position)
                numbers.append(known)
                continue
            number: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            own.append((key or "", number))
            if key is not None:
                self._keys_pending[key] = number
            fresh.append(job)
            numbers.append(number)
        await self._put_fresh(fresh, own)
        ids = [self._ledger.id_of(number if isinstance(number, int) else await number) for number in numbers]
        return Inserted(ids, tuple(duplicates))

    async def _put_fresh(self, jobs: list[NewJob], own: list[tuple[str, asyncio.Future[int]]]) -> None:
        """Insert jobs and tell their numbers to who waits for them, the same key's later callers too."""
        try:
            first = await self._put(jobs) if jobs else 0
        except BaseException as error:
            for _key, number in own:
                number.set_exception(error)
                number.exception()
            raise
        else:
            for value, (_key, number) in enumerate(own, first):
                number.set_result(value)
        finally:
            for key, _number in own:
                self._keys_pending.pop(key, None)
