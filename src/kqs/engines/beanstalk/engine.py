"""The engine over a pool of beanstalkds. What it keeps and what it cannot: docs/guarantees.md.

Jobs are journaled here first and then put into tubes (``engines/feed``). A lease is a reservation on one of
our connections, so leases end with this process, or with the connection; the jobs are ready again then.
Bodies never change: how often a job was tried is what beanstalkd counts, and why it failed is only
in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ...core.job import SECOND, NewJob
from ...core.outcome import Settlement
from ...core.shares import Shares
from ...errors import Unsupported
from ...journal.log import Journal
from ...journal.scan import Apply
from ...ports import (
    BulkStore,
    Clock,
    CronMark,
    Expired,
    Inserted,
    JobEvent,
    Lease,
    Refusal,
    Renewal,
    Revoked,
    Selection,
)
from ..feed import Fed, Feed
from .control import Controller
from .deliver import Deliverer, seconds
from .leases import Corrections, Leases
from .look import STATES, Tubes
from .lookout import Lookout
from .pool import Address, Limits, Pool
from .settle import Settler
from .take import Taker
from .tubes import HEADER, tube_of
from .wakes import Wakes


class BeanstalkEngine:
    """See :class:`kqs.ports.Engine`; made by :meth:`open`.

    Attributes:
        feed: the jobs that are accepted and not in a tube yet.
        max_payload: the largest payload a tube takes, bytes.
    """

    name = "beanstalkd"
    capabilities = frozenset({"pause", "cron", "shared"})

    def __init__(
        self,
        open_journal: Callable[[Apply], Journal],
        clock: Clock,
        pool: Pool,
        max_job_size: int,
        *,
        random: Callable[[], float],
        nonce: Callable[[int], int],
        bulk: BulkStore | None,
        window: int,
        limit: int,
    ) -> None:
        self.max_payload = max(0, max_job_size - HEADER)
        self._clock = clock
        self._pool = pool
        self._bulk = bulk
        self._deliverer = Deliverer(pool, clock, max_job_size)
        self.feed = Feed(
            open_journal, clock, deliver=self._deliver, random=random, window=window, limit=limit
        )
        self._tubes = Tubes(pool)
        corrections = Corrections()
        self._controller = Controller(pool, self._tubes, corrections)
        self._leases = Leases()
        self._wakes = Wakes()
        self._settler = Settler(self._leases, corrections, self._wakes, clock, random)
        self._taker = Taker(
            pool,
            self._tubes,
            self._leases,
            corrections,
            clock,
            nonce,
            revoked=self._revoke,
            back=self._give_back,
        )
        self._lookout: Lookout | None = None
        self._revoked: Callable[[Sequence[Revoked]], None] = lambda leases: None
        self._closing = False

    @classmethod
    async def open(
        cls,
        open_journal: Callable[[Apply], Journal],
        clock: Clock,
        addresses: Collection[Address],
        *,
        random: Callable[[], float],
        nonce: Callable[[int], int],
        bulk: BulkStore | None = None,
        window: int = 64 * 1024 * 1024,
        limit: int = 1 << 30,
        timeout: float = 3.0,
        silence: float = 10.0,
        unsafe: bool = False,
    ) -> BeanstalkEngine:
        """Connect, and begin to deliver what waits.

        Args:
            open_journal: opens the feed's journal, replaying its frames into the callback it is given.
            clock: time.
            addresses: of the servers.
            random: draws from [0, 1), for jitter.
            nonce: draws random bits, for receipts.
            bulk: where oversize payloads lie; told when they are not needed any more.
            window, limit: see :class:`~kqs.engines.feed.Feed`.
            timeout: seconds to reach a server.
            silence: seconds one may be silent before it counts as down.
            unsafe: go on although a binlog is off.

        Raises:
            ConfigError: see :meth:`Pool.open`.
        """
        pool = Pool(addresses, Limits(timeout, silence, unsafe), random)
        try:
            max_job_size = await pool.open()
            engine = cls(
                open_journal,
                clock,
                pool,
                max_job_size,
                random=random,
                nonce=nonce,
                bulk=bulk,
                window=window,
                limit=limit,
            )
        except BaseException:
            await pool.close()
            raise
        await engine._tubes.refresh()
        await engine.feed.start()
        engine._lookout = Lookout(
            pool, engine._tubes, engine._leases, engine._wakes, engine.feed.paused, engine._revoke
        )
        return engine

    def on_ready(self, notify: Callable[[Sequence[str]], None]) -> None:
        self._wakes.notify = notify

    def on_revoked(self, notify: Callable[[Sequence[Revoked]], None]) -> None:
        self._revoked = notify

    def _revoke(self, leases: Sequence[Revoked]) -> None:
        self._revoked(leases)

    def arrange(self, shares: Shares) -> None:
        """beanstalkd decides: weights and limits are refused at start (see the service)."""

    # -- jobs come ------------------------------------------------------------------------------

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        return Inserted(await self.feed.put(jobs))

    async def fire(self, name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        return await self.feed.fire(name, upto, jobs)

    async def fired(self) -> dict[str, CronMark]:
        return self.feed.fired()

    async def forget_cron(self, name: str) -> None:
        await self.feed.forget_cron(name)

    async def _deliver(self, jobs: Sequence[Fed]) -> None:
        try:
            await self._deliverer.deliver(jobs)
        finally:
            now, ready = self._clock.now(), dict[str, None]()
            for fed in jobs:
                if fed.delivered:
                    tube = tube_of(fed.job.type)
                    self._tubes.known[tube] = None
                    self._tubes.seen.setdefault(tube, fed.job.type)
                    if (wait := seconds(fed.wait(now))) > 0:
                        self._wakes.later(now + wait * SECOND, fed.job.type)
                    else:
                        ready[fed.job.type] = None
            if ready:
                self._wakes.ring(list(ready))

    # -- leasing --------------------------------------------------------------------------------

    async def reserve(
        self, types: Collection[str], limit: int, *, holder: str, local: bool = False
    ) -> list[Lease]:
        with self._wakes.asking(frozenset(types)) as ask:
            while not self._closing:
                ask.rung = False
                leases = await self._taker.take(ask.types, self._wanted(types), limit, holder)
                if leases or not ask.rung:
                    return leases
        return []

    def _wanted(self, types: Collection[str]) -> set[bytes]:
        """The tubes of these types (none: all there are), without those that are paused."""
        paused = self.feed.paused()
        if types:
            return {tube_of(type) for type in types if type not in paused}
        return self._tubes.known.keys() - {tube_of(type) for type in paused}

    async def renew(self, receipts: Sequence[str], progress: dict[str, Any] | None = None) -> list[Renewal]:
        return await self._settler.renew(receipts)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Refusal]:
        refused, bulk = await self._settler.settle(settlements)
        if bulk and self._bulk is not None:
            await self._bulk.delete(bulk)
        return refused

    async def _give_back(self, receipts: Sequence[str]) -> None:
        await self.settle([Settlement(receipt, "release") for receipt in receipts])

    async def rescue(
        self,
        receipts: Sequence[str],
        *,
        overdue: bool = False,
        died: bool = False,
        alone: bool = True,
        reason: str = "",
    ) -> None:
        await self._settler.rescue(receipts, overdue=overdue, died=died, alone=alone, reason=reason)

    def held_by(self, holder: str) -> list[str]:
        return self._leases.held_by(holder)

    # -- control and inspection -----------------------------------------------------------------

    async def control(self, verb: str, selection: Selection) -> int:
        count, gone, ready = await self._controller.control(verb, selection)
        refs = [body.header.options.bulk for body in gone if body.header is not None]
        if self._bulk is not None and (bulk := [ref for ref in refs if ref is not None]):
            await self._bulk.delete(bulk)
        if ready:
            self._wakes.ring(sorted(ready))
        return count

    async def pause(self, type: str, paused: bool, *, by: str = "") -> None:
        await self.feed.pause(type, paused, by)
        if not paused:
            self._wakes.ring([type])

    async def paused(self) -> list[str]:
        return sorted(self.feed.paused())

    def watch(
        self, listener: Callable[[JobEvent], None], *, id: str | None = None, type: str | None = None
    ) -> Callable[[], None]:
        raise Unsupported("watch needs an engine with watch, which beanstalkd has not")

    async def job(self, id: str, *, data: bool = False) -> dict[str, Any]:
        raise Unsupported("job needs an engine with inspect, which beanstalkd has not")

    async def jobs(
        self, *, state: str | None, type: str | None, fair: str | None = None, limit: int, after: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        raise Unsupported("jobs needs an engine with inspect, which beanstalkd has not")

    async def why(self, id: str) -> dict[str, Any]:
        raise Unsupported("why needs an engine with inspect, which beanstalkd has not")

    async def stats(self, type: str | None = None) -> dict[str, Any]:
        counts = await self._tubes.counts()
        if type is not None:
            counts = {tube: states for tube, states in counts.items() if tube == tube_of(type)}
        types: dict[str, dict[str, int]] = {}
        for name, states in [(self._tubes.type_of(tube), states) for tube, states in counts.items()]:
            types[name] = {**states, "done": 0}
        for name, done in self._settler.done.items():
            if type is None or name == type:
                types.setdefault(name, dict.fromkeys((*STATES, "done"), 0))["done"] = done
        jobs = {
            state: sum(states[state] for states in types.values())
            for state in ("delayed", "ready", "reserved", "buried", "done")
        }
        return {
            "jobs": jobs,
            "types": types,
            "oldest_ready_age": await self._tubes.oldest_age([t for t, s in counts.items() if s["ready"]]),
            "journal": self.feed.journal.stats(),
            "feed": self.feed.stats(),
            "servers": self._pool.shown(),
            "paused": await self.paused(),
        }

    async def bulk_names(self) -> set[str]:
        raise Unsupported("beanstalkd cannot tell which payloads its jobs refer to")

    @property
    def accepting(self) -> bool:
        return self.feed.accepting

    @property
    def longest_ttr(self) -> float:
        return self._leases.longest_ttr

    async def ready_types(self, among: Callable[[str], bool] | None = None) -> Iterator[tuple[str, int]]:
        paused, found = self.feed.paused(), dict[str, int]()
        for tube, states in (await self._tubes.counts()).items():
            name = self._tubes.type_of(tube)
            if states["ready"] and name not in paused and (among is None or among(name)):
                found[name] = states["ready"]
        return iter(found.items())

    # -- time -----------------------------------------------------------------------------------

    async def tick(self) -> list[Expired]:
        now = self._clock.now()
        self._wakes.tick(now)
        return self._leases.pop_expired(now)

    def next_wake(self) -> int | None:
        moments = (self._wakes.next_due(), self._leases.next_end())
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def behind(self) -> bool:
        return False

    async def close(self) -> None:
        self._closing = True
        self._taker.close()
        if self._lookout is not None:
            await self._lookout.close()
        await self.feed.close()
        await self._deliverer.close()
        await self._pool.close()
