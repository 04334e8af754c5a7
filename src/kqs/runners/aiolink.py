"""A worker's end of its connection on an event loop; see :mod:`kqs.runners.link` for the blocking one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection

import msgspec

from ..core import wire
from ..core.outcome import Settlement
from ..core.wire import LineReader, Reply
from ..errors import CallError, ConnectionFailed
from .link import (
    GATHER,
    MAX_GATHERED,
    MAX_REPLY,
    Leased,
    leases_of,
    progress_argument,
    renew_argument,
    renewed_of,
    reserve_argument,
)


class AsyncLink(asyncio.Protocol):
    """Calls of one worker; all methods are called on the loop.

    Args:
        types: job types to ask for, or None for all that the connection is for.
    """

    def __init__(self, types: Collection[str] | None = None) -> None:
        self._types = types
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = LineReader(MAX_REPLY)
        self._calls = 0
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._unsent: list[Settlement] = []
        self._flushing: asyncio.TimerHandle | None = None
        #: Done when the server is gone.
        self.gone: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def open(cls, sock: socket.socket, types: Collection[str] | None = None) -> AsyncLink:
        """A link over a connected socket."""
        sock.setblocking(False)
        link = cls(types)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: link, sock)
        return link

    async def reserve(self, limit: int, wait: float) -> list[Leased]:
        """Lease up to ``limit`` jobs, waiting up to ``wait`` seconds for the first."""
        return leases_of(await self._call("reserve", reserve_argument(limit, wait, self._types)))

    async def renew(self, receipts: list[str]) -> set[str]:
        """Start the ttr of leases anew; returns the receipts still current, their jobs not cancelled."""
        return renewed_of(await self._call("renew", renew_argument(receipts)))

    def progress(self, receipt: str, fraction: float | None, message: str) -> None:
        """Tell how far a job is, without waiting; its lease starts anew."""
        self._write("renew", progress_argument(receipt, fraction, message))

    def settle(self, settlement: Settlement) -> None:
        """Settle soon: at the latest ``GATHER`` seconds later, or before the next call."""
        self._unsent.append(settlement)
        if len(self._unsent) >= MAX_GATHERED:
            self.flush()
        elif self._flushing is None:
            self._flushing = self._loop.call_later(GATHER, self.flush)

    def flush(self) -> None:
        """Send what :meth:`settle` gathered."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._unsent:
            gathered, self._unsent = self._unsent, []
            self._write("settle", msgspec.json.encode(gathered))

    async def close(self) -> None:
        """Send what is left, and return when the server has it or is gone."""
        self.flush()
        assert self._transport is not None
        self._transport.close()
        await self.gone

    # -- the wire -------------------------------------------------------------------------------

    async def _call(self, name: str, argument: bytes) -> bytes:
        """Make a call and wait for its reply's value.

        Raises:
            ConnectionFailed: the server is gone.
            CallError: it refused.
        """
        self.flush()
        call = self._write(name, argument)
        waiting: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[call] = waiting
        try:
            return await waiting
        finally:
            self._waiting.pop(call, None)

    def _write(self, name: str, argument: bytes) -> str:
        if self.gone.done():
            raise ConnectionFailed("the server is gone", sent=False)
        assert self._transport is not None
        self._calls += 1
        call = str(self._calls)
        self._transport.write(wire.encode_request(call, name, argument))
        return call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for reply in wire.decode_replies(self._reader.feed(data)):
            waiting = self._waiting.get(str(reply.id))
            if waiting is not None and not waiting.done():
                _answer(waiting, reply)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(None)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionFailed("the server is gone", sent=True))


def _answer(waiting: asyncio.Future[bytes], reply: Reply) -> None:
    try:
        reply.check()
    except CallError as error:
        waiting.set_exception(error)
    else:
        waiting.set_result(bytes(reply.m))
