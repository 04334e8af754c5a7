"""One connection of a simulated client: calls in, replies or their absence out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ...client.session import Session, encode_argument
from ...errors import CallError
from .loop import VirtualLoop
from .network import Network, Transport


class Lost(Exception):
    """The connection ended before the reply: the call was done or not done."""


class Sent(NamedTuple):
    """When a call was made.

    Attributes:
        life: of the server, counted from 1.
        at: nanoseconds on the timeline.
        clock: the server's own time then, microseconds since 1970.
    """

    life: int
    at: int
    clock: int


class Answer(NamedTuple):
    """What became of a call that was answered.

    Attributes:
        value: the reply, decoded, when it was no error.
        error: what it was refused with, or None.
        sent, came: when it was sent, and when its reply was read.
    """

    value: Any
    error: CallError | None
    sent: Sent
    came: Sent


class Peer(asyncio.Protocol):
    """A connection to the server.

    Args:
        now: tells life and time; the time by an earlier life's clock when its number is given.

    Attributes:
        over: set when the connection has ended.
        lost: whether it was reset, rather than closed.
        life: the server's, when it was made.
    """

    def __init__(self, now: Any) -> None:
        self._now = now
        self._session = Session()
        self._open: dict[str, tuple[Sent, asyncio.Future[Answer]]] = {}
        self.transport: Transport | None = None
        self.life = 0
        self.over = asyncio.Event()
        self.lost = False

    @classmethod
    def connect(cls, network: Network, loop: VirtualLoop, now: Any) -> Peer | None:
        """A new connection, or None when nobody listens."""
        peer = cls(now)
        return peer if network.connect(loop, peer) else None

    # -- from the transport ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Transport)
        self.transport = transport
        self.life = self._now().life

    def data_received(self, data: bytes) -> None:
        for id, reply in self._session.feed(data):
            if reply.last and id in self._open:
                sent, future = self._open.pop(id)
                value, error = None, None
                try:
                    value = reply.value()
                except CallError as caught:
                    error = caught
                if not future.done():
                    future.set_result(Answer(value, error, sent, self._now(self.life)))

    def connection_lost(self, reason: Exception | None) -> None:
        self.lost = reason is not None
        self._give_up()
        self.over.set()

    def eof_received(self) -> bool:
        return False

    def _give_up(self) -> None:
        calls, self._open = self._open, {}
        for _sent, future in calls.values():
            if not future.done():
                future.set_exception(Lost())
                future.exception()

    # -- calls ----------------------------------------------------------------------------------

    def make(self, calls: Sequence[tuple[str, Any]], *, before: bytes = b"") -> list[asyncio.Future[Answer]]:
        """Make calls, in one write.

        Args:
            calls: name and argument of each.
            before: bytes written before them.
        """
        lines, futures = [before], []
        sent = self._now(self.life)
        for name, argument in calls:
            id, line = self._session.call(name, encode_argument(argument))
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            if self.over.is_set() or self.transport is None or self.transport.is_closing():
                future.set_exception(Lost())
                future.exception()
            else:
                self._open[id] = (sent, future)
                lines.append(line)
            futures.append(future)
        self.write(b"".join(lines))
        return futures

    async def call(self, name: str, argument: Any = msgspec.UNSET) -> Answer:
        """Make a call and wait for its reply.

        Raises:
            Lost: there will be none.
        """
        return await self.make([(name, argument)])[0]

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self.transport is not None:
            self.transport.write(data)

    def half_close(self) -> None:
        """Send nothing more."""
        if self.transport is not None:
            self.transport.write_eof()

    def stall(self, on: bool) -> None:
        """Read nothing, or read on."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading() if on else self.transport.resume_reading()

    def drop(self) -> None:
        """End the connection now; what is not answered never will be."""
        if self.transport is not None:
            self.transport.abort()
