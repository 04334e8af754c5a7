"""Jobs on their way in: their journal entries first, then, durable, their rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import msgspec

from ...core import record
from ...core.job import NO_OPTIONS, NewJob
from ...core.record import FLAG_BINARY, FLAG_BULK
from ...journal.log import Location
from .index import DELAYED, READY, Index
from .keys import KeyIndex
from .table import STATE_BITS, TYPE_SHIFT

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
        groups, encode, type_id = self._groups, record.encode_accept, index.type_id
        number = first
        for job in jobs:
            flags = FLAG_BINARY if job.binary else 0
            options = b""
            if job.options is not NO_OPTIONS:
                options = msgspec.json.encode(job.options)
                if job.options.bulk is not None:
                    flags |= FLAG_BULK
                self._special.append((number, job))
            type_, delay = job.type, job.delay
            due = now + delay
            add_entry(encode(number, flags, now, due, job.ttr, job.prio, type_.encode(), options, job.data))
            add_due(due)
            meta = type_id(type_) << TYPE_SHIFT | job.prio << STATE_BITS | (_DELAYED if delay else _READY)
            if not delay:
                self.ready[type_] = None
            add_meta(meta)
            group = groups.get(meta)
            if group is None:
                group = groups[meta] = []
            group.append(number)
            number += 1
        self._sizes = list(map(len, self.entries))
        self.size = sum(self._sizes)

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
