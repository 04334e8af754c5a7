"""Insert calls: gathered over a turn of the loop, put into the engine as one batch, answered when durable.

One task and one append serve all the inserts that arrived in a turn, on whatever connections; a call's jobs
lie next to each other in the batch, so a call is in one commit frame and is all or nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..core.job import BulkRef, NewJob
from ..core.wire import encode_error, encode_reply
from ..errors import CallError, Internal, JournalFailed
from ..ports import BulkStore, Engine, Inserted
from .calllog import CallLog
from .metrics import Metrics

if TYPE_CHECKING:
    from .server import Connection


class _Call(NamedTuple):
    """One insert call: its jobs are ``batch[first : first + jobs]``; ``jobs`` 0 is a single job."""

    connection: Connection
    id_part: bytes
    first: int
    jobs: int
    received: float
    size: int


class Intake:
    """Takes valid jobs, makes them durable, replies.

    Args:
        engine: where they go.
        bulk: where oversize payloads go.
        threshold: payloads above this many bytes are oversize.
        metrics, log: told of every call.
    """

    def __init__(
        self, engine: Engine, bulk: BulkStore, threshold: int, metrics: Metrics, log: CallLog
    ) -> None:
        self._engine = engine
        self._bulk = bulk
        self._threshold = threshold
        self._metrics = metrics
        self._log = log
        self._jobs: list[NewJob] = []
        self._calls: list[_Call] = []
        self._begun = 0.0
        self._scheduled = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.unsynced = 0
        #: Called once, when what waited for the disk is durable; set by the server while it holds up reading.
        self.on_drained: Callable[[], None] | None = None

    def add(
        self,
        connection: Connection,
        id_part: bytes,
        jobs: list[NewJob],
        received: float,
        size: int,
        batch: bool,
    ) -> None:
        """Queue one call for this turn's batch.

        Args:
            connection: who asked; its ``in_flight`` counts the call already.
            id_part: of the reply.
            jobs: valid jobs, at least one.
            received: loop time when the call's bytes came.
            size: bytes of the call.
            batch: whether the argument was an array.
        """
        threshold = self._threshold
        if any(len(job.data) > threshold for job in jobs):
            self._spawn(
                self._oversize(_Call(connection, id_part, 0, len(jobs) if batch else 0, received, size), jobs)
            )
            return
        own = self._jobs
        if not self._scheduled:
            self._scheduled = True
            self._begun = monotonic()
            asyncio.get_running_loop().call_soon(self.flush)
        self._calls.append(_Call(connection, id_part, len(own), len(jobs) if batch else 0, received, size))
        own.extend(jobs)
        self.unsynced += size

    def add_one(
        self, connection: Connection, id_part: bytes, job: NewJob, received: float, size: int
    ) -> None:
        """:meth:`add` for a single job: the hot path."""
        if len(job.data) > self._threshold:
            self._spawn(self._oversize(_Call(connection, id_part, 0, 0, received, size), [job]))
            return
        own = self._jobs
        if not self._scheduled:
            self._scheduled = True
            self._begun = monotonic()
            asyncio.get_running_loop().call_soon(self.flush)
        self._calls.append(_Call(connection, id_part, len(own), 0, received, size))
        own.append(job)
        self.unsynced += size

    def flush(self) -> None:
        """Send this turn's batch on its way."""
        self._scheduled = False
        if self._calls:
            jobs, calls = self._jobs, self._calls
            self._jobs, self._calls = [], []
            self._spawn(self._put(jobs, calls, self._begun))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _oversize(self, call: _Call, jobs: list[NewJob]) -> None:
        """Payloads above the threshold go to the bulk store first, durably; only then is the job accepted."""
        begun = monotonic()
        self.unsynced += call.size
        stored: list[BulkRef] = []
        try:
            for position, job in enumerate(jobs):
                if len(job.data) > self._threshold:
                    ref = await self._bulk.put(job.data)
                    stored.append(ref)
                    options = msgspec.structs.replace(job.options, bulk=ref)
                    jobs[position] = NewJob(job.type, b"", job.binary, job.prio, job.delay, job.ttr, options)
        except CallError as error:
            await self._bulk.delete(stored)
            self._refuse([call], error, begun)
            return
        inserted = await self._put(jobs, [call], begun)
        unused = range(len(jobs)) if inserted is None else inserted.duplicates
        refs = [bulk for position in unused if (bulk := jobs[position].options.bulk) is not None]
        if refs:
            await self._bulk.delete(refs)

    async def _put(self, jobs: list[NewJob], calls: list[_Call], begun: float) -> Inserted | None:
        """Put a batch into the engine and answer its calls; None when it was refused."""
        try:
            inserted = await self._engine.put(jobs)
        except CallError as error:
            self._refuse(calls, error, begun)
            return None
        except JournalFailed as failure:
            # What was stored stays: the job may be there after a restart.
            self._refuse(calls, Internal(f"{failure}; whether the job was accepted is unknown"), begun)
            return Inserted([])
        ids, duplicates = inserted.ids, inserted.duplicates
        replies: dict[Connection, list[bytes]] = {}
        last: Connection | None = None
        out: list[bytes] = []
        size = 0
        for connection, id_part, first, count, _received, call_size in calls:
            if connection is not last:
                last = connection
                out = replies.setdefault(connection, [])
            size += call_size
            if duplicates:
                out.append(encode_reply(id_part, _with_duplicates(inserted, first, count)))
            elif count == 0:
                out.append(b'{"v":1,%b"e":null,"s":"end","m":{"id":"%b"}}\n' % (id_part, ids[first].encode()))
            else:
                out.append(
                    encode_reply(id_part, b'{"ids":%b}' % msgspec.json.encode(ids[first : first + count]))
                )
        self._settle_bytes(size)
        for connection, lines in replies.items():
            connection.answer(b"".join(lines), len(lines))
        call = calls[0]
        latency, duration = begun - call.received, monotonic() - begun
        self._metrics.done("insert", latency, duration, len(calls))
        self._log.note("insert", call.connection.peer, latency, duration, call.size, times=len(calls))
        return inserted

    def _refuse(self, calls: list[_Call], error: CallError, begun: float) -> None:
        duration = monotonic() - begun
        self._settle_bytes(sum(call.size for call in calls))
        for call in calls:
            call.connection.answer(encode_error(call.id_part, error), 1)
            latency = begun - call.received
            self._metrics.done("insert", latency, duration)
            self._metrics.failed("insert", error.code)
            self._log.note("insert", call.connection.peer, latency, duration, call.size, error.code)

    def _settle_bytes(self, size: int) -> None:
        self.unsynced -= size
        if self.on_drained is not None:
            drained, self.on_drained = self.on_drained, None
            asyncio.get_running_loop().call_soon(drained)

    async def finish(self) -> None:
        """Return when every call taken so far is answered."""
        self.flush()
        while self._tasks:
            await asyncio.wait(set(self._tasks))


def _with_duplicates(inserted: Inserted, first: int, count: int) -> bytes:
    """A call's reply where some call of its batch met a known idempotency key."""
    if count == 0:
        reply: dict[str, object] = {"id": inserted.ids[first]}
        if first in inserted.duplicates:
            reply["duplicate"] = True
    else:
        reply = {"ids": inserted.ids[first : first + count]}
        if own := [position - first for position in inserted.duplicates if first <= position < first + count]:
            reply["duplicates"] = own
    return msgspec.json.encode(reply)
