"""The worker that runs many attempts at once, each a task on one event loop.

An attempt that is over its ttr is cancelled here. One that keeps the loop from running can't be: a thread
notices and names it on the marker, and the supervisor ends the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Collection, Mapping
from time import monotonic, sleep
from typing import Any
from weakref import WeakKeyDictionary

from ..core.outcome import Attempted, Reason, Settlement
from ..errors import CallError, ConnectionFailed
from ..ports import AsyncRunner
from .aiolink import AsyncLink
from .attempt import (
    EXIT_RECYCLED,
    FRESH,
    PROGRESS_EVERY,
    REVOKE,
    WAIT,
    Recycling,
    Unreadable,
    Usual,
    job_of,
    limited,
)
from .capture import Capture, Lines, TaskOutput
from .link import Leased
from .log import WorkerLog
from .marker import Held, Marker
from .python import reason_of, wire_text
from .spec import WorkerSpec

#: How often attempts that run are looked at, seconds.
LOOK = 0.1
#: A loop that did not run for this long is blocked, seconds.
BLOCKED = 0.25
#: Seconds until a refused or failed reserve is made again.
_PAUSE = 1.0

_current: contextvars.ContextVar[_Attempt | None] = contextvars.ContextVar("kqs_attempt", default=None)


def run_concurrent(
    spec: WorkerSpec,
    runners: Mapping[str, AsyncRunner],
    marker: Marker,
    log: WorkerLog,
    capture: Capture | None,
    sock: socket.socket,
    types: Collection[str] | None,
) -> int:
    """Work until told to stop; returns the exit status.

    Args:
        spec: what to run.
        runners: by job type.
        marker: where the supervisor sees which attempts run.
        log: where lines go.
        capture: where output that is no task's is logged from, or None.
        sock: connected to the server.
        types: job types to ask for, or None for all that the connection is for.

    Raises:
        ConnectionFailed: the server is gone.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    owners: WeakKeyDictionary[asyncio.Task[Any], _Attempt] = WeakKeyDictionary()

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **more)
        context = more.get("context")
        attempt = _current.get() if context is None else context.get(_current)
        if attempt is not None:
            owners[task] = attempt
        return task

    loop.set_task_factory(make_task)

    async def work() -> int:
        link = await AsyncLink.open(sock, types)
        worker = ConcurrentWorker(spec, runners, link, marker, log, capture)
        loop.add_signal_handler(signal.SIGTERM, worker.stop)
        _Watch(loop, worker, marker, owners).start()
        return await worker.run()

    def forked() -> None:
        """In a child a handler forked: it is no worker, and must not act as one when it comes back."""
        signal.set_wakeup_fd(-1)  # its signals are not the parent's
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        loop.call_soon(os._exit, 0)

    os.register_at_fork(after_in_child=forked)
    if capture is not None:
        TaskOutput.install(_lines)
    task = loop.create_task(work())
    while not task.done():
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt):
            continue  # raised by a task a handler made: it ends that task and the run of the loop, no more
    return task.result()


def _lines() -> tuple[Lines, _Attempt] | None:
    attempt = _current.get()
    return None if attempt is None else (attempt.lines, attempt)


class _Attempt:
    """One lease that has been begun; also its job's :class:`~kqs.core.handler.JobLink`.

    Args:
        worker: that runs it.
        lease: what is run.
        slot: its place on the marker.
        since: when it was leased, at the latest.
    """

    def __init__(self, worker: ConcurrentWorker, lease: Leased, slot: int, since: float) -> None:
        self.lease = lease
        self.slot = slot
        self.since = since
        self.lines = Lines(worker.log.printed)
        self.task: asyncio.Task[None] | None = None
        self.ended_by: Reason | None = None
        self.lost = False
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._told = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def id(self) -> str:
        return self.lease.id

    @property
    def type(self) -> str:
        return self.lease.type

    # -- its time -------------------------------------------------------------------------------

    def start_clock(self, seconds: float, kind: str) -> None:
        """End it in so many seconds from now; a call replaces the one before."""
        self.stop_clock()
        reason = Reason(f"{kind} of {self._limit(kind):g} s exceeded", "ttr")
        self._timer = self._loop.call_later(seconds, self.end, reason)

    def _limit(self, kind: str) -> float:
        return self.lease.ttr if kind == "ttr" else self._worker.keep_alive[self.lease.type]

    def stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self, reason: Reason) -> None:
        """Cancel it; what it comes to is told by the reason."""
        if self.ended_by is None and self.task is not None:
            self.ended_by = reason
            self.task.cancel()

    # -- the job's own calls: from the loop, or from a thread a handler started ------------------

    @property
    def cancelled(self) -> bool:
        return (
            self.lost
            or self.ended_by is not None
            or self._worker.marker.cancelled(self.slot, self.lease.receipt)
        )

    def progress(self, fraction: float | None, message: str) -> None:
        now = monotonic()
        if now - self._told >= PROGRESS_EVERY or fraction == 1:
            self._told = now
            told = limited(fraction), wire_text(message, 1000)
            self._on_loop(lambda: self._tell(*told))

    def renew(self) -> bool:
        """Send it; the answer is not waited for: a task whose lease turns out to be lost is cancelled."""
        self._on_loop(lambda: self._worker.background(self._renew()))
        return not self.cancelled

    def _on_loop(self, do: Any) -> None:
        if threading.get_ident() == self._thread:
            do()
        else:
            self._loop.call_soon_threadsafe(do)

    def _tell(self, fraction: float | None, message: str) -> None:
        if not self._worker.link.gone.done():
            self._worker.link.progress(self.lease.receipt, fraction, message)
            self._restart_clock(self.lease.ttr)

    def _restart_clock(self, seconds: float) -> None:
        if self._timer is not None and self.lease.type not in self._worker.keep_alive:
            self.start_clock(seconds, "ttr")

    async def _renew(self) -> None:
        sent = self._loop.time()
        if not await self._worker.link.renew([self.lease.receipt]):
            self.lost = True
            self.end(Reason("the job was cancelled, or its lease was lost", "cancelled"))
        else:
            self._restart_clock(sent + self.lease.ttr - self._loop.time())


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
        self._running: dict[int, _Attempt] = {}
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
        attempt = self._running[slot] = _Attempt(self, lease, slot, since)
        self.marker.set(slot, lease.receipt)
        context = self._context.copy()  # what a job sets there, no other sees
        context.run(_current.set, attempt)
        attempt.task = asyncio.get_running_loop().create_task(self._attempt(attempt), context=context)

    async def _attempt(self, attempt: _Attempt) -> None:
        lease, begun = attempt.lease, monotonic()
        settlement = Settlement(lease.receipt, "release")
        try:
            if begun - attempt.since > min(FRESH, lease.ttr / 4):
                if not await self.link.renew([lease.receipt]):
                    return  # lost, or not wanted any more
                attempt.since = begun
            if lease.type not in self.keep_alive:
                attempt.start_clock(attempt.since + lease.ttr - begun, "ttr")
            elif limit := self.keep_alive[lease.type]:
                attempt.start_clock(limit, "max_runtime")
            settlement = (await self._run(attempt)).settlement(lease.receipt)
        except asyncio.CancelledError:
            if attempt.ended_by is not None:
                settlement = Attempted("again", 0.0, attempt.ended_by).settlement(lease.receipt)
        except (CallError, ConnectionFailed):
            pass  # of the renewal; the worker ends for it
        finally:
            attempt.stop_clock()
            self._ended(attempt, settlement, monotonic() - begun)

    async def _run(self, attempt: _Attempt) -> Attempted:
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

    def _ended(self, attempt: _Attempt, settlement: Settlement, took: float) -> None:
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


class _Watch(threading.Thread):
    """Looks, from outside of the loop, whether it runs while attempts do."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: ConcurrentWorker,
        marker: Marker,
        owners: Mapping[asyncio.Task[Any], _Attempt],
    ) -> None:
        super().__init__(name="kqs-watch", daemon=True)
        self._loop = loop
        self._worker = worker
        self._marker = marker
        self._owners = owners

    def run(self) -> None:
        ran = threading.Event()

        def look() -> None:
            ran.set()
            self._worker.look()

        while self._worker.busy.wait():
            sleep(LOOK)
            ran.clear()
            try:
                self._loop.call_soon_threadsafe(look)
            except RuntimeError:
                return  # the loop is closed
            if not ran.wait(BLOCKED):
                task = asyncio.current_task(self._loop)
                attempt = self._owners.get(task) if task is not None else None
                if attempt is not None:
                    self._marker.block(attempt.lease.receipt)
                ran.wait()
                self._marker.block("")
