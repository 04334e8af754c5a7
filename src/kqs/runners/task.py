"""One attempt of a worker that runs many at once: its time, and its job's way to the server."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..core.outcome import Reason
from .attempt import PROGRESS_EVERY, limited
from .capture import Lines
from .link import Leased
from .python import wire_text

if TYPE_CHECKING:
    from .concurrent import ConcurrentWorker

#: The attempt whose code runs; tasks and threads it starts inherit it.
current: contextvars.ContextVar[RunningAttempt | None] = contextvars.ContextVar("kqs_attempt", default=None)


class RunningAttempt:
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
        self.task: asyncio.Task[Any] | None = None
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
        if self.ended_by is None:
            self.ended_by = reason
            if self.task is not None:  # else it has not begun, and won't
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
