"""The worker that runs many attempts at once, each a task on one event loop, cancelled at its ttr."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Collection, Mapping
from time import monotonic
from typing import Any

from ..core.outcome import Attempted, Reason, Settlement
from ..errors import CallError, ConnectionFailed
from ..ports import AsyncRunner
from .aiolink import AsyncLink
from .attempt import (
    EXIT_RECYCLED,
    FRESH,
    REVOKE,
    WAIT,
    Recycling,
    Unreadable,
    Usual,
    job_of,
)
from .capture import Capture
from .link import Leased
from .log import WorkerLog
from .marker import Held, Marker
from .python import reason_of
from .spec import WorkerSpec
from .task import RunningAttempt, current

#: Seconds until a refused or failed reserve is made again.
_PAUSE = 1.0


class ConcurrentWorker:
    """Reserves, runs, settles, several attempts at once.

    A job whose worker died before is run when nothing else does: if it does it again, no other pays for it.

    Args:
        spec: what to run.
        runners: by job type.
        link: the connection.
        marker: where the supervisor sees which attempts run.
        log: where lines go.
        capture: where output that is no task's is logged from, or None.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        runners: Mapping[str, AsyncRunner],
        link: AsyncLink,
        marker: Marker,
        log: WorkerLog,
        capture: Capture | None,
    ) -> None:
        self.link = link
        self.log = log
        self.marker = marker
        self.keep_alive = spec.keep_alive
        self.busy = threading.Event()
        self._runners = runners
        self._capture = capture
        self._free = list(range(spec.concurrency))
        self._running: dict[int, RunningAttempt] = {}
        self._held: deque[tuple[float, Leased]] = deque()
        self._suspect: tuple[float, Leased] | None = None
        self._usual = Usual(spec.prefetch)
        self._recycling = Recycling(spec)
        self._changed = asyncio.Event()
        self._ended_last = monotonic()
        self._nothing_ahead = False  # since the last attempt ended
        self._stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pid = os.getpid()
        self._context = contextvars.copy_context()

    def stop(self) -> None:
        """SIGTERM: finish the attempts that run, give back what is held, exit."""
        self._stopping = True
        self._changed.set()

    def background(self, coroutine: Any) -> asyncio.Task[Any]:
        """A task of the worker's own, in no attempt's context."""
        task = asyncio.get_running_loop().create_task(coroutine, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen; a link that failed is told by ``gone``

    async def run(self) -> int:
        """Work until told to stop; returns the exit status.

        Raises:
            ConnectionFailed: the server is gone.
        """
        self.link.gone.add_done_callback(lambda _gone: self._changed.set())
        asking: asyncio.Task[Any] | None = None
        while not (self._stopping or self._recycling.due):
            self._changed.clear()
            self._begin()
            if asking is None and (wanted := self._wanted()):
                asking = self.background(self._ask(wanted))
            await self._changed.wait()
            self._check_link()
            if asking is not None and asking.done():
                asking = None
        if asking is not None and not asking.done():
            asking.cancel()  # what it gets after all, the supervisor releases
        self._release([lease for _since, lease in self._held])
        self._release([self._suspect[1]] if self._suspect is not None else [])
        self._held.clear()
        self._suspect = None
        while self._running:
            self._changed.clear()
            await self._changed.wait()
            self._check_link()
        await self.link.close()
        return EXIT_RECYCLED if self._recycling.due and not self._stopping else 0

    def _check_link(self) -> None:
        if self.link.gone.done():
            raise ConnectionFailed("the server is gone", sent=True)

    # -- leases ---------------------------------------------------------------------------------

    def _wanted(self) -> int:
        """How many to ask for: the free slots, and what the prefetch time allows beyond them."""
        if self._suspect is not None:
            return 0
        moving = monotonic() - self._ended_last < REVOKE  # else nothing is known of those that run
        ahead = self._usual.ahead if moving else 0
        if not self._free and self._nothing_ahead:
            return 0
        room = len(self._free) + ahead - len(self._held)
        return room if self._free or len(self._held) <= ahead // 2 else 0

    async def _ask(self, wanted: int) -> None:
        asked = monotonic()
        try:
            leases = await self.link.reserve(wanted, WAIT if self._free else 0.0)
        except CallError as error:
            self.log.error(f"cannot reserve: {error}")
            await asyncio.sleep(_PAUSE)
            leases = []
        finally:
            self._changed.set()
        self._nothing_ahead = not leases
        now = monotonic()
        since = asked if now - asked < FRESH else now
        for lease in leases:
            if not lease.deaths:
                self._held.append((since, lease))
            elif self._suspect is None:
                self._suspect = since, lease
                self.marker.wait(lease.receipt)
            else:
                self._release([lease])
        self._mark()

    def _mark(self) -> None:
        held = [lease for _since, lease in self._held] + [a.lease for a in self._running.values()]
        if self._suspect is not None:
            held.append(self._suspect[1])
        self.marker.hold(Held(lease.receipt, lease.id, lease.type) for lease in held)

    def _release(self, leases: Collection[Leased]) -> None:
        for lease in leases:
            self.link.settle(Settlement(lease.receipt, "release"))

    def _begin(self) -> None:
        """Start what may start now."""
        if self._stopping or self._recycling.due:
            return
        if self._suspect is not None:
            self._release([lease for _since, lease in self._held])
            self._held.clear()
            if not self._running:
                since, lease = self._suspect
                self._start(lease, since)
        else:
            while self._free and self._held:
                since, lease = self._held.popleft()
                self._start(lease, since)
        self._follow()

    def _follow(self) -> None:
        busy = bool(self._running)
        (self.busy.set if busy else self.busy.clear)()
        if self._capture is not None:
            self._capture.follow(busy)

    # -- attempts -------------------------------------------------------------------------------

    def _start(self, lease: Leased, since: float) -> None:
        slot = self._free.pop()
        attempt = self._running[slot] = RunningAttempt(self, lease, slot, since)
        self.marker.set(slot, lease.receipt)
        context = self._context.copy()  # what a job sets there, no other sees
        context.run(current.set, attempt)
        task = asyncio.get_running_loop().create_task(self._attempt(attempt), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    async def _attempt(self, attempt: RunningAttempt) -> None:
        attempt.task = asyncio.current_task()
        lease, begun = attempt.lease, monotonic()
        settlement = Settlement(lease.receipt, "release")
        try:
            if attempt.ended_by is not None:
                return
            if begun - attempt.since > min(FRESH, lease.ttr / 4):
                if not await self.link.renew([lease.receipt]):
                    return  # lost, or not wanted any more
                attempt.since = begun
            if lease.type not in self.keep_alive:
                attempt.start_clock(attempt.since + lease.ttr - begun, "ttr")
            elif limit := self.keep_alive[lease.type]:
                attempt.start_clock(limit, "max_runtime")
            attempted = await self._run(attempt)
            settlement = attempted.settlement(lease.receipt, monotonic() - begun)
        except asyncio.CancelledError as error:
            ended = Attempted("again", None, reason_of(error))  # the handler cancelled its own task
            if attempt.ended_by is not None:
                ended = Attempted("again", 0.0, attempt.ended_by)
            settlement = ended.settlement(lease.receipt, monotonic() - begun)
        except (CallError, ConnectionFailed):
            pass  # of the renewal; the worker ends for it
        finally:
            attempt.stop_clock()
            self._ended(attempt, settlement, monotonic() - begun)

    async def _run(self, attempt: RunningAttempt) -> Attempted:
        lease = attempt.lease
        runner = self._runners[lease.type]
        payload = lease.payload
        try:
            job = job_of(lease, payload, attempt, decodes=runner.decodes)
            attempted = await runner.arun(job, payload)
        except Unreadable as unreadable:
            return unreadable.attempted
        except Exception as error:
            return Attempted("again", None, reason_of(error))
        if attempt.ended_by is not None:  # whatever it said on its way out
            return Attempted("again", 0.0, attempt.ended_by)
        return attempted

    def _ended(self, attempt: RunningAttempt, settlement: Settlement, took: float) -> None:
        if os.getpid() != self._pid:
            os._exit(0)  # a child the handler forked came back with it: it is no worker
        attempt.lines.end(attempt)
        if self._capture is not None:
            self._capture.end()
        if not self.link.gone.done():
            self.link.settle(settlement)
        self._ended_last = monotonic()
        self._nothing_ahead = False
        self._usual.took(took)
        self._recycling.done(self._ended_last)
        del self._running[attempt.slot]
        self.marker.set(attempt.slot, "")
        self._free.append(attempt.slot)
        if self._suspect is not None and self._suspect[1] is attempt.lease:
            self._suspect = None
            self.marker.wait("")
        self._begin()
        self._changed.set()

    def look(self) -> None:
        """Now and then while attempts run: stop cancelled ones, give back what none of them comes to."""
        for attempt in list(self._running.values()):
            if self.marker.cancelled(attempt.slot, attempt.lease.receipt):
                attempt.end(Reason("the job was cancelled", "cancelled"))
        if self._held and monotonic() - self._ended_last > REVOKE:
            self._release([lease for _since, lease in self._held])
            self._held.clear()
        if self._suspect is not None and self._running:
            since, lease = self._suspect
            if monotonic() - since > lease.ttr / 3:
                self.background(self._keep(lease))

    async def _keep(self, suspect: Leased) -> None:
        """Keep the lease of a job that waits until it is alone."""
        now = monotonic()
        kept = bool(await self.link.renew([suspect.receipt]))
        if self._suspect is not None and self._suspect[1] is suspect:
            self._suspect = (now, suspect) if kept else None
            if not kept:
                self.marker.wait("")
                self._changed.set()
