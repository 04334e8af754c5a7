"""Crons: up to when the runs of each are taken care of, kept by the journal.

Ensures: the entry that says so stands in the append of the jobs it is about, so that both are durable or
neither is: no run is inserted twice, and none is forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from ...core import record
from ...core.job import NewJob
from ...errors import ShuttingDown
from ...ports import CronMark
from ..marks import CronEntry

if TYPE_CHECKING:
    from .accept import Acceptor
    from .ledger import Ledger


class Crons:
    """Moves the marks.

    Args:
        ledger: the books.
        acceptor: takes the jobs.
    """

    def __init__(self, ledger: Ledger, acceptor: Acceptor) -> None:
        self._ledger = ledger
        self._acceptor = acceptor
        self._index = ledger.index.crons

    async def fire(self, name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        """See :meth:`kqs.ports.Engine.fire`."""
        if jobs and not self._taken(name, upto):
            await self._acceptor.admit(jobs)
        # From here to the append nothing is awaited: of several calls at once one finds the mark not moved.
        if self._taken(name, upto):
            await self._ledger.journal.sync()
            return None
        if not jobs:
            last = self._index.marks.get(name, CronMark(0)).last
            await self._write(CronEntry(name, upto, last))
            return []
        first = await self._acceptor.enter(jobs, partial(self._entry, CronEntry(name, upto, upto)))
        return self._ledger.ids(first, len(jobs))

    def _taken(self, name: str, upto: int) -> bool:
        mark = self._index.marks.get(name)
        return mark is not None and mark.at >= upto

    async def forget(self, name: str) -> None:
        """A cron has no mark any more."""
        if name in self._index.marks:
            await self._write(CronEntry(name, 0))

    async def carry(self, segments: Collection[int]) -> None:
        """Write the marks that stand in these segments again."""
        for name in self._index.standing_in(segments):
            if (mark := self._index.marks.get(name)) is not None:
                await self._write(CronEntry(name, mark.at, mark.last))

    async def _write(self, entry: CronEntry) -> None:
        """Journal a mark alone."""
        if self._acceptor.closing:
            raise ShuttingDown("the server is shutting down")
        await self._ledger.append([self._entry(entry, self._ledger.journal.next_sequence)])

    def _entry(self, entry: CronEntry, sequence: int) -> bytes:
        """A mark's entry, appended next; from now on it counts."""
        data = msgspec.json.encode(entry)
        self._index.put(data, self._ledger.journal.open_segment)  # or the one after it, if that is full
        return record.encode_data(record.CRON, sequence, data)
