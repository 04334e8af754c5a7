"""One server, as a remote worker sees it: settlements and renewals reach it, however often it is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from time import monotonic
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from ..client import AsyncClient
from ..client.backoff import Backoff
from ..core.outcome import Settlement
from ..errors import BadRequest, CallError, CallTimeout, KQSError, ProtocolError, TooLarge

T = TypeVar("T")

#: Seconds a server may take to answer a call that does not wait; then its connection is taken for dead.
PATIENCE = 10.0
#: Most settlements of one call, and the bytes after which no further one is added.
BATCH, BATCH_BYTES = 1000, 4 * 1024 * 1024
#: A renewal is waited for at least so long, also when the lease ends earlier, seconds.
_SHORTEST = 1.0
#: Calls that say how far a job is, at once.
_PROGRESSES = 100

#: What a renewal came to; ``failed``: the server was not reached in time.
Renewed = Literal["renewed", "lost", "cancelled", "failed"]


class _Refused(Struct):
    index: int
    code: str


class _Settled(Struct):
    refused: list[_Refused] = []


class _Renewals(Struct):
    renewed: list[str] = []
    cancelled: list[str] = []


class Upstream:
    """Calls of all workers here to one server.

    Args:
        url: of this server alone.
        token: for servers that want one; None for ``KQS_TOKEN``.
        log: where to say what was lost.
        renewed: told of every renewal: receipt, what it came to, when it was sent (monotonic seconds).

    Attributes:
        unsent: settlements the server did not answer yet, by receipt.
    """

    def __init__(
        self, url: str, token: str | None, log: Any, renewed: Callable[[str, Renewed, float], None]
    ) -> None:
        self.url = url
        self.unsent: dict[str, bytes] = {}
        self._client = AsyncClient(url, token=token)
        self._log = log.bind(server=url.partition("?")[0])
        self._renewed = renewed
        self._renewals: dict[str, tuple[dict[str, Any] | None, float]] = {}
        self._to_settle = asyncio.Event()
        self._to_renew = asyncio.Event()
        self._settled = asyncio.Condition()
        self._loops = [asyncio.create_task(self._settle_all()), asyncio.create_task(self._renew_all())]

    async def connect(self, timeout: float) -> None:
        """Have a connection.

        Raises:
            CallError: the token was refused.
            ConnectionFailed: it was not reached.
        """
        await self._client.connect(timeout=timeout)

    async def call(self, name: str, argument: bytes, timeout: float = PATIENCE) -> bytes:
        """Make a call; a connection on which no answer comes in time is given up.

        Raises:
            KQSError: as :meth:`kqs.client.AsyncClient.call`.
        """
        try:
            return await self._client.call_json(name, argument, timeout=timeout)
        except CallTimeout:
            await self._client.close()
            raise

    def finish(self) -> None:
        """Have the reserves that wait at the server answered now."""
        self._client.finish()

    # -- settlements ----------------------------------------------------------------------------

    def settle(self, settlement: Settlement) -> None:
        """Settle soon, once a server that is away is back; it takes a repeated settlement for what it is."""
        self.unsent[settlement.receipt] = msgspec.json.encode(settlement)
        self._to_settle.set()

    async def flushed(self) -> None:
        """Return when the server answered all settlements."""
        async with self._settled:
            await self._settled.wait_for(lambda: not self.unsent)

    async def _settle_all(self) -> None:
        backoff = Backoff(random.random)
        while True:
            if not self.unsent:
                self._to_settle.clear()
                await self._to_settle.wait()
            batch = _batch(self.unsent.items())
            try:
                done = await self._settle(batch)
            except CallError as error:
                self._log.warning("settlements not taken yet", code=error.code, reason=str(error))
                done = ()
            except KQSError:
                done = ()  # away
            for receipt in done:
                del self.unsent[receipt]
            if not self.unsent:
                async with self._settled:
                    self._settled.notify_all()
            if len(done) == len(batch):
                backoff.reset()
            else:
                await asyncio.sleep(backoff.next())

    async def _settle(self, batch: list[tuple[str, bytes]]) -> Collection[str]:
        """Settle these; returns the receipts there is no more to say about.

        Raises:
            KQSError: none was settled, or nobody knows.
        """
        try:
            text = await self.call("settle", b"[%b]" % b",".join(text for _receipt, text in batch))
        except (BadRequest, TooLarge) as error:
            if len(batch) > 1:  # one of them spoils the call for all
                return [receipt for one in batch for receipt in await self._settle([one])]
            self._log.error("settlement refused", receipt=batch[0][0], reason=str(error))
            return [batch[0][0]]
        later = set()
        for refused in decoded(text, _Settled).refused:
            receipt, _text = batch[refused.index]
            if refused.code == "stale_receipt":
                self._log.warning("lease was lost; what its attempt came to does not count", receipt=receipt)
            else:
                later.add(receipt)
        return [receipt for receipt, _text in batch if receipt not in later]

    # -- renewals -------------------------------------------------------------------------------

    def renew(self, receipt: str, until: float, progress: dict[str, Any] | None = None) -> None:
        """Start the ttr of a lease anew, soon.

        Args:
            receipt: of the lease.
            until: when it ends; it is not tried longer.
            progress: as the call takes it; of several that wait the last is sent.
        """
        if progress is None and receipt in self._renewals:
            progress = self._renewals[receipt][0]
        self._renewals[receipt] = progress, until
        self._to_renew.set()

    async def _renew_all(self) -> None:
        backoff = Backoff(random.random)
        while True:
            if not self._renewals:
                self._to_renew.clear()
                await self._to_renew.wait()
            plain = [receipt for receipt, (told, _until) in self._renewals.items() if told is None][:BATCH]
            telling = [receipt for receipt, (told, _until) in self._renewals.items() if told is not None]
            calls = [[receipt] for receipt in telling[:_PROGRESSES]] + ([plain] if plain else [])
            if all(await asyncio.gather(*(self._renew(receipts) for receipts in calls))):
                backoff.reset()
            else:
                await asyncio.sleep(backoff.next())

    async def _renew(self, receipts: list[str]) -> bool:
        """One call; False when the server was not reached. Leases that did not end meanwhile wait on."""
        taken = {receipt: self._renewals.pop(receipt) for receipt in receipts}
        sent = monotonic()
        progress = taken[receipts[0]][0]
        argument: dict[str, Any] = {"receipts": receipts}
        argument |= {} if progress is None else {"progress": progress}
        left = min(until for _progress, until in taken.values()) - sent
        try:
            timeout = min(PATIENCE, max(left / 2, _SHORTEST))
            answer = decoded(await self.call("renew", msgspec.json.encode(argument), timeout), _Renewals)
        except KQSError as error:
            if isinstance(error, CallError):
                self._log.warning("leases not renewed", code=error.code, reason=str(error))
            now = monotonic()
            for receipt, (told, until) in taken.items():
                if until > now:
                    self._renewals.setdefault(receipt, (told, until))
                else:
                    self._renewed(receipt, "failed", sent)
            return False
        renewed, cancelled = set(answer.renewed), set(answer.cancelled)
        for receipt in receipts:
            kind: Renewed = "renewed" if receipt in renewed else "lost"
            self._renewed(receipt, "cancelled" if receipt in cancelled else kind, sent)
        return True

    async def close(self) -> None:
        """Close the connection; what is unsent stays so."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._client.close()


def decoded(text: bytes, type: type[T]) -> T:
    """A server's answer.

    Raises:
        ProtocolError: it is not of that form.
    """
    try:
        return msgspec.json.decode(text, type=type)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"the server's answer is not as expected: {error}") from None


def _batch(settlements: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The first ones, as many as fit a call."""
    batch: list[tuple[str, bytes]] = []
    size = 0
    for receipt, text in islice(settlements, BATCH):
        batch.append((receipt, text))
        size += len(text)
        if size > BATCH_BYTES:
            break
    return batch
