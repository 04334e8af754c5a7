"""The local workers: started, watched, killed, replaced.

Ensures (G3, G4): when a worker process ends, however it ends, what it said before is taken first; then the
attempts that ran are rescued, and the leases it held unstarted are released at no cost. An attempt that
overruns its ttr dies with all processes it started before its job can run again here; attempts that ran
beside it in the same process are released at no cost, too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from itertools import chain, count
from secrets import token_hex
from time import monotonic
from typing import Any

import msgspec
import psutil

from ..core.outcome import Settlement
from ..errors import ConfigError, JournalFailed
from ..ports import Engine, Expired, Revoked
from ..runners import place
from ..runners.attempt import EXIT_RECYCLED, REVOKE
from ..runners.capture import Captured, Named
from ..runners.marked import NAME, kill_marked
from ..runners.marker import Marker
from ..runners.spec import WorkerSpec
from ..runners.worker import EXIT_BAD_HANDLERS
from .dispatch import Dispatch
from .server import Connection

#: Makes the server's end of a worker's socket a connection of its own.
Attach = Callable[[socket.socket, WorkerSpec], Awaitable[Connection]]

#: Waits between restarts of a worker that keeps dying, seconds.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
#: A worker that lived this long, or got a job done, is not one that keeps dying, seconds.
_LIVED = 10.0
#: A worker that runs several attempts gets this long to end one that is over its ttr, seconds.
YIELD = 1.0
#: An attempt that is not wanted any more gets this long to end after it was told, seconds.
CANCEL_GRACE = 5.0
#: A worker that holds a lease for a ttr of this many seconds or more, and starts nothing, is replaced.
STUCK = 1.0
#: How often a worker is told to stop, until it does, seconds.
AGAIN = 0.5
#: How often a new worker is looked at, until it takes work, seconds.
LOOK = 0.02


class _Worker:
    """One worker process after the other, under one name."""

    def __init__(
        self, spec: WorkerSpec, engine: Engine, dispatch: Dispatch, attach: Attach, log: Any
    ) -> None:
        self.spec = spec
        self.state = "starting"
        self.restarts = 0
        self.stopping = False
        self.connection: Connection | None = None
        self.process: asyncio.subprocess.Process | None = None
        self._engine = engine
        self._dispatch = dispatch
        self._attach = attach
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
        return self.process is not None and self.connection is not None and self.connection.received > 0

    @property
    def running(self) -> list[str]:
        """The receipts of the attempts that run."""
        return self._marker.running()

    @property
    def broken(self) -> frozenset[str]:
        """The types it should run and does not ask for: their handlers could not be imported."""
        asked = None if self.connection is None else self._dispatch.asked(self.connection)
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
            spoke = self.connection is not None and self.connection.received > 0
            works = self.connection is not None and self.connection.settled
            lived = monotonic() - began
            wait = _FIRST_WAIT if works or lived > _LIVED else min(2 * wait, _LONGEST_WAIT)
            self.state = "restarting"
            if status == EXIT_BAD_HANDLERS and not spoke:  # else the handler's own status
                wait = _LONGEST_WAIT  # it said why; people mend such things, restarts don't
            await asyncio.sleep(0.0 if self._killed_for else wait)
        self.state = "stopped"
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
            self.connection = await self._attach(ours, self.spec)
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
        await self._hear_out(self.connection)
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

    async def _hear_out(self, connection: Connection) -> None:
        """Take what the dead process had sent, and let no reserve of its lease anything more."""
        for _ in range(1000):
            if connection.closed:
                return
            self._dispatch.dismiss(connection)
            await asyncio.sleep(0.005)
        connection.abort()

    async def _settle_leases(self, status: int) -> None:
        """What the dead process still held: attempts that ran are rescued, the others are released."""
        held = self._engine.held_by(self.spec.name)
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
                await self._engine.rescue(lost, died=died, alone=len(lost) == 1, reason=reason)
            elif not (self.stopping or self._killed_for or status in (EXIT_BAD_HANDLERS, EXIT_RECYCLED)):
                self._log.warning(f"worker {_describe(status)}")
            if rest := [receipt for receipt in held if receipt not in lost]:
                await self._engine.settle([Settlement(receipt, "release") for receipt in rest])
        except JournalFailed:
            pass  # the server is stopping for it; a restart restores the leases

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

    async def overrun(self, lease: Expired) -> bool:
        """The time of a running attempt's lease is over: end it, soon. True: renew the lease instead."""
        now = monotonic()
        type_ = next((held.type for held in self._marker.held() if held.receipt == lease.receipt), "")
        reason = f"ttr of {lease.ttr:g} s exceeded"
        if (limit := self.spec.keep_alive.get(type_)) is not None:
            if not limit or now - self._begun.get(lease.receipt, now) < limit:
                return True
            reason = f"max_runtime of {limit:g} s exceeded"
        if self.spec.concurrency == 1:
            await self.kill(reason, [lease.receipt])
        else:
            self._overdue[lease.receipt] = now + YIELD, reason
        return False

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
                held = self._engine.held_by(self.spec.name)
                if receipt in held:
                    await self._release([other for other in held if other != receipt])

    async def _revoke_unstarted(self, running: list[str], now: float) -> None:
        """Take back what a worker of many attempts did not come to, and did not give back itself."""
        kept = {*running, self._marker.waiting()}
        held = self._engine.held_by(self.spec.name)
        self._unstarted = {
            receipt: self._unstarted.get(receipt, now) for receipt in held if receipt not in kept
        }
        if running:
            await self._release([r for r, since in self._unstarted.items() if now - since > 2 * REVOKE])

    async def _release(self, receipts: Sequence[str]) -> None:
        if receipts:
            await self._engine.settle([Settlement(receipt, "release") for receipt in receipts])

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


class LocalWorkers:
    """All worker processes of this server.

    Args:
        specs: one a process.
        engine: where leases are taken back.
        dispatch: where their reserves wait.
        attach: makes a socket a connection.
        log: where to say what happened.
    """

    def __init__(
        self, specs: Sequence[WorkerSpec], engine: Engine, dispatch: Dispatch, attach: Attach, log: Any
    ) -> None:
        self._specs = specs
        self._engine = engine
        self._make = partial(_Worker, engine=engine, dispatch=dispatch, attach=attach, log=log)
        self._log = log
        self._workers: dict[str, _Worker] = {}
        self._lives: dict[_Worker, asyncio.Task[None]] = {}
        self._changes: set[asyncio.Task[None]] = set()
        self._partings: set[asyncio.Task[None]] = set()
        engine.on_revoked(self._cancel)

    def start(self) -> None:
        """Start all processes; they take work as they come up."""
        for spec in self._specs:
            self._begin(spec)

    def _begin(self, spec: WorkerSpec) -> _Worker:
        worker = self._workers[spec.name] = self._make(spec)
        self._lives[worker] = asyncio.create_task(worker.supervise())
        return worker

    def replace(self, specs: Sequence[WorkerSpec]) -> None:
        """Run these from now on. Returns at once; what an earlier call left to do is given up.

        Workers that are as these go on. In a pool where they are not, one new worker after the other is
        started; when it asks for work, an old one is told to finish its attempt and go. So no job waits for
        the change, and none is ended by it.

        Args:
            specs: one a process; a name that is taken yet is changed.
        """
        for change in self._changes:
            change.cancel()
        wanted: dict[str, list[WorkerSpec]] = {worker.spec.pool: [] for worker in self._workers.values()}
        for spec in specs:
            wanted.setdefault(spec.pool, []).append(spec)
        types = frozenset[str]().union(*(spec.types for spec in specs))
        self._changes = {asyncio.create_task(self._change(*change, types)) for change in wanted.items()}

    async def _change(self, pool: str, specs: list[WorkerSpec], types: frozenset[str]) -> None:
        """Make a pool's workers these.

        Args:
            pool: its name.
            specs: one a process.
            types: the job types of all pools: one that moves has a worker there before it has none here.
        """
        old = [w for w in self._workers.values() if w.spec.pool == pool and not w.stopping]
        kept = []
        for worker in old.copy():
            same = next((spec for spec in specs if _alike(spec, worker.spec)), None)
            if same is not None:
                specs.remove(same)
                old.remove(worker)
                kept.append(worker)
        if not specs and not old:
            return
        begun = (self._begin(msgspec.structs.replace(spec, name=self._free(spec))) for spec in specs)
        for new in chain(kept, begun):  # of the kept ones, some may have been started a moment ago
            while not new.ready:  # noqa: ASYNC110 - the process tells when it is, over its socket
                await asyncio.sleep(LOOK)
            if old and new not in kept:
                await self._dismiss(old.pop(0), types)
        for worker in old:
            await self._dismiss(worker, types)
        self._log.info("workers replaced", pool=pool)

    def _free(self, spec: WorkerSpec) -> str:
        """A worker's name, or the next of its pool that no worker has."""
        family = spec.name.rpartition("/")[0]
        names = (f"{family}/{number}" for number in count(1))
        return next(name for name in chain([spec.name], names) if name not in self._workers)

    async def _dismiss(self, worker: _Worker, types: frozenset[str]) -> None:
        """Let a worker finish its attempt and go, once others are there for its types still wanted."""
        while not worker.spec.types & types <= self._ready_for(worker):  # noqa: ASYNC110 - as above
            await asyncio.sleep(LOOK)
        worker.stopping = True
        parting = asyncio.create_task(self._see_off(worker))
        self._partings.add(parting)
        parting.add_done_callback(self._partings.discard)

    def _ready_for(self, worker: _Worker) -> frozenset[str]:
        """The job types that others than this worker take now."""
        others = (w for w in self._workers.values() if w is not worker and w.ready and not w.stopping)
        return frozenset[str]().union(*(other.spec.types - other.broken for other in others))

    async def _see_off(self, worker: _Worker) -> None:
        life = self._lives[worker]
        while not life.done():
            worker.terminate()  # the first one may have come while a handler ignored it
            await asyncio.wait([life], timeout=AGAIN)
        del self._workers[worker.spec.name], self._lives[worker]

    def _cancel(self, revoked: Sequence[Revoked]) -> None:
        """Tell workers that what they run is not wanted any more."""
        for lease in revoked:
            if (worker := self._workers.get(lease.holder)) is not None:
                worker.cancel(lease.receipt)

    def types(self) -> frozenset[str]:
        """The job types a worker is here for."""
        own = (w.spec.types - w.broken for w in self._workers.values() if not w.stopping)
        return frozenset[str]().union(*own)

    def states(self) -> list[dict[str, Any]]:
        """Every worker: ``name pool state pid restarts broken``."""
        return [worker.shown() for worker in self._workers.values()]

    async def look_after(self, expired: Sequence[Expired]) -> list[Expired]:
        """End overdue attempts; take back what busy workers hold. Returns the leases of remote workers.

        Args:
            expired: leases whose time is over.

        Raises:
            JournalFailed: leases could not be taken back durably.
        """
        remote: list[Expired] = []
        unstarted: list[Settlement] = []
        renewed: list[str] = []
        for lease in expired:
            worker = self._workers.get(lease.holder)
            if worker is None:
                remote.append(lease)
            elif lease.receipt in worker.running:
                if await worker.overrun(lease):
                    renewed.append(lease.receipt)
            elif worker.process is not None:
                unstarted.append(Settlement(lease.receipt, "release"))
                if not worker.running and lease.ttr >= STUCK:
                    await worker.kill()  # all that time it had work, and did nothing
        if renewed:
            await self._engine.renew(renewed)
        if unstarted:
            await self._engine.settle(unstarted)
        for worker in list(self._workers.values()):
            await worker.look()
        return remote

    async def drain(self, grace: float) -> None:
        """Let running attempts finish for ``grace`` seconds, then end them; their jobs are released."""
        for change in self._changes:
            change.cancel()
        workers = list(self._lives)
        for worker in workers:
            worker.stopping = True
            worker.terminate()
        if late := set(self._lives.values()):
            until = monotonic() + grace
            while late and (left := until - monotonic()) > 0:
                _done, late = await asyncio.wait(late, timeout=min(left, AGAIN))
                for worker in workers:
                    worker.terminate()  # the first one may have come while a handler ignored it
            if late:
                await asyncio.gather(*(worker.kill() for worker in workers))
                await asyncio.wait(late)


def _alike(one: WorkerSpec, other: WorkerSpec) -> bool:
    """Whether two workers differ in their names at most."""
    return msgspec.structs.replace(one, name=other.name) == other


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
