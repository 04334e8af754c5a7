"""The lease book of a remote worker: what its processes hold, at which server, and until when.

Ensures (G3, G4), with no more than the calls any worker has:

* a lease is settled at the server that gave it, once that answers, whatever became of the process that held
  it: processes come and go, and so do connections; the book stays.
* an attempt runs on while its server is away, until its lease ends; then it is ended here, because somebody
  else may have it. Time is counted from the moment a reply came, by this machine's monotonic clock alone.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import msgspec
from msgspec import UNSET

from ..client.backoff import Backoff
from ..core.calls import RenewArgument, ReserveArgument
from ..core.outcome import Reason, Settlement
from ..errors import CallError, ConnectionFailed, KQSError
from ..ports import Expired, Revoked
from ..runners.link import Leased, Reserved, reserve_argument
from ..runners.spec import WorkerSpec
from .limits import Limits
from .line import WorkerLine
from .upstream import PATIENCE, Renewed, Upstream, decoded

#: Longest wait of a reserve at a server, seconds: one whose worker is gone must not stay there for long.
WAIT = 5.0
#: Seconds until the next server is tried.
CONNECT = 3.0
#: Seconds until a server that refused is asked again.
PAUSE = 1.0
#: A lease of a type that keeps alive is renewed at this share of its ttr.
RENEW_AT = 1 / 3
#: A renewal is believed to come true when less than this share of the ttr is over.
YOUNG = 1 / 2


class Lease:
    """One lease that a worker here holds.

    Attributes:
        upstream: the server that gave it.
        worker: the name of who holds it.
        until: when it ends, monotonic seconds.
        renew_at: when it is to be renewed, monotonic seconds; None: when its handler asks.
        ended: whether its end was told.
        answers: who waits to know what a renewal came to.
    """

    __slots__ = ("answers", "ended", "id", "receipt", "renew_at", "ttr", "until", "upstream", "worker")

    def __init__(
        self, leased: Leased, upstream: Upstream, worker: str, now: float, *, keep_alive: bool
    ) -> None:
        self.receipt = leased.receipt
        self.id = leased.id
        self.ttr = leased.ttr
        self.upstream = upstream
        self.worker = worker
        self.until = now + leased.ttr
        self.renew_at = now + leased.ttr * RENEW_AT if keep_alive else None
        self.ended = False
        self.answers: list[asyncio.Future[Renewed]] = []

    def started_anew(self, sent: float) -> None:
        """Its ttr counts from here."""
        self.until, self.ended = sent + self.ttr, False
        if self.renew_at is not None:
            self.renew_at = sent + self.ttr * RENEW_AT

    def expired(self) -> Expired:
        return Expired(self.receipt, self.id, self.worker, self.ttr)


class RemoteBook:
    """See :class:`kqs.runners.supervisor.LeaseBook`.

    Work is taken from one server at a time: the next in turn when that is away.

    Args:
        urls: one a server, in the order in which they are tried.
        token: for servers that want one; None for ``KQS_TOKEN``.
        limits: how much work is taken.
        log: where to say what happened.
    """

    def __init__(self, urls: Sequence[str], token: str | None, limits: Limits, log: Any) -> None:
        self._upstreams = [Upstream(url, token, log, self._renewed) for url in urls]
        self._at = 0
        self._reaching = asyncio.Lock()
        self._reached: Upstream | None = None
        self._backoff = Backoff(random.random)
        self._limits = limits
        self._log = log
        self._leases: dict[str, Lease] = {}
        self._lost: list[Revoked] = []
        self._cancelled: list[Revoked] = []
        self._reserves: set[asyncio.Task[bytes]] = set()

    async def connect(self, timeout: float) -> str:
        """Have a connection to a server; returns its URL.

        Raises:
            CallError: it refused the token.
            ConnectionFailed: none was reached.
        """
        failure: KQSError = ConnectionFailed("no server")
        for upstream in self._upstreams:
            try:
                await upstream.connect(timeout / len(self._upstreams))
                await upstream.call("renew", b'{"receipts":[]}')  # may the token do that?
                return upstream.url
            except ConnectionFailed as error:
                failure = error
        raise failure

    # -- for the supervisors --------------------------------------------------------------------

    async def attach(self, sock: socket.socket, spec: WorkerSpec) -> WorkerLine:
        line = WorkerLine(spec, self)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: line, sock)
        return line

    def held_by(self, worker: str) -> list[str]:
        return [lease.receipt for lease in self._leases.values() if lease.worker == worker]

    async def release(self, receipts: Sequence[str]) -> None:
        self.settle([Settlement(receipt, "release") for receipt in receipts])

    async def rescue(self, receipts: Sequence[str], *, died: bool, alone: bool, reason: str) -> None:
        kind = "ttr" if not died else "worker_died" if alone else "suspect"
        delay = None if died else 0.0
        told = Reason(reason, kind)
        self.settle([Settlement(receipt, "again", delay=delay, reason=told) for receipt in receipts])

    async def renew(self, receipts: Sequence[str]) -> None:
        for receipt in receipts:
            if (lease := self._leases.get(receipt)) is not None:
                lease.upstream.renew(receipt, lease.until)

    def ending(self) -> list[Expired]:
        """Leases to be renewed because their types keep alive; each once a renewal."""
        now, due = monotonic(), []
        for lease in self._leases.values():
            if lease.renew_at is not None and lease.renew_at <= now < lease.until:
                lease.renew_at = now + lease.ttr * RENEW_AT  # if this one fails
                due.append(lease.expired())
        return due

    def ended(self) -> list[Expired]:
        """Leases whose time is over; each once."""
        now, over = monotonic(), []
        for lease in self._leases.values():
            if now >= lease.until and not lease.ended:
                lease.ended = True
                over.append(lease.expired())
        return over

    def take_lost(self) -> list[Revoked]:
        """Leases that turned out to be lost, since the last time."""
        lost, self._lost = self._lost, []
        return lost

    def take_cancelled(self) -> list[Revoked]:
        """Leases whose jobs were cancelled, since the last time."""
        cancelled, self._cancelled = self._cancelled, []
        return cancelled

    # -- for the workers ------------------------------------------------------------------------

    async def reserve(self, line: WorkerLine, argument: ReserveArgument) -> bytes:
        """The answer to a worker's ``reserve``: that of a server, which may come much later."""
        work = asyncio.create_task(self._reserve(line, argument))
        self._reserves.add(work)
        work.add_done_callback(self._reserves.discard)
        return await work

    async def _reserve(self, line: WorkerLine, argument: ReserveArgument) -> bytes:
        types = line.asked() or frozenset()
        until = monotonic() + argument.wait
        first = True
        while not line.gone.is_set() and (first or monotonic() < until):
            first = False
            allowed = await self._limits.take(argument.max, line.gone)
            if not allowed:
                break
            got = 0
            try:
                upstream = await self._reach(line.gone)
                if upstream is not None:
                    wait = self._limits.wait(min(WAIT, max(0.0, until - monotonic())))
                    text, got = await self._reserve_at(upstream, line, types, allowed, wait)
                    if got:
                        return text
            finally:
                self._limits.give_back(allowed - got)
        return b'{"jobs":[]}'

    async def _reserve_at(
        self, upstream: Upstream, line: WorkerLine, types: frozenset[str], limit: int, wait: float
    ) -> tuple[bytes, int]:
        """One reserve at one server: its answer, and how many leases of it are the worker's now."""
        quiet = self._limits.quiet() if self._idle else None
        argument = reserve_argument(limit, wait, types, line.spec.name)
        try:
            text = await upstream.call("reserve", argument, wait + PATIENCE)
            leases, now = decoded(text, Reserved).jobs, monotonic()
        except KQSError as error:
            self._away(upstream, error)
            if isinstance(error, CallError):
                await asyncio.sleep(PAUSE)
            return b"", 0
        if line.gone.is_set():
            for leased in leases:
                upstream.settle(Settlement(leased.receipt, "release"))
            return b"", 0
        for leased in leases:
            keep_alive = leased.type in line.spec.keep_alive
            self._leases[leased.receipt] = Lease(leased, upstream, line.spec.name, now, keep_alive=keep_alive)
        if leases:
            self._limits.took()
        elif quiet is not None:
            self._limits.found_nothing(line.spec.pool, quiet)
        return text, len(leases)

    @property
    def _idle(self) -> bool:
        """Whether nothing is held, and no settlement is under way that may make a job ready."""
        return not self._leases and not any(upstream.unsent for upstream in self._upstreams)

    def settle(self, settlements: Iterable[Settlement]) -> bytes:
        """Settle leases; the answer to a worker's ``settle``. What is held no more is passed over."""
        refused = []
        count = 0
        for index, settlement in enumerate(settlements):
            count += 1
            lease = self._leases.pop(settlement.receipt, None)
            if lease is None:
                refused.append({"index": index, "code": "stale_receipt"})
                continue
            lease.upstream.settle(settlement)
            self._let_go(lease, "lost")
            if settlement.outcome == "release":
                self._limits.give_back(1)
            else:
                self._limits.finished()
        return msgspec.json.encode({"settled": count - len(refused), "refused": refused})

    async def renewed(self, argument: RenewArgument) -> bytes:
        """The answer to a worker's ``renew``.

        Of a lease that has most of its time before it, it is not waited for: should it turn out to be lost,
        its attempt is ended.
        """
        progress = None if argument.progress is UNSET else msgspec.to_builtins(argument.progress)
        answer: dict[str, list[str]] = {"renewed": [], "lost": [], "cancelled": []}
        waiting: list[tuple[str, asyncio.Future[Renewed]]] = []
        now = monotonic()
        for receipt in argument.receipts:
            lease = self._leases.get(receipt)
            if lease is None:
                answer["lost"].append(receipt)
                continue
            lease.upstream.renew(receipt, lease.until, progress)
            if lease.until - now > YOUNG * lease.ttr:
                answer["renewed"].append(receipt)
            else:
                future = asyncio.get_running_loop().create_future()
                lease.answers.append(future)
                waiting.append((receipt, future))
        for receipt, future in waiting:
            became = await future
            answer["lost" if became == "failed" else became].append(receipt)
        return msgspec.json.encode(answer)

    def _renewed(self, receipt: str, became: Renewed, sent: float) -> None:
        """What a renewal came to."""
        lease = self._leases.get(receipt)
        if lease is None:
            return  # settled meanwhile
        if became in ("renewed", "cancelled"):
            lease.started_anew(sent)
        if became == "lost":
            del self._leases[receipt]
            self._limits.finished()
            self._lost.append(Revoked(receipt, lease.worker))
            self._log.warning("lease lost", receipt=receipt, job=lease.id)
        elif became == "cancelled":
            self._cancelled.append(Revoked(receipt, lease.worker))
        self._let_go(lease, became)

    @staticmethod
    def _let_go(lease: Lease, became: Renewed) -> None:
        for future in lease.answers:
            if not future.done():
                future.set_result(became)
        lease.answers.clear()

    # -- servers --------------------------------------------------------------------------------

    async def _reach(self, gone: asyncio.Event) -> Upstream | None:
        """The server to take work from, connected; None when nobody is there any more to do it."""
        async with self._reaching:
            while not gone.is_set():
                upstream = self._upstreams[self._at]
                try:
                    await upstream.connect(CONNECT)
                except KQSError as error:
                    self._away(upstream, error)
                    if self._at == 0:  # all were tried
                        with suppress(TimeoutError):
                            await asyncio.wait_for(gone.wait(), self._backoff.next())
                    continue
                self._backoff.reset()
                if self._reached is not upstream:
                    self._reached = upstream
                    self._log.info("connected", server=upstream.url.partition("?")[0])
                return upstream
        return None

    def _away(self, upstream: Upstream, error: KQSError) -> None:
        """A server did not answer: the next one's turn, if nobody said so yet."""
        if self._upstreams[self._at] is not upstream:
            return
        if self._reached is upstream or isinstance(error, CallError):
            self._reached = None
            self._log.warning("server away", server=upstream.url.partition("?")[0], reason=str(error))
        self._at = (self._at + 1) % len(self._upstreams)

    async def finish(self, patience: float) -> int:
        """Take nothing more, give back what comes after all, say what is unsaid; returns what could not be.

        Args:
            patience: seconds for all of it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                for upstream in self._upstreams:
                    upstream.finish()
                if self._reserves:
                    await asyncio.wait(self._reserves)
                await self.release(list(self._leases))
                for upstream in self._upstreams:
                    await upstream.flushed()
        for task in self._reserves:
            task.cancel()
        unsaid = sum(len(upstream.unsent) for upstream in self._upstreams)
        for upstream in self._upstreams:
            await upstream.close()
        return unsaid
