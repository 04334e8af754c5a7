"""Takes jobs from the servers, for who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ...core.job import NO_OPTIONS, SECOND
from ...errors import EngineAway
from ...ports import Clock, Lease, Revoked
from .client import PATIENCE, Connection
from .deliver import MARGIN
from .leases import Corrections, Leases, Reserved
from .look import Tubes
from .pool import Pool, Server
from .protocol import RESERVE, About, Reply, about, delete, ignore, release, stats_job, watch
from .tubes import decode, priority_class

#: Jobs asked for in one go; and once so many were there.
_AT_ONCE: Final = 100
_AT_MOST: Final = 500


class Taker:
    """See the module.

    Args:
        pool: the servers.
        tubes: told what was seen in them.
        leases: where what was taken is entered.
        corrections: of attempts and deaths.
        clock: time.
        nonce: draws random bits, for receipts.
        revoked: told of leases that beanstalkd had ended before.
        back: takes receipts of jobs that were taken for nobody.
    """

    def __init__(
        self,
        pool: Pool,
        tubes: Tubes,
        leases: Leases,
        corrections: Corrections,
        clock: Clock,
        nonce: Callable[[int], int],
        *,
        revoked: Callable[[Sequence[Revoked]], None],
        back: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._tubes = tubes
        self._leases = leases
        self._corrections = corrections
        self._clock = clock
        self._nonce = nonce
        self._revoked = revoked
        self._back = back
        self._epoch = f"{nonce(64):016x}"
        self._given = 0
        self._late: set[asyncio.Future[None]] = set()
        self._closing = False

    async def take(self, types: frozenset[str], wanted: set[bytes], limit: int, holder: str) -> list[Lease]:
        """Jobs from one server after the other.

        Args:
            types: what is asked for; each set of types has a connection to each server.
            wanted: the tubes to take them from.
            limit: most jobs.
            holder: the worker's name.
        """
        leases: list[Lease] = []
        for server in self._pool.up() if wanted else ():
            leases += await self._patiently(server, types, wanted, limit - len(leases), holder)
            if len(leases) >= limit:
                break
        return leases

    async def _patiently(
        self, server: Server, types: frozenset[str], wanted: set[bytes], limit: int, holder: str
    ) -> list[Lease]:
        """Jobs from one server, as long as it goes on giving some."""
        found: list[Lease] = []
        taking = asyncio.create_task(self._take(server, types, wanted, limit, holder, found))
        before, kept = -1, 0
        try:
            while not taking.done() and len(found) > before:
                before = len(found)
                await asyncio.wait({taking}, timeout=PATIENCE)
            kept = len(found)
        finally:
            taking.add_done_callback(lambda done: self._came_late(done, found[kept:]))
        try:
            return found[:kept] if not taking.done() or taking.result() else []
        except EngineAway:
            return []

    def _came_late(self, taking: asyncio.Task[bool], late: list[Lease]) -> None:
        """Jobs were taken when nobody waited for them any more: they go back."""
        if taking.cancelled() or taking.exception() is not None or not late:
            return
        back = asyncio.ensure_future(self._back([lease.receipt for lease in late]))
        self._late.add(back)
        back.add_done_callback(self._late.discard)

    async def _take(
        self,
        server: Server,
        types: frozenset[str],
        wanted: set[bytes],
        limit: int,
        holder: str,
        found: list[Lease],
    ) -> bool:
        """Jobs from one server, as they are found; False when they are ready again, as it closes."""
        connection = await server.taker(types)
        server.spare(self._leases.connections())
        while len(found) < limit and not self._closing:
            count = min(limit - len(found), _AT_MOST if found else _AT_ONCE)
            taken = await self._reserve(connection, wanted, count)
            entered = await self._enter(connection, taken, wanted, holder) if taken else []
            found += entered
            if len(taken) < count or not entered:
                break
        return not self._closing

    @staticmethod
    async def _reserve(connection: Connection, wanted: set[bytes], count: int) -> list[Reply]:
        """Reserve on a connection, which watches these tubes from then on."""
        more, less = list(wanted - connection.watched), list(connection.watched - wanted)
        connection.watched = set(wanted)
        commands = [*map(watch, more), *map(ignore, less)]
        replies = await connection.send([*commands, *[RESERVE] * count])
        for tube, reply in zip((*more, *less), replies, strict=False):
            if reply.word != b"WATCHING":  # as before, then: it is tried again
                connection.watched ^= {tube}
        return [reply for reply in replies[len(commands) :] if reply.word == b"RESERVED"]

    async def _enter(
        self, connection: Connection, taken: list[Reply], wanted: set[bytes], holder: str
    ) -> list[Lease]:
        """Make leases of what was reserved."""
        leases: list[Lease] = []
        stats = await connection.send([stats_job(reply.number) for reply in taken])
        now, nonce = self._clock.now(), f"{self._epoch}-{self._nonce(64):016x}"
        for reply, told in zip(taken, stats, strict=True):
            if told.word != b"OK":
                continue  # short of memory: beanstalkd ends the reservation with its ttr
            job = about(told.body)
            if job.tube not in wanted:  # a tube that could not be ignored
                connection.send([release(reply.number, job.priority, 0)])
                continue
            reserved, lease = self._lease(connection, reply, job, holder, now, nonce)
            if self._corrections.acked.get(lease.id):  # put twice, as the first reply was lost
                connection.send([delete(reply.number)])
                continue
            if (former := self._leases.add(reserved)) is not None:
                self._revoked([Revoked(former.receipt, former.holder)])
            leases.append(lease)
        return leases

    def _lease(
        self, connection: Connection, reply: Reply, told: About, holder: str, now: int, nonce: str
    ) -> tuple[Reserved, Lease]:
        """What is known of a job that was taken."""
        body = decode(reply.body, told.tube)
        header = body.header
        self._tubes.seen.setdefault(told.tube, body.type)
        if header is None:  # somebody else's: what beanstalkd knows must do
            id = f"beanstalkd-{connection.instance}-{reply.number}"
            ttr = max(1, told.ttr - MARGIN) * 1000
            inserted = now - told.age * SECOND
            options = NO_OPTIONS
        else:
            id, ttr, inserted, options = header.id, header.ttr, header.at, header.options
        attempt = max(1, told.reserves - (self._corrections.unrun.get(id) or 0))
        deaths = self._corrections.deaths.get(id) or 0
        self._given += 1
        receipt = f"{nonce}-{self._given:x}"
        expires = now + ttr * 1000
        reserved = Reserved(
            receipt,
            id,
            reply.number,
            connection,
            body.type,
            attempt,
            deaths,
            told.priority,
            ttr,
            options,
            holder,
            expires,
        )
        lease = Lease(
            receipt,
            id,
            body.type,
            attempt,
            priority_class(told.priority),
            ttr / 1000,
            body.data,
            body.binary,
            options.bulk,
            inserted,
            expires,
            deaths,
        )
        return reserved, lease

    def close(self) -> None:
        """Take nothing more."""
        self._closing = True
