"""All worker processes of one server or machine: started, replaced, drained."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import chain, count
from time import monotonic
from typing import Any

import msgspec

from ..ports import Expired, Revoked
from .spec import WorkerSpec
from .supervisor import LeaseBook, Supervisor

#: A worker that holds a lease for a ttr of this many seconds or more, and starts nothing, is replaced.
STUCK = 1.0
#: How often a worker is told to stop, until it does, seconds.
AGAIN = 0.5
#: How often a new worker is looked at, until it takes work, seconds.
LOOK = 0.02


class Crew:
    """The workers of one lease book.

    Args:
        specs: one a process.
        book: the leases.
        log: where to say what happened.
    """

    def __init__(self, specs: Sequence[WorkerSpec], book: LeaseBook, log: Any) -> None:
        self._specs = specs
        self._book = book
        self._make = partial(Supervisor, book=book, log=log)
        self._log = log
        self._workers: dict[str, Supervisor] = {}
        self._lives: dict[Supervisor, asyncio.Task[None]] = {}
        self._changes: set[asyncio.Task[None]] = set()
        self._partings: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start all processes; they take work as they come up."""
        for spec in self._specs:
            self._begin(spec)

    def _begin(self, spec: WorkerSpec) -> Supervisor:
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

    async def _dismiss(self, worker: Supervisor, types: frozenset[str]) -> None:
        """Let a worker finish its attempt and go, once others are there for its types still wanted."""
        while not worker.spec.types & types <= self._ready_for(worker):  # noqa: ASYNC110 - as above
            await asyncio.sleep(LOOK)
        worker.stopping = True
        parting = asyncio.create_task(self._see_off(worker))
        self._partings.add(parting)
        parting.add_done_callback(self._partings.discard)

    def _ready_for(self, worker: Supervisor) -> frozenset[str]:
        """The job types that others than this worker take now."""
        others = (w for w in self._workers.values() if w is not worker and w.ready and not w.stopping)
        return frozenset[str]().union(*(other.spec.types - other.broken for other in others))

    async def _see_off(self, worker: Supervisor) -> None:
        life = self._lives[worker]
        while not life.done():
            worker.terminate()  # the first one may have come while a handler ignored it
            await asyncio.wait([life], timeout=AGAIN)
        del self._workers[worker.spec.name], self._lives[worker]

    def cancel(self, revoked: Sequence[Revoked]) -> None:
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

    async def look_after(self, expired: Sequence[Expired], *, renewable: bool = True) -> list[Expired]:
        """End overdue attempts; take back what busy workers hold. Returns the leases of others.

        Args:
            expired: leases whose time is over.
            renewable: whether their time can start anew where the type keeps alive.

        Raises:
            JournalFailed: leases could not be taken back durably.
        """
        others: list[Expired] = []
        unstarted: list[str] = []
        renewed: list[str] = []
        for lease in expired:
            worker = self._workers.get(lease.holder)
            if worker is None:
                others.append(lease)
            elif lease.receipt in worker.running:
                if await worker.overrun(lease, renewable=renewable):
                    renewed.append(lease.receipt)
            elif worker.process is not None:
                unstarted.append(lease.receipt)
                if not worker.running and lease.ttr >= STUCK:
                    await worker.kill()  # all that time it had work, and did nothing
        if renewed:
            await self._book.renew(renewed)
        if unstarted:
            await self._book.release(unstarted)
        for worker in list(self._workers.values()):
            await worker.look()
        return others

    async def keep_alive(self, ending: Sequence[Expired]) -> None:
        """Renew leases of running attempts before their time is over, or end those that ran long enough.

        Args:
            ending: leases, of types that keep alive.
        """
        renewed: list[str] = []
        for lease in ending:
            worker = self._workers.get(lease.holder)
            if worker is not None and lease.receipt in worker.running and await worker.overrun(lease):
                renewed.append(lease.receipt)
        if renewed:
            await self._book.renew(renewed)

    async def lost(self, leases: Sequence[Revoked]) -> None:
        """End the attempts whose leases are lost."""
        for lease in leases:
            if (worker := self._workers.get(lease.holder)) is not None:
                await worker.lost(lease.receipt)

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
