"""Worker processes: started, watched, killed, started again.

Ensures (G3, G4): when a worker process ends, however it ends, what it said before is taken first; then the
attempts that ran are rescued, and the leases it held unstarted are released at no cost. An attempt that
overruns its ttr dies with all processes it started before its job can run again here; attempts that ran
beside it in the same process are released at no cost, too.

That is so next to a server and away from one. Where the leases are, and how they are given back, is behind
:class:`LeaseBook`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from secrets import token_hex
from time import monotonic
from typing import Any, Protocol

import msgspec
import psutil

from ..errors import Busy, ConfigError, DiskFull, JournalFailed
from ..ports import Expired
from . import place
from .attempt import EXIT_RECYCLED, REVOKE
from .capture import Captured, Named
from .marked import NAME, kill_marked
from .marker import Marker
from .spec import WorkerSpec
from .worker import EXIT_BAD_HANDLERS

#: Waits between restarts of a worker that keeps dying, seconds.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
#: A worker that lived this long, or got a job done, is not one that keeps dying, seconds.
_LIVED = 10.0
#: A worker that runs several attempts gets this long to end one that is over its ttr, seconds.
YIELD = 1.0
#: An attempt that is not wanted any more gets this long to end after it was told, seconds.
CANCEL_GRACE = 5.0


class Line(Protocol):
    """The other end of a worker's socket, where its calls are answered."""

    @property
    def spoke(self) -> bool:
        """Whether the worker said anything yet."""
        ...

    @property
    def settled(self) -> bool:
        """Whether it settled anything yet."""
        ...

    @property
    def closed(self) -> bool:
        """Whether all it sent is taken, and its end closed."""
        ...

    def asked(self) -> frozenset[str] | None:
        """The types it asks for (empty: all), or None when it has not asked yet."""
        ...

    def dismiss(self) -> None:
        """Nobody is there to take a job: its waiting reserves get nothing, now."""
        ...

    def abort(self) -> None:
        """Close it, whatever is on its way."""
        ...


class LeaseBook(Protocol):
    """The leases of workers, as their supervisors see them."""

    async def attach(self, sock: socket.socket, spec: WorkerSpec) -> Line:
        """Answer the calls of a worker on a connected socket."""
        ...

    def held_by(self, worker: str) -> list[str]:
        """Receipts of the leases a worker holds, in the order they were given."""
        ...

    async def release(self, receipts: Sequence[str]) -> None:
        """Give back leases that were not begun, or not to their jobs' blame: it costs no attempt."""
        ...

    async def rescue(self, receipts: Sequence[str], *, died: bool, alone: bool, reason: str) -> None:
        """Take attempts back that were ended; as :meth:`kqs.ports.Engine.rescue`."""
        ...

    async def renew(self, receipts: Sequence[str]) -> None:
        """Start the ttr of leases anew."""
        ...


class Supervisor:
    """One worker process after the other, under one name.

    Args:
        spec: what to run.
        book: the leases.
        log: where to say what happened.
    """

    def __init__(self, spec: WorkerSpec, book: LeaseBook, log: Any) -> None:
        self.spec = spec
        self.state = "starting"
        self.restarts = 0
        self.stopping = False
        self.line: Line | None = None
        self.process: asyncio.subprocess.Process | None = None
        self._book = book
        self._log = log.bind(worker=spec.name)
        self._marker = Marker(spec.concurrency)
        self._captured = Captured() if spec.capture else None
        self._killed_for = ""
        self._at_fault: Collection[str] = ()
        self._begun: dict[str, float] = {}
        self._revoked = ""
        self._unstarted: dict[str, float] = {}
        self._overdue: dict[str, tuple[float, str]] = {}
        self._unwanted: dict[str, float] = {}

    @property
    def ready(self) -> bool:
        """Whether its process asked for work."""
        return self.process is not None and self.line is not None and self.line.spoke

    @property
    def running(self) -> list[str]:
        """The receipts of the attempts that run."""
        return self._marker.running()

    @property
    def broken(self) -> frozenset[str]:
        """The types it should run and does not ask for: their handlers could not be imported."""
        asked = None if self.line is None else self.line.asked()
        return frozenset() if asked is None else self.spec.types - asked

    async def supervise(self) -> None:
        """Keep a process running until told to stop."""
        wait = _FIRST_WAIT
        while not self.stopping:
            began = monotonic()
            try:
                status = await self._live()
            except (OSError, subprocess.SubprocessError, ConfigError) as error:
                self._log.error("worker cannot be started", error=str(error.__cause__ or error))
                status = EXIT_BAD_HANDLERS
            if self.stopping:
                break
            if status == EXIT_RECYCLED and not (self._killed_for or self.running):  # else a handler's own
                self.state = "starting"
                continue
            self.restarts += 1
            spoke = self.line is not None and self.line.spoke
            works = self.line is not None and self.line.settled
            lived = monotonic() - began
            wait = _FIRST_WAIT if works or lived > _LIVED else min(2 * wait, _LONGEST_WAIT)
            self.state = "restarting"
            if status == EXIT_BAD_HANDLERS and not spoke:  # else the handler's own status
                wait = _LONGEST_WAIT  # it said why; people mend such things, restarts don't
            await asyncio.sleep(0.0 if self._killed_for else wait)
        self.state = "stopped"
        self.process = None  # also after a start that failed half-way: there is nothing to look at
        self._marker.close()
        if self._captured is not None:
            self._captured.close()

    async def _live(self) -> int:
        """One process from its start until everything of it is settled; returns its exit status."""
        ours, its = socket.socketpair()
        self._marker.clear()
        self._killed_for, self._at_fault = "", ()
        self._begun, self._unstarted, self._overdue, self._unwanted = {}, {}, {}, {}
        mark = token_hex(16)
        fds = [its.fileno(), self._marker.fd]
        out = err = None
        if self._captured is not None:
            out, err = (stream.write for stream in self._captured.streams)
            fds += [self._captured.log, *(stream.read for stream in self._captured.streams)]
        numbers = [*fds[:2], psutil.Process().pid, *fds[2:]]
        try:
            self.line = await self._book.attach(ours, self.spec)
            self.process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "kqs.runners.worker",
                *map(str, numbers),
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=err,
                pass_fds=fds,
                start_new_session=True,
                cwd=self.spec.directory,
                env={**place.environment(self.spec), NAME: mark},
                preexec_fn=place.entering(self.spec),
            )
        finally:
            its.close()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(self.spec))
            await process.stdin.drain()
            process.stdin.close()
        except OSError:
            pass  # it is gone already; its status tells
        if self.stopping:
            self.terminate()
        status = await process.wait()
        _kill_group(process.pid)
        if self._killed_for or self.running or status not in (0, EXIT_RECYCLED):
            await asyncio.to_thread(kill_marked, mark)  # its daemons, before its jobs may run again
        await self._hear_out(self.line)
        self._log_rest()
        await self._settle_leases(status)
        self.process = None
        return status

    def _log_rest(self) -> None:
        """Log what the dead process printed and did not log."""
        if self._captured is not None:
            running = [held for held in self._marker.held() if held.receipt in self.running]
            self._captured.rest(running[0] if len(running) == 1 else None, self._printed)

    def _printed(self, job: Named | None, stream: str, line: str) -> None:
        about = {"job": job.id, "type": job.type} if job is not None else {}
        self._log.info("output", **about, stream=stream, line=line)

    async def _hear_out(self, line: Line) -> None:
        """Take what the dead process had sent, and let no reserve of its lease anything more."""
        for _ in range(1000):
            if line.closed:
                return
            line.dismiss()
            await asyncio.sleep(0.005)
        line.abort()

    async def _settle_leases(self, status: int) -> None:
        """What the dead process still held: attempts that ran are rescued, the others are released."""
        held = self._book.held_by(self.spec.name)
        running = [receipt for receipt in self.running if receipt in held]
        if self._killed_for:
            lost = [receipt for receipt in running if receipt in self._at_fault]
        else:
            lost = [] if self.stopping else running
        reason = self._killed_for or f"the worker {_describe(status)} while running the job"
        try:
            if lost:
                for receipt in lost:
                    self._log.warning("attempt lost", receipt=receipt, reason=reason)
                died = not self._killed_for
                await self._book.rescue(lost, died=died, alone=len(lost) == 1, reason=reason)
            elif not (self.stopping or self._killed_for or status in (EXIT_BAD_HANDLERS, EXIT_RECYCLED)):
                self._log.warning(f"worker {_describe(status)}")
            if rest := [receipt for receipt in held if receipt not in lost]:
                await self._book.release(rest)
        except JournalFailed:
            pass  # the server is stopping for it; a restart restores the leases
        except (Busy, DiskFull) as away:
            self._log.warning("leases of a worker that ended stand until their ttr", reason=str(away))

    def terminate(self) -> None:
        """Ask the process to finish its attempt and go."""
        if self.process is not None:
            try:
                self.process.terminate()
            except ProcessLookupError:
                pass

    async def kill(self, reason: str = "", at_fault: Collection[str] = ()) -> None:
        """Kill the process and all it started.

        Args:
            reason: why attempts end, when it is their own fault.
            at_fault: their receipts; all others are released.
        """
        self._killed_for, self._at_fault = reason, at_fault
        if self.process is not None:
            await asyncio.to_thread(_kill_tree, self.process.pid)

    def cancel(self, receipt: str) -> None:
        """Ask for the end of an attempt: a task is cancelled, other handlers look at ``job.cancelled``.

        One that still runs after ``CANCEL_GRACE`` is ended. One that has not begun is told when it does.
        """
        self._unwanted[receipt] = monotonic()
        self._marker.cancel(receipt)

    async def overrun(self, lease: Expired, *, renewable: bool = True) -> bool:
        """The time of a running attempt's lease is over: end it, soon. True: renew the lease instead.

        Args:
            lease: of the attempt.
            renewable: whether that still can be done.
        """
        now = monotonic()
        type_ = next((held.type for held in self._marker.held() if held.receipt == lease.receipt), "")
        reason = f"ttr of {lease.ttr:g} s exceeded"
        if (limit := self.spec.keep_alive.get(type_)) is not None:
            if not renewable:
                await self.lost(lease.receipt, "its lease ended before it could be renewed")
                return False
            if not limit or now - self._begun.get(lease.receipt, now) < limit:
                return True
            reason = f"max_runtime of {limit:g} s exceeded"
        await self._end(lease.receipt, reason)
        return False

    async def lost(self, receipt: str, reason: str = "its lease was lost") -> None:
        """The lease of an attempt is somebody else's by now, or nobody's: end it; it does not count."""
        if receipt in self.running:
            self._marker.cancel(receipt)
            await self._end(receipt, reason)

    async def _end(self, receipt: str, reason: str) -> None:
        """End an attempt; a worker of many is waited for to do so, a moment."""
        if self.spec.concurrency == 1:
            await self.kill(reason, [receipt])
        else:
            self._overdue[receipt] = monotonic() + YIELD, reason

    async def look(self) -> None:
        """Now and then: end attempts that did not yield, take back leases that are not come to."""
        if self.process is None:
            return
        if self._captured is not None:
            self._captured.bound()
        running, now = self.running, monotonic()
        self._begun = {receipt: self._begun.get(receipt, now) for receipt in running}
        self._stop_unwanted(running, now)
        if self.spec.concurrency == 1:
            await self._revoke_behind(running, now)
        else:
            await self._revoke_unstarted(running, now)
        await self._end_overdue(running, now)

    def _stop_unwanted(self, running: list[str], now: float) -> None:
        """Tell attempts that were cancelled before they began, and give all cancelled ones a last moment."""
        reason = f"did not stop within {CANCEL_GRACE:g} s of being told to"
        for receipt, told in list(self._unwanted.items()):
            if receipt in running:
                self._marker.cancel(receipt)
                self._overdue.setdefault(receipt, (now + CANCEL_GRACE, reason))
            elif now - told > CANCEL_GRACE:
                del self._unwanted[receipt]  # it has ended, or was never begun

    async def _revoke_behind(self, running: list[str], now: float) -> None:
        """Take back the leases a worker holds behind an attempt that turned out long."""
        for receipt in running:
            if receipt != self._revoked and now - self._begun[receipt] > REVOKE:
                self._revoked = receipt  # once an attempt: it asks for no more while it runs
                held = self._book.held_by(self.spec.name)
                if receipt in held:
                    await self._release([other for other in held if other != receipt])

    async def _revoke_unstarted(self, running: list[str], now: float) -> None:
        """Take back what a worker of many attempts did not come to, and did not give back itself."""
        kept = {*running, self._marker.waiting()}
        held = self._book.held_by(self.spec.name)
        self._unstarted = {
            receipt: self._unstarted.get(receipt, now) for receipt in held if receipt not in kept
        }
        if running:
            await self._release([r for r, since in self._unstarted.items() if now - since > 2 * REVOKE])

    async def _release(self, receipts: Sequence[str]) -> None:
        if receipts:
            await self._book.release(receipts)

    async def _end_overdue(self, running: list[str], now: float) -> None:
        """Kill a worker that did not end an attempt by itself; who keeps it from that is to blame."""
        self._overdue = {receipt: self._overdue[receipt] for receipt in running if receipt in self._overdue}
        late = {receipt: reason for receipt, (until, reason) in self._overdue.items() if now >= until}
        if late:
            reason = next(iter(late.values()))
            if (blocking := self._marker.blocking()) in running:
                reason = self._overdue.get(blocking, (0.0, "kept the event loop of its worker from running"))[
                    1
                ]
                await self.kill(reason, [blocking])
            else:
                await self.kill(reason, list(late))

    def shown(self) -> dict[str, Any]:
        state = self.state
        if self.process is not None and self.stopping:
            state = "stopping"
        elif self.process is not None:
            state = "running" if self.running else "idle" if self.ready else "starting"
        return {
            "name": self.spec.name,
            "pool": self.spec.pool,
            "state": state,
            "pid": self.process.pid if self.process is not None else None,
            "restarts": self.restarts,
            "broken": sorted(self.broken),
        }


def _describe(status: int) -> str:
    """How a process ended."""
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"exited with status {status}"


def _kill_group(group: int) -> None:
    """End what a dead worker left behind in its process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _kill_tree(pid: int) -> None:
    """Kill a process and its descendants; it is stopped first, so that it starts no more of them."""
    try:
        parent = psutil.Process(pid)
        parent.suspend()
        tree = [*parent.children(recursive=True), parent]
    except psutil.Error:
        return
    for process in tree:
        try:
            process.kill()
        except psutil.Error:
            pass
