"""Keeps the journal small: the oldest segments are given up, their live jobs carried forward.

Only the oldest segment is ever compacted. Events stand in the segment of their job's accept or in a later
one, so nothing that stays behind needs an entry of what went, and no tombstones are needed (ADR 0006). A job
that is stuck for long is copied once each time the log goes round; since that starts only when more than half
of the log is dead, a byte is copied once for each byte appended, at most.

Ensures: a segment is dropped only after every carry entry that replaces its live jobs, and every entry that
replaces its keys, results, pauses and marks of crons, is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import structlog

from ...core import record
from ...core.lifecycle import State
from ...core.record import Damaged, Newer
from ...errors import Busy, DamagedJournal, JournalFailed
from ...journal.log import Location
from .job import LiveJob, encode_carry
from .ledger import Ledger
from .table import Row

#: Rows looked at between two turns of the loop.
_SCAN = 4096
#: Bytes carried in one frame.
_BATCH = 256 * 1024


class Compactor:
    """The background work on a journal; one pass at a time.

    Args:
        ledger: the books.
        carry: write again what stands in some segments and is of no job: pauses, marks of crons.
    """

    def __init__(self, ledger: Ledger, *carry: Callable[[list[int]], Awaitable[None]]) -> None:
        self._ledger = ledger
        self._carry_others = carry
        self._task: asyncio.Task[None] | None = None
        self.carried = 0

    def poke(self) -> None:
        """Begin a pass if there is something to do."""
        if self._task is None and (self._droppable() or self._bloated()):
            self._task = asyncio.ensure_future(self._run())
            self._task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            structlog.get_logger().error("compaction failed", error=repr(error))

    async def stop(self) -> None:
        """End the pass that runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _droppable(self) -> list[int]:
        """Segments before the first with a live job, or with one that is durable but not in the index yet."""
        journal, live = self._ledger.journal, self._ledger.index.in_segment
        oldest = min((number for number, count in live.items() if count), default=journal.open_segment)
        return journal.segments_before(min(oldest, journal.oldest_untold, journal.open_segment))

    def _bloated(self) -> bool:
        """Whether more than half of the log, and more than half a segment, is dead."""
        journal = self._ledger.journal
        index = self._ledger.index
        limit = 2 * (index.live_bytes + index.results.bytes) + journal.segment_size // 2
        return journal.size > limit and journal.oldest_segment != journal.open_segment

    async def _run(self) -> None:
        try:
            while True:
                if segments := self._droppable():
                    await self._drop(segments)
                elif self._bloated():
                    await self._carry_segment(self._ledger.journal.oldest_segment)
                else:
                    return
        except (JournalFailed, Busy):
            return  # the server is stopping for it; or an entry can't be read just now: the next pass will

    async def _drop(self, segments: list[int]) -> None:
        """Give up segments no live job stands in, after what else stands there was carried."""
        ledger = self._ledger
        for data in ledger.keys.standing_in(segments, ledger.now()):
            first = ledger.journal.take_sequences(1)
            entry = record.encode_data(record.KEYS, first, data)
            segment, _offset = await ledger.journal.append([entry], first)
            ledger.keys.carried(data, segment)
        await self._carry_results(segments)
        for carry in self._carry_others:
            await carry(segments)
        ledger.keys.dropped(segments)
        ledger.index.results.dropped(segments)
        for number in segments:
            ledger.index.in_segment.pop(number, None)
        ledger.journal.drop_before(segments[-1] + 1)

    async def _carry_results(self, segments: list[int]) -> None:
        """Write the results that stand in these segments again, some at a time."""
        ledger, results = self._ledger, self._ledger.index.results
        while numbers := results.standing_in(segments):
            first = ledger.journal.next_sequence
            parts: list[bytes] = []
            size = 0
            for number in numbers:
                kept = results.get(number)
                if kept is None or size >= _BATCH:
                    break
                data = record.decode_data(ledger.read(kept.place, kept.size))
                entry = record.encode_data(record.RESULT, first + len(parts), data)
                ledger.when_placed(first + len(parts), partial(results.placed, number, len(entry)))
                parts.append(entry)
                size += len(entry)
            await ledger.append(parts)

    async def _carry_segment(self, segment: int) -> None:
        """Carry every live job whose entry stands in this segment."""
        index = self._ledger.index
        start = 0
        while index.in_segment.get(segment):
            batch: list[Row] = []
            size = 0
            for looked, row in enumerate(index.table.rows(start), 1):
                start = row.chunk.number[row.at] + 1
                if row.chunk.place[row.at] >> 32 == segment:
                    batch.append(row)
                    size += row.chunk.size[row.at]
                if size >= _BATCH or looked >= _SCAN:
                    break
            else:
                start = 0  # once more round: jobs restored out of order, or a batch in flight
            if batch:
                await self._carry(batch)
            else:
                await asyncio.sleep(0)

    async def _carry(self, rows: list[Row]) -> None:
        """Append carry entries for these jobs and wait; jobs that ended meanwhile are passed over."""
        ledger = self._ledger
        journal = ledger.journal
        first = journal.next_sequence
        parts: list[bytes] = []
        moved: list[tuple[int, int, int, dict[str, Any] | None]] = []
        for row in rows:
            number, place = row.chunk.number[row.at], row.chunk.place[row.at]
            job, payload = self._whole(row)
            entry = encode_carry(job, payload, first + len(parts))
            moved.append((number, place, len(entry), job.error))
            parts.append(entry)

        def carried(location: Location) -> None:
            place = location.segment << 32 | location.offset
            for number, old, size, error in moved:
                ledger.index.carried(number, old, place, size, error)
                ledger.forget_entry(number)  # the new one has the error, too
                place += size

        await journal.append(parts, journal.take_sequences(len(parts)), carried)
        self.carried += len(parts)

    def _whole(self, row: Row) -> tuple[LiveJob, bytes]:
        """A job with everything that is known of it, and its payload."""
        ledger = self._ledger
        chunk, at = row
        number, place = chunk.number[at], chunk.place[at]
        try:
            loaded = ledger.index.load(row, ledger.entry(row))
            payload = loaded.payload
            job = ledger.index.leased.get(number) or loaded.job
        except (DamagedJournal, Damaged, Newer) as damage:
            job, payload = ledger.unreadable(row, damage), b""
        ledger.add_error(row, job)
        if job.options.expires and number not in ledger.index.expires:  # it was kicked
            job.options = msgspec.structs.replace(job.options, expires=0)
        if job.state is not State.RESERVED:
            job.nonce = 0
        job.place = place
        return job, payload
