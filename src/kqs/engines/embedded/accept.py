"""Jobs on their way in: their journal entries first, then, durable, their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import msgspec

from ...core import record
from ...core.job import NO_OPTIONS, NewJob
from ...core.record import FLAG_BINARY, FLAG_BULK
from ...journal.log import Location
from .index import DELAYED, READY, Index
from .keys import KeyIndex
from .table import pack_meta

_READY, _DELAYED = int(READY), int(DELAYED)  # plain integers: an IntEnum's arithmetic is slow


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
