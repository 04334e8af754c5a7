"""``python -m kqs.runners.worker FD..``: a worker process.

Its supervisor starts it with a connected socket, a :mod:`marker <kqs.runners.marker>` and, where output is
captured, its :mod:`streams <kqs.runners.capture>`, tells it on stdin what to run, and is the only one to end
an attempt that can't be ended from inside: it kills this process.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from fcntl import F_GETFD, fcntl
from time import monotonic
from typing import Any

import msgspec

from ..core.outcome import Attempted, Settlement
from ..errors import ConfigError, ConnectionFailed
from ..ports import AsyncRunner, Runner
from .attempt import EXIT_RECYCLED, FRESH, PROGRESS_EVERY, WAIT, Recycling, Unreadable, Usual, job_of, limited
from .capture import Capture, Stream
from .link import Leased, Link
from .load import load
from .log import WorkerLog, configure
from .loop import run_concurrent
from .marker import Held, Marker
from .process import die_with_parent, parent_is
from .python import OneAtATime, reason_of, wire_text
from .spec import WorkerSpec

EXIT_BAD_HANDLERS = 3
EXIT_ORPHANED = 4


class _Stop(Exception):
    """Told to stop while waiting for work."""


class Worker:
    """Reserves, runs, settles, one attempt at a time.

    Args:
        spec: what to run.
        runners: by job type.
        link: the connection.
        marker: where the supervisor sees which attempt runs.
        capture: where output is logged from, or None.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        runners: Mapping[str, Runner],
        link: Link,
        marker: Marker,
        capture: Capture | None,
    ) -> None:
        self._runners = runners
        self._link = link
        self._marker = marker
        self._capture = capture
        self._held: deque[tuple[float, Leased]] = deque()
        self._asked: str | None = None
        self._asked_at = 0.0
        self._usual = Usual(spec.prefetch)
        self._recycling = Recycling(spec)
        self._pid = os.getpid()
        self._waiting = False
        self._stopping = False

    def stop(self, _number: int, _frame: Any) -> None:
        """SIGTERM: finish the attempt that runs, give back what is held, exit."""
        if os.getpid() != self._pid:  # a process the handler forked has the handler's right to be ended
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._stopping = True
        if self._waiting:
            raise _Stop

    def run(self) -> int:
        """Work until told to stop; returns the exit status.

        Raises:
            ConnectionFailed, OSError: the server is gone.
        """
        try:
            while not (self._stopping or self._recycling.due):
                self._fill()
                if not self._held:
                    continue
                since, lease = self._held.popleft()
                if monotonic() - since < min(FRESH, lease.ttr / 4) or self._renewed(lease):
                    self._attempt(lease)
        except _Stop:
            pass
        for _since, lease in self._held:
            self._link.settle(Settlement(lease.receipt, "release"))
        self._link.flush()
        self._marker.set(0, "")  # whatever ran is settled
        return EXIT_RECYCLED if self._recycling.due and not self._stopping else 0

    def _renewed(self, first: Leased) -> bool:
        """Renew a lease that may be lost by now, and those that wait behind it; whether it can be begun.

        What is more than a worker may hold is given back: those before it took longer than was thought.
        """
        keep = max(1, self._usual.ahead)
        waiting = [first, *(lease for _since, lease in self._held)]
        for lease in waiting[keep:]:
            self._link.settle(Settlement(lease.receipt, "release"))
        del waiting[keep:]
        now = monotonic()
        current = self._link.renew([lease.receipt for lease in waiting])
        self._held = deque((now, lease) for lease in waiting[1:] if lease.receipt in current)
        for lease in waiting:
            if lease.receipt not in current:  # lost, or not wanted any more
                self._link.settle(Settlement(lease.receipt, "release"))
        return first.receipt in current

    def _fill(self) -> None:
        """Have work: ask ahead of time while what is held lasts, wait when nothing is."""
        wanted = max(1, self._usual.ahead)
        if self._asked is None and len(self._held) <= wanted // 2:
            idle = not self._held
            if idle or wanted > 1:
                self._asked = self._link.ask(wanted - len(self._held), WAIT if idle else 0.0)
                self._asked_at = 0.0 if idle else monotonic()
        if self._held or self._asked is None:
            return
        self._link.flush()
        self._marker.set(0, "")
        self._follow(False)
        try:
            self._waiting = True
            if self._stopping:
                raise _Stop
            leases = self._link.leases(self._asked)
        finally:
            self._waiting = False
        self._follow(True)
        self._asked = None
        since = self._asked_at or monotonic()  # asked ahead, they may have been on their way for long
        self._held.extend((since, lease) for lease in leases)
        self._marker.hold(Held(lease.receipt, lease.id, lease.type) for lease in leases)

    def _follow(self, busy: bool) -> None:
        if self._capture is not None:
            self._capture.follow(busy)

    def _attempt(self, lease: Leased) -> None:
        """Run one attempt and say what came of it.

        The marker keeps naming it until the next one runs or what was said is sent: an attempt that ruins
        its worker (closes the socket, say) is the one to blame.
        """
        begun = monotonic()
        self._marker.set(0, lease.receipt)
        if self._capture is not None:
            self._capture.begin(lease)
        attempted = self._run(lease)
        self._mend()
        ended = monotonic()
        self._usual.took(ended - begun)
        self._recycling.done(ended)
        self._link.settle(attempted.settlement(lease.receipt, ended - begun))

    def _mend(self) -> None:
        """Undo what a handler did to what all jobs of this process share; log what it printed."""
        if os.getpid() != self._pid:
            os._exit(0)  # a child the handler forked came back with it: it is no worker
        if signal.getsignal(signal.SIGTERM) != self.stop:
            signal.signal(signal.SIGTERM, self.stop)
        if signal.pthread_sigmask(signal.SIG_BLOCK, ()):
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if self._capture is not None:
            self._capture.end()
        try:
            for stream in (0, 1, 2):
                fcntl(stream, F_GETFD)
        except OSError:
            self._stopping = True  # closed; the worker that follows has them again

    def _run(self, lease: Leased) -> Attempted:
        payload = lease.payload
        runner = self._runners[lease.type]
        try:
            link = _JobLink(self._link, self._marker, lease.receipt)
            job = job_of(lease, payload, link, decodes=runner.decodes)
            return runner.run(job, payload)
        except Unreadable as unreadable:
            return unreadable.attempted
        except Exception as error:
            return Attempted("again", None, reason_of(error))


class _JobLink:
    """See :class:`kqs.core.handler.JobLink`."""

    def __init__(self, link: Link, marker: Marker, receipt: str) -> None:
        self._link = link
        self._marker = marker
        self._receipt = receipt
        self._told = 0.0
        self._lost = False

    @property
    def cancelled(self) -> bool:
        return self._lost or self._marker.cancelled(0, self._receipt)

    def progress(self, fraction: float | None, message: str) -> None:
        now = monotonic()
        if now - self._told >= PROGRESS_EVERY or fraction == 1:
            self._told = now
            self._link.progress(self._receipt, limited(fraction), wire_text(message, 1000))

    def renew(self) -> bool:
        if not self._link.renew([self._receipt]):
            self._lost = True
        return not self.cancelled


def main() -> int:
    socket_fd, marker_fd, parent, *captured = (int(text) for text in sys.argv[1:])
    die_with_parent()
    if not parent_is(parent):
        return EXIT_ORPHANED
    for fd in (socket_fd, marker_fd, *captured):
        os.set_inheritable(fd, False)
    with os.fdopen(0, "rb", closefd=False) as stdin:
        spec = msgspec.json.decode(stdin.read(), type=WorkerSpec)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a handler prints is seen when it prints it
    capture = None
    if captured:
        log_fd, *reads = captured
        log = configure(log_fd)
        writes = (os.dup(1), os.dup(2))
        capture = Capture([Stream(*fds) for fds in zip(writes, reads, strict=True)], log.printed)
    else:
        log = configure(2)
    runners, errors = load(spec)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = _work(spec, runners, errors, socket.socket(fileno=socket_fd), marker_fd, log, capture)
    except (ConnectionFailed, OSError):
        status = EXIT_ORPHANED
    if capture is not None:
        capture.end()
    return status


def _work(
    spec: WorkerSpec,
    runners: Mapping[str, Runner | AsyncRunner],
    errors: list[ConfigError],
    sock: socket.socket,
    marker_fd: int,
    log: WorkerLog,
    capture: Capture | None,
) -> int:
    """Work as the pool says until it is over; types whose handlers are broken are not asked for."""
    marker = Marker(spec.concurrency, marker_fd)
    at_once = {type_: runner for type_, runner in runners.items() if isinstance(runner, AsyncRunner)}
    alone = {type_: runner for type_, runner in runners.items() if not isinstance(runner, AsyncRunner)}
    if spec.concurrency > 1 and alone:
        names = ", ".join(sorted(alone))
        errors.append(
            ConfigError(f"pool {spec.pool!r} has concurrency, and these handlers are not async: {names}")
        )
    for error in errors:
        log.error(f"{spec.name}: {error}")
    fit = at_once if spec.concurrency > 1 else runners
    if not fit:
        return EXIT_BAD_HANDLERS
    types = sorted(fit) if errors else None
    if spec.concurrency > 1:
        return run_concurrent(spec, at_once, marker, log, capture, sock, types)
    for type_, runner in at_once.items():
        alone[type_] = OneAtATime(runner)
    worker = Worker(spec, alone, Link(sock, types), marker, capture)
    signal.signal(signal.SIGTERM, worker.stop)
    return worker.run()


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    with suppress(OSError, ValueError):  # closed by a handler
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # threads a handler left behind must not keep the process
