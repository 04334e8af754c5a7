"""``python -m kqs.runners.worker FD FD``: a worker process, one attempt at a time.

The server starts it with a connected socket and a :mod:`marker <kqs.runners.marker>` page, tells it on stdin
what to run, and is the only one to end an attempt that overruns its ttr: it kills this process.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import Any

import msgspec

from ..core.handler import Job
from ..core.outcome import Attempted, Reason, Settlement
from ..errors import ConfigError, ConnectionFailed
from ..ports import AsyncRunner, Runner
from .link import Leased, Link
from .load import load
from .marker import Marker
from .process import adopt_orphans, die_with_parent, parent_is
from .python import reason_of, wire_text
from .spec import WorkerSpec

#: Longest wait of a reserve, seconds; then it is asked again.
WAIT = 60.0
MAX_HELD = 1000
#: A lease held longer than this before its job starts is renewed first, seconds: it may be lost by then.
FRESH = 0.05
EXIT_BAD_HANDLERS = 3
EXIT_ORPHANED = 4


class _Stop(Exception):
    """Told to stop while waiting for work."""


class Worker:
    """Reserves, runs, settles.

    Args:
        spec: what to run.
        runners: by job type.
        link: the connection.
        marker: where the server sees which attempt runs.
    """

    def __init__(
        self, spec: WorkerSpec, runners: Mapping[str, Runner | AsyncRunner], link: Link, marker: Marker
    ) -> None:
        self._runners = runners
        self._loop: asyncio.Runner | None = None
        self._link = link
        self._marker = marker
        self._prefetch = spec.prefetch
        self._held: deque[tuple[float, Leased]] = deque()
        self._asked: str | None = None
        self._asked_at = 0.0
        self._usual = 0.0  # seconds an attempt takes, smoothed; a long one counts at once
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

    def run(self) -> None:
        """Work until told to stop.

        Raises:
            ConnectionFailed, OSError: the server is gone.
        """
        try:
            while not self._stopping:
                self._fill()
                if not self._held:
                    continue
                since, lease = self._held.popleft()
                if monotonic() - since < min(FRESH, lease.ttr / 4) or self._link.renew([lease.receipt]):
                    self._attempt(lease)
        except _Stop:
            pass
        for _since, lease in self._held:
            self._link.settle(Settlement(lease.receipt, "release"))
        self._link.flush()

    def _fill(self) -> None:
        """Have work: ask ahead of time while what is held lasts, wait when nothing is."""
        wanted = self._wanted()
        if self._asked is None and len(self._held) <= wanted // 2:
            idle = not self._held
            if idle or wanted > 1:
                self._asked = self._link.ask(wanted - len(self._held), WAIT if idle else 0.0)
                self._asked_at = 0.0 if idle else monotonic()
        if self._held or self._asked is None:
            return
        self._link.flush()
        self._marker.set("")
        try:
            self._waiting = True
            if self._stopping:
                raise _Stop
            leases = self._link.leases(self._asked)
        finally:
            self._waiting = False
        self._asked = None
        since = self._asked_at or monotonic()  # asked ahead, they may have been on their way for long
        self._held.extend((since, lease) for lease in leases)

    def _wanted(self) -> int:
        """How many jobs make up the prefetch time; one until the usual time is known."""
        if not self._usual:
            return 1
        return max(1, min(MAX_HELD, int(self._prefetch / self._usual)))

    def _attempt(self, lease: Leased) -> None:
        """Run one attempt and say what came of it.

        The marker keeps naming it until the next one runs or what was said is sent: an attempt that ruins
        its worker (closes the socket, say) is the one to blame.
        """
        begun = monotonic()
        self._marker.set(lease.receipt)
        attempted = self._run(lease, begun)
        self._mend()
        took = monotonic() - begun
        self._usual = took if not self._usual else max(took, 0.9 * self._usual + 0.1 * took)
        self._link.settle(attempted.settlement(lease.receipt))

    def _mend(self) -> None:
        """Undo what a handler did to what all jobs of this process share."""
        if os.getpid() != self._pid:
            os._exit(0)  # a child the handler forked came back with it: it is no worker
        if signal.getsignal(signal.SIGTERM) != self.stop:
            signal.signal(signal.SIGTERM, self.stop)
        if signal.pthread_sigmask(signal.SIG_BLOCK, ()):
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            for stream in (0, 1, 2):
                os.fstat(stream)
        except OSError:
            self._stopping = True  # closed; the worker that follows has them again

    def _run(self, lease: Leased, begun: float) -> Attempted:
        payload = lease.payload
        runner = self._runners[lease.type]
        data: Any = payload
        if runner.decodes and lease.data is not msgspec.UNSET:
            try:
                data = msgspec.json.decode(payload)
            except (msgspec.MsgspecError, RecursionError) as error:
                # Valid JSON, but 1e999 or nested too deep: it will be no better the next time.
                return Attempted("fail", None, Reason(f"the payload cannot be read: {error}", "payload"))
        try:
            now = dt.datetime.now(dt.UTC)
            job = Job(
                id=lease.id,
                type=lease.type,
                data=data,
                attempt=lease.attempt,
                prio=lease.prio,
                inserted_at=dt.datetime.fromisoformat(lease.inserted_at),
                deadline=now + dt.timedelta(seconds=lease.ttr),
                log=logging.LoggerAdapter(_log, {"job": lease.id, "type": lease.type}),
                link=_JobLink(self._link, lease.receipt),
                binary=lease.data is msgspec.UNSET,
            )
            if hasattr(runner, "run"):
                return runner.run(job, payload)
            if self._loop is None:
                self._loop = asyncio.Runner()
            return self._loop.run(runner.arun(job, payload))
        except Exception as error:
            return Attempted("again", None, reason_of(error))


class _JobLink:
    """See :class:`kqs.core.handler.JobLink`."""

    #: Progress is sent at most this often, seconds; a last word (1.0) always.
    EVERY = 0.2

    def __init__(self, link: Link, receipt: str) -> None:
        self._link = link
        self._receipt = receipt
        self._told = 0.0
        self.cancelled = False

    def progress(self, fraction: float | None, message: str) -> None:
        now = monotonic()
        if now - self._told >= self.EVERY or fraction == 1:
            self._told = now
            if fraction is not None:
                fraction = min(max(fraction, 0.0), 1.0)
            self._link.progress(self._receipt, fraction, wire_text(message, 1000))

    def renew(self) -> bool:
        if not self._link.renew([self._receipt]):
            self.cancelled = True
        return not self.cancelled


_log = logging.getLogger("kqs.job")


def _configure_log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(type)s %(job)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False


def main() -> int:
    socket_fd, marker_fd, parent = (int(text) for text in sys.argv[1:4])
    die_with_parent()
    adopt_orphans()
    if not parent_is(parent):
        return EXIT_ORPHANED
    os.set_inheritable(socket_fd, False)
    os.set_inheritable(marker_fd, False)
    with os.fdopen(0, "rb", closefd=False) as stdin:
        spec = msgspec.json.decode(stdin.read(), type=WorkerSpec)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _configure_log()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a handler prints is seen when it prints it
    try:
        runners = load(spec)
    except ConfigError as error:
        print(f"kqs: {spec.name}: {error}", file=sys.stderr)
        return EXIT_BAD_HANDLERS
    link = Link(socket.socket(fileno=socket_fd))
    worker = Worker(spec, runners, link, Marker(marker_fd))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, worker.stop)
    try:
        worker.run()
    except (ConnectionFailed, OSError):
        return EXIT_ORPHANED
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads a handler left behind must not keep the process
