"""Puts jobs that were accepted into tubes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from ...core.job import SECOND, NewJob
from ...errors import EngineAway
from ...ports import Clock
from ..feed import Fed
from .client import PATIENCE, Connection
from .pool import Pool, Server
from .protocol import Reply, delete, kick_job, put, use
from .tubes import PRIORITIES, encode, tube_of

#: Seconds beanstalkd lets a lease last longer than KQS does, which ends it first, and tells why.
MARGIN: Final = 5
#: Before another tube is used: what is put while that fails lies where nobody here takes it for a job of
#: another type, until it is deleted.
_ASIDE: Final = use(b"default")
#: Seconds between two looks at what is under way, while there is nothing else to deliver.
_MOMENT: Final = 0.05
#: The longest delay beanstalkd takes, seconds.
_LONGEST: Final = (1 << 32) - 1


def seconds(micros: int) -> int:
    """Whole seconds, never fewer: beanstalkd knows no parts of one, and a delay is never early."""
    return min(_LONGEST, max(0, -(-micros // SECOND)))


def lease_seconds(job: NewJob) -> int:
    """The ttr beanstalkd is given."""
    return min(_LONGEST, -(-job.ttr // 1000) + MARGIN)


class Deliverer:
    """Takes the jobs of a feed.

    What a server does not answer soon stays under way there, so that the others go on: it is offered to no
    other one before the connection is given up.

    Args:
        pool: the servers.
        clock: time.
        max_job_size: the largest body all servers take.
    """

    def __init__(self, pool: Pool, clock: Clock, max_job_size: int) -> None:
        self._pool = pool
        self._clock = clock
        self._max = max_job_size
        self._under_way: dict[asyncio.Task[str], list[Fed]] = {}

    async def deliver(self, jobs: Sequence[Fed]) -> None:
        """See :class:`kqs.engines.feed.Feed`.

        Raises:
            EngineAway: no server takes the rest now.
        """
        busy = {fed.number for share in self._under_way.values() for fed in share}
        left = [fed for fed in jobs if not fed.delivered and fed.number not in busy]
        shares: dict[Server, list[Fed]] = {}
        for fed, server in zip(left, self._pool.spread(len(left)), strict=False):
            shares.setdefault(server, []).append(fed)
        if left and not shares:
            raise EngineAway("no beanstalkd is up that takes jobs")
        fresh = {asyncio.create_task(self._put(server, share)): share for server, share in shares.items()}
        self._under_way |= fresh
        if self._under_way:
            await asyncio.wait(fresh or self._under_way, timeout=PATIENCE if fresh else _MOMENT)
        self._ended()

    def _ended(self) -> None:
        """Look at what is under way no more.

        Raises:
            EngineAway: a server did not take all it was given.
        """
        reasons: dict[str, None] = {}
        failed = False
        for task in [task for task in self._under_way if task.done()]:
            share = self._under_way.pop(task)
            failed |= any(not fed.delivered and not fed.refused for fed in share)
            reasons[task.result()] = None
        if failed:
            raise EngineAway("; ".join(filter(None, reasons)))

    async def close(self) -> None:
        """Leave what is under way."""
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _put(self, server: Server, jobs: list[Fed]) -> str:
        """Put jobs into one server; returns why it did not take all of them."""
        now, used = self._clock.now(), b""
        commands: list[bytes] = []
        offered: list[tuple[Fed, int, int]] = []  # and the places of its use and its put
        for fed in jobs:
            job = fed.job
            body = encode(fed.id, job, fed.accepted)
            if len(body) > self._max:
                fed.refused = f"{len(body)} bytes are more than beanstalkd's max-job-size of {self._max}"
                continue
            tube = tube_of(job.type)
            if tube != used:
                used = tube
                commands += (_ASIDE, use(tube))
                using = len(commands) - 1
            offered.append((fed, using, len(commands)))
            delay = seconds(fed.wait(now))
            commands.append(put(PRIORITIES[job.prio], delay, lease_seconds(job), body))
        try:
            connection = server.connection
            replies = await connection.send(commands)
        except EngineAway as away:
            return str(away)
        reasons = {
            reason: None
            for fed, using, place in offered
            if (reason := self._took(server, connection, fed, replies[using], replies[place]))
        }
        return "; ".join(reasons)

    @staticmethod
    def _took(server: Server, connection: Connection, fed: Fed, using: Reply, reply: Reply) -> str:
        """Note what became of a put; returns why it did not work, or nothing."""
        if using.word != b"USING":
            if reply.word in (b"INSERTED", b"BURIED"):
                connection.send([delete(reply.number)])
            return f"beanstalkd at {server.name} says {_text(using.word)} to use"
        match reply.word:
            case b"INSERTED":
                fed.delivered = True
                return ""
            case b"BURIED":  # out of memory for its place in line: it is there, and must be brought back
                fed.delivered = True
                connection.send([kick_job(reply.number)])
                structlog.get_logger().warning("a beanstalkd is short of memory", server=server.name)
                return ""
            case b"JOB_TOO_BIG":
                fed.refused = f"beanstalkd at {server.name} says JOB_TOO_BIG"
                return ""
            case b"DRAINING":
                server.draining = True
        return f"beanstalkd at {server.name} says {_text(reply.word)}"


def _text(word: bytes) -> str:
    return word.decode("ascii", "replace")
