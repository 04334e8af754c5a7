"""The event loop of a worker that runs many attempts at once, and the thread that watches it.

An attempt that keeps the loop from running can't be cancelled: the thread notices and names it on the marker,
and the supervisor ends the process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Collection, Mapping
from time import sleep
from typing import Any
from weakref import WeakKeyDictionary

from ..ports import AsyncRunner
from .aiolink import AsyncLink
from .capture import Capture, Lines, TaskOutput
from .concurrent import ConcurrentWorker
from .log import WorkerLog
from .marker import Marker
from .spec import WorkerSpec
from .task import RunningAttempt, current

#: How often attempts that run are looked at, seconds.
LOOK = 0.1
#: A loop that did not run for this long is blocked, seconds.
BLOCKED = 0.25


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
    owners: WeakKeyDictionary[asyncio.Task[Any], RunningAttempt] = WeakKeyDictionary()

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **more)
        context = more.get("context")
        attempt = current.get() if context is None else context.get(current)
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
        # Not after what was ready beside it: that is the parent's, as are the sockets it would speak on.
        ready = loop._ready  # type: ignore[attr-defined]
        rest = len(ready)
        ready.clear()
        for _ in range(rest + 1):
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


def _lines() -> tuple[Lines, RunningAttempt] | None:
    attempt = current.get()
    return None if attempt is None else (attempt.lines, attempt)


class _Watch(threading.Thread):
    """Looks, from outside of the loop, whether it runs while attempts do."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: ConcurrentWorker,
        marker: Marker,
        owners: Mapping[asyncio.Task[Any], RunningAttempt],
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
