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
import structlog

from ..core.job import BulkRef, NewJob
from ..core.wire import encode_error, encode_reply
from ..errors import CallError, Internal, JournalFailed
from ..ports import BulkStore, Engine, Inserted
from .calllog import CallLog
from .metrics import Metrics

if TYPE_CHECKING:
    from .server import Connection


class _Calls(NamedTuple):
    """Insert calls of one connection, one after the other.

    Attributes:
        connection: who asked.
        id_parts: of the replies, one a call.
        first: their jobs are ``batch[first : first + jobs]``.
        jobs: how many.
        array: whether this is one call with an array of jobs; otherwise every job is a call.
        received: loop time when their bytes came.
        size: bytes of them all.
    """

    connection: Connection
    id_parts: list[bytes]
    first: int
    jobs: int
    array: bool
    received: float
    size: int

    def replies(self, inserted: Inserted) -> list[bytes]:
        """The answers, given what became of the whole batch."""
        own = inserted.ids[self.first : self.first + self.jobs]
        if inserted.duplicates:
            return self._with_duplicates(own, inserted.duplicates)
        if self.array:
            return [encode_reply(self.id_parts[0], b'{"ids":%b}' % msgspec.json.encode(own))]
        return [
            b'{"v":1,%b"e":null,"s":"end","m":{"id":"%b"}}\n' % (id_part, id.encode())
            for id_part, id in zip(self.id_parts, own, strict=True)
        ]

    def _with_duplicates(self, ids: list[str], duplicates: tuple[int, ...]) -> list[bytes]:
        """:meth:`replies` where some job of the batch had a known idempotency key."""
        own = [position - self.first for position in duplicates if 0 <= position - self.first < self.jobs]
        if self.array:
            reply = {"ids": ids, "duplicates": own} if own else {"ids": ids}
            return [encode_reply(self.id_parts[0], msgspec.json.encode(reply))]
        replies = ({"id": id, "duplicate": True} if at in own else {"id": id} for at, id in enumerate(ids))
        return [
            encode_reply(id_part, msgspec.json.encode(reply))
            for id_part, reply in zip(self.id_parts, replies, strict=True)
        ]


class Intake:
    """Takes valid jobs, makes them durable, replies.

    Args:
        engine: where they go.
        bulk: where oversize payloads go.
        threshold: payloads above this many bytes are oversize.
        metrics, log: told of every call.
        monotonic: seconds that never run backwards.
    """

    def __init__(
        self,
        engine: Engine,
        bulk: BulkStore,
        threshold: int,
        metrics: Metrics,
        log: CallLog,
        monotonic: Callable[[], float] = monotonic,
    ) -> None:
        self._engine = engine
        self._bulk = bulk
        self._threshold = threshold
        self._metrics = metrics
        self._log = log
        self._monotonic = monotonic
        self._jobs: list[NewJob] = []
        self._calls: list[_Calls] = []
        self._begun = 0.0
        self._scheduled = False
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.unsynced = 0
        #: Called once, when what waited for the disk is durable; set by the server while it holds up reading.
        self.on_drained: Callable[[], None] | None = None

    def add(
        self,
        connection: Connection,
        id_parts: list[bytes],
        jobs: list[NewJob],
        received: float,
        size: int,
        *,
        array: bool = False,
    ) -> None:
        """Queue calls for this turn's batch.

        Args:
            connection: who asked; its ``in_flight`` counts the calls already.
            id_parts: of the replies: one for each job, or only one for an array.
            jobs: valid jobs, at least one.
            received: loop time when the calls' bytes came.
            size: bytes of the calls.
            array: whether the jobs are an array and the answer is one.
        """
        own = self._jobs
        calls = _Calls(connection, id_parts, len(own), len(jobs), array, received, size)
        threshold = self._threshold
        if any(len(job.data) > threshold for job in jobs):
            self._add_oversize(calls, jobs)
            return
        if not self._scheduled:
            self._scheduled = True
            self._begun = self._monotonic()
            asyncio.get_running_loop().call_soon(self.flush)
        self._calls.append(calls)
        own.extend(jobs)
        self.unsynced += size

    def _add_oversize(self, calls: _Calls, jobs: list[NewJob]) -> None:
        """Calls with an oversize payload among them; each is for itself, so that none fails with another."""
        if len(calls.id_parts) == 1:
            self._spawn(self._oversize(calls._replace(first=0), jobs))
            return
        for id_part, job in zip(calls.id_parts, jobs, strict=True):
            self.add(calls.connection, [id_part], [job], calls.received, calls.size // len(jobs))

    def flush(self) -> None:
        """Send this turn's batch on its way."""
        self._scheduled = False
        if self._calls:
            jobs, calls = self._jobs, self._calls
            self._jobs, self._calls = [], []
            self._spawn(self._put(jobs, calls, self._begun))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _oversize(self, calls: _Calls, jobs: list[NewJob]) -> None:
        """Payloads above the threshold go to the bulk store first, durably; only then is the job accepted."""
        begun = self._monotonic()
        self.unsynced += calls.size
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
            self._refuse([calls], error, begun)
            return
        inserted = await self._put(jobs, [calls], begun)
        unused = range(len(jobs)) if inserted is None else inserted.duplicates
        refs = [bulk for position in unused if (bulk := jobs[position].options.bulk) is not None]
        if refs:
            await self._bulk.delete(refs)

    async def _put(self, jobs: list[NewJob], batch: list[_Calls], begun: float) -> Inserted | None:
        """Put a batch into the engine and answer its calls; None when it was refused."""
        try:
            inserted = await self._engine.put(jobs)
        except CallError as error:
            self._refuse(batch, error, begun)
            return None
        except JournalFailed as failure:
            # What was stored stays: the job may be there after a restart.
            self._refuse(batch, Internal(f"{failure}; whether the job was accepted is unknown"), begun)
            return Inserted([])
        except Exception:
            # Nobody foresaw it; the callers must learn, and their connections must not count them for ever.
            structlog.get_logger().exception("bug", call="insert")
            self._refuse(batch, Internal("internal error in insert; whether it was done is unknown"), begun)
            return Inserted([])
        replies: dict[Connection, list[bytes]] = {}
        for calls in batch:
            replies.setdefault(calls.connection, []).extend(calls.replies(inserted))
        self._settle_bytes(sum(calls.size for calls in batch))
        for connection, lines in replies.items():
            connection.answer(b"".join(lines), len(lines))
        self._note(batch[0], sum(map(len, replies.values())), begun, self._monotonic() - begun)
        return inserted

    def _refuse(self, batch: list[_Calls], error: CallError, begun: float) -> None:
        duration = self._monotonic() - begun
        self._settle_bytes(sum(calls.size for calls in batch))
        for calls in batch:
            times = len(calls.id_parts)
            calls.connection.answer(b"".join(encode_error(part, error) for part in calls.id_parts), times)
            self._note(calls, times, begun, duration, error.code)
            self._metrics.failed("insert", error.code, times)

    def _note(self, like: _Calls, times: int, begun: float, duration: float, outcome: str = "ok") -> None:
        """Count and log calls that were answered together, all as if they were these."""
        latency = begun - like.received
        size = like.size // len(like.id_parts)
        self._metrics.done("insert", latency, duration, times)
        self._log.note("insert", like.connection.peer, latency, duration, size, outcome, times)

    def _settle_bytes(self, size: int) -> None:
        self.unsynced -= size
        if self.on_drained is not None:
            drained, self.on_drained = self.on_drained, None
            asyncio.get_running_loop().call_soon(drained)

    async def finish(self) -> None:
        """Return when every call taken so far is answered."""
        self.flush()
        while self._tasks:
            await asyncio.wait(list(self._tasks))
