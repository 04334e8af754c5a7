"""Ends leases: what a settlement, or its absence, makes of a job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from ...core.job import PRIO_NUMBER, SECOND, BulkRef
from ...core.outcome import Reason, Settlement
from ...core.retry import RetryPolicy, attempts_left, retry_delay
from ...errors import EngineAway
from ...ports import Clock, Refusal, Renewal
from ..rules import POISON_DEATHS
from .client import Connection
from .deliver import seconds
from .leases import Corrections, Leases, Reserved
from .protocol import Reply, bury, delete, kick_job, release, touch
from .tubes import PRIORITIES, priority_class
from .wakes import Wakes

_DEFAULT_RETRY: Final = RetryPolicy()


class Settler:
    """See the module.

    Args:
        leases: those that are out.
        corrections: of attempts and deaths.
        wakes: rung for what is ready again.
        clock: time.
        random: draws from [0, 1), for jitter.

    Attributes:
        done: jobs that were acked, by type.
    """

    def __init__(
        self,
        leases: Leases,
        corrections: Corrections,
        wakes: Wakes,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._leases = leases
        self._corrections = corrections
        self._wakes = wakes
        self._clock = clock
        self._random = random
        self.done: Counter[str] = Counter()

    async def renew(self, receipts: Sequence[str]) -> list[Renewal]:
        """See :meth:`kqs.ports.Engine.renew`."""
        leases = [self._leases.get(receipt) for receipt in receipts]
        now = self._clock.now()
        replies = await self._send([(lease, touch(lease.number)) for lease in leases if lease is not None])
        answers: list[Renewal] = []
        for lease in leases:
            reply = None if lease is None else replies.get(lease.receipt)
            if lease is None or self._leases.get(lease.receipt) is None:
                answers.append("lost")
            elif reply is not None and reply.word == b"TOUCHED":
                self._leases.renew(lease, now + lease.ttr * 1000)
                answers.append("renewed")
            else:
                self._leases.remove(lease)
                answers.append("lost")
        return answers

    async def settle(self, settlements: Sequence[Settlement]) -> tuple[list[Refusal], list[BulkRef]]:
        """See :meth:`kqs.ports.Engine.settle`; returns also the payloads in the bulk store that may go."""
        refused: list[Refusal] = []
        over: list[tuple[int, Settlement]] = []
        commands: list[tuple[Reserved, bytes]] = []
        ends: list[tuple[int, Reserved, str, float | None]] = []
        for position, settlement in enumerate(settlements):
            lease = self._leases.get(settlement.receipt)
            if lease is None:
                over.append((position, settlement))
                continue
            self._leases.remove(lease)
            command, wait = self._command(lease, settlement)
            commands.append((lease, command))
            ends.append((position, lease, settlement.outcome, wait))
        replies = await self._send(commands)
        bulk: list[BulkRef] = []
        ready: dict[str, None] = {}
        for position, lease, outcome, wait in ends:
            reply = replies.get(lease.receipt)
            if reply is None or reply.word not in (b"DELETED", b"RELEASED", b"BURIED"):
                refused.append(Refusal(position, "stale_receipt"))
                continue
            self._leases.settled[lease.receipt] = outcome
            self._ended(lease, outcome, wait, reply, ready, bulk)
        for position, settlement in over:  # by now it is known what came of one that stood here before
            if self._leases.settled.get(settlement.receipt) != settlement.outcome:
                refused.append(Refusal(position, "stale_receipt"))
        if ready:
            self._wakes.ring(list(ready))
        refused.sort(key=lambda refusal: refusal.index)
        return refused, bulk

    async def rescue(
        self, receipts: Sequence[str], *, overdue: bool, died: bool, alone: bool, reason: str
    ) -> None:
        """See :meth:`kqs.ports.Engine.rescue`."""
        now = self._clock.now()
        commands: list[tuple[Reserved, bytes]] = []
        waits: dict[str, float | None] = {}
        for receipt in receipts:
            lease = self._leases.get(receipt)
            if lease is None or (overdue and lease.expires > now):
                continue
            self._leases.remove(lease)
            if died:
                command, wait = self._died(lease, alone)
            elif attempts_left(lease.options.max_attempts, lease.attempt):
                command, wait = self._release(lease, lease.priority, 0.0)
            else:
                command, wait = self._bury(lease, reason), None
            commands.append((lease, command))
            waits[receipt] = wait
        replies = await self._send(commands)
        ready: dict[str, None] = {}
        for lease, _command in commands:
            if (reply := replies.get(lease.receipt)) is not None:
                self._ended(lease, "rescue", waits[lease.receipt], reply, ready, [])
        if ready:
            self._wakes.ring(list(ready))

    @staticmethod
    async def _send(commands: Sequence[tuple[Reserved, bytes]]) -> dict[str, Reply]:
        """Send a command about each lease on its connection; returns the replies that came, by receipt."""
        batches: dict[Connection, list[tuple[Reserved, bytes]]] = {}
        for lease, command in commands:
            batches.setdefault(lease.connection, []).append((lease, command))
        sent = [
            (batch, connection.send([command for _lease, command in batch]))
            for connection, batch in batches.items()
        ]
        replies: dict[str, Reply] = {}
        for batch, future in sent:
            try:
                for (lease, _command), reply in zip(batch, await future, strict=True):
                    replies[lease.receipt] = reply
            except EngineAway:
                continue
        return replies

    def _command(self, lease: Reserved, settlement: Settlement) -> tuple[bytes, float | None]:
        """What ends a lease, and how long its job waits then; None when it does not wait to run."""
        outcome, options, reason = settlement.outcome, lease.options, settlement.reason
        priority = lease.priority
        if settlement.prio is not None and PRIO_NUMBER[settlement.prio] != priority_class(priority):
            priority = PRIORITIES[PRIO_NUMBER[settlement.prio]]
        if outcome == "ok":
            return delete(lease.number), None
        if outcome == "release":
            return self._release(lease, priority, settlement.delay or 0.0)
        kind = reason.kind if isinstance(reason, Reason) else None
        if outcome == "again" and kind in ("worker_died", "suspect"):
            return self._died(lease, kind == "worker_died")
        if outcome == "again" and attempts_left(options.max_attempts, lease.attempt):
            delay = settlement.delay
            if delay is None:
                delay = retry_delay(options.retry or _DEFAULT_RETRY, lease.attempt, self._random())
            return self._release(lease, priority, delay)
        return self._bury(lease, reason.message if isinstance(reason, Reason) else reason or outcome), None

    @staticmethod
    def _release(lease: Reserved, priority: int, delay: float) -> tuple[bytes, float]:
        wait = seconds(int(delay * SECOND))
        return release(lease.number, priority, wait), wait

    @staticmethod
    def _bury(lease: Reserved, reason: str) -> bytes:
        """beanstalkd keeps no reason, so the log does."""
        structlog.get_logger().warning(
            "buried", job=lease.id, type=lease.type, attempt=lease.attempt, reason=reason
        )
        return bury(lease.number, lease.priority)

    def _died(self, lease: Reserved, alone: bool) -> tuple[bytes, float | None]:
        """A job's worker died running it; see the embedded engine's settle."""
        deaths = lease.deaths + 1 if alone else max(lease.deaths, 1)
        if deaths >= POISON_DEATHS and alone:
            return self._bury(lease, f"poison: it killed its worker {deaths} times"), None
        self._corrections.deaths[lease.id] = deaths
        if not attempts_left(lease.options.max_attempts, lease.attempt):
            return self._bury(lease, "the worker died running its last attempt"), None
        wait = retry_delay(lease.options.retry or _DEFAULT_RETRY, lease.attempt, self._random())
        return self._release(lease, lease.priority, wait)

    def _ended(
        self,
        lease: Reserved,
        outcome: str,
        wait: float | None,
        reply: Reply,
        ready: dict[str, None],
        bulk: list[BulkRef],
    ) -> None:
        """What follows when a lease is over."""
        if reply.word == b"DELETED":
            self.done[lease.type] += 1
            self._corrections.acked[lease.id] = True
            if lease.options.bulk is not None:
                bulk.append(lease.options.bulk)
        if outcome == "release":
            self._corrections.not_run(lease.id)
        if wait is None:
            return
        if reply.word == b"BURIED":  # a release for which it had no memory
            lease.connection.send([kick_job(lease.number)])
            structlog.get_logger().warning("short of memory", server=lease.connection.name)
        if wait:
            self._wakes.later(self._clock.now() + int(wait) * SECOND, lease.type)
        else:
            ready[lease.type] = None
