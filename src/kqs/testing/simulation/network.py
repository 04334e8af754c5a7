"""Connections between simulated processes: bytes late, in pieces, cut off, or not at all.

Every direction of a connection keeps its bytes in order and loses none while the connection stands, as TCP
does. In which pieces they come, and when, is drawn from the seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, cast

from .loop import VirtualLoop

#: Sends a peer's bytes to whoever keeps the record: where to, and what.
Witness = Callable[[str, bytes], None]

_STEP = 0.0005


class Transport(asyncio.Transport):
    """One end of a connection.

    Args:
        network: what decides delays and pieces.
        loop: the process it belongs to.
        name: of the connection, and of this end.
    """

    def __init__(self, network: Network, loop: VirtualLoop, name: str) -> None:
        super().__init__()
        self.loop = loop
        self.name = name
        self.peer: Transport
        self._network = network
        self.protocol: asyncio.Protocol
        self._waiting = bytearray()  # for this end to read
        self._eof_waits = False
        self._reset = False
        self._reading = True
        self._on_its_way = False
        self._high = network.buffer
        self._full = False
        self._eof_sent = False
        self._closing = False
        self.lost = False

    def join(self, peer: Transport, protocol: asyncio.Protocol) -> None:
        """Connect to the other end."""
        self.peer = peer
        self.protocol = protocol

    def begin(self) -> None:
        self.protocol.connection_made(self)

    # -- the transport's interface --------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("sim", self.name) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = min(self._network.buffer, self._network.buffer if high is None else high)

    def get_write_buffer_size(self) -> int:
        return len(self.peer._waiting)

    def is_closing(self) -> bool:
        return self._closing or self.lost

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not data or self._closing or self.lost or not self.loop.alive:
            return
        if self._eof_sent:
            raise RuntimeError("write after write_eof")
        if self.peer.is_closing():
            self.reset(keep=True)
            return
        self.peer._waiting += data
        self.peer._look()
        if len(self.peer._waiting) > self._high and not self._full:
            self._full = True
            self.protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof_sent and self.loop.alive:
            self._eof_sent = True
            self.peer._eof_waits = True
            self.peer._look()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._look()

    def close(self) -> None:
        if not self._closing and not self.lost:
            self.write_eof()
            self._closing = True
            self.loop.call_later(self._network.delay(), self._lose, None)

    def abort(self) -> None:
        """Reset the connection: the peer may not get what was on its way to it."""
        if not self.lost and self.loop.alive:
            self._closing = True
            self.loop.call_soon(self._lose, None)
            self.peer.reset(keep=False)

    # -- what happens to it ---------------------------------------------------------------------

    def reset(self, *, keep: bool) -> None:
        """The other end is gone.

        Args:
            keep: whether what it sent still arrives.
        """
        if not keep:
            self._waiting.clear()
        self._reset = True
        self._look()

    def _look(self) -> None:
        """See to it that what waits is read."""
        if not self._on_its_way and not self.lost and (self._reset or (self._reading and self._something)):
            self._on_its_way = True
            self.loop.call_later(self._network.delay(), self._arrive)

    @property
    def _something(self) -> bool:
        return bool(self._waiting) or self._eof_waits

    def _arrive(self) -> None:
        self._on_its_way = False
        if self.lost:
            return
        if self._waiting and self._reading:
            self._take()
        elif self._reset:
            self._lose(ConnectionResetError("connection reset by peer"))
        elif self._eof_waits and self._reading:
            self._eof_waits = False
            self._network.witness(self.name, b"")
            if not self.protocol.eof_received():
                self.close()
        self._look()

    def _take(self) -> None:
        size = self._network.piece(len(self._waiting))
        data = bytes(self._waiting[:size])
        del self._waiting[:size]
        if not self._closing:
            self._network.witness(self.name, data)
            self.protocol.data_received(data)
        peer = self.peer
        if peer._full and len(self._waiting) <= peer._high // 4 and not peer.lost:
            peer._full = False
            peer.loop.call_soon(peer.protocol.resume_writing)

    def _lose(self, reason: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._network.witness(self.name, b"lost")
            self.protocol.connection_lost(reason)


class Listener:
    """What a server listens with; stands for an :class:`asyncio.Server` and for its socket."""

    def __init__(self, network: Network, address: object, accept: Callable[[], Any], loop: VirtualLoop):
        self.sockets = [self]
        self.accept = accept
        self.loop = loop
        self._network = network
        self._address = address

    def getsockname(self) -> Any:
        return self._address

    def close(self) -> None:
        self._network.stop_listening(self)


class Network:
    """All connections of a simulation.

    Args:
        random: decides how bytes travel.
        witness: told of every piece that arrives.
        buffer: bytes a connection holds before its writer is told to pause.
    """

    def __init__(self, random: Random, witness: Witness, buffer: int) -> None:
        self.witness = witness
        self.buffer = buffer
        self._random = random
        self._listener: Listener | None = None
        self._ends: list[Transport] = []
        self._count = 0

    def delay(self) -> float:
        """Seconds until something sent arrives; in steps, so that much of it arrives together."""
        return _STEP * (1 + int(3 * self._random.random()))

    def piece(self, size: int) -> int:
        """How many of some bytes arrive at once."""
        draw = self._random.random()
        if draw < 0.7 or size == 1:
            return size
        if draw < 0.72:
            return 1
        return 1 + int(self._random.random() * size)

    def listen(self, loop: VirtualLoop, address: object, accept: Callable[[], Any]) -> Listener:
        """Let peers connect; the address is for show, as there is one server."""
        self._listener = Listener(self, address, accept, loop)
        return self._listener

    def stop_listening(self, listener: Listener) -> None:
        if self._listener is listener:
            self._listener = None

    def connect(self, loop: VirtualLoop, protocol: asyncio.Protocol) -> bool:
        """Connect to the server; False when nobody listens."""
        listener = self._listener
        if listener is None or not listener.loop.alive:
            return False
        self._count += 1
        ours = Transport(self, loop, f"client {self._count}")
        theirs = Transport(self, listener.loop, f"server {self._count}")
        accepted = cast(asyncio.Protocol, listener.accept())
        ours.join(theirs, protocol)
        theirs.join(ours, accepted)
        self._ends.append(theirs)
        ours.begin()
        listener.loop.call_soon(theirs.begin)
        return True

    def protocols(self, loop: VirtualLoop) -> list[asyncio.Protocol]:
        """What a process has at its ends of the connections that stand."""
        return [end.protocol for end in self._ends if end.loop is loop and not end.lost]

    def died(self, loop: VirtualLoop) -> None:
        """A process is gone: its peers see their connections reset, after all it had sent or some."""
        for end in self._ends:
            if end.loop is loop and not end.lost:
                end.lost = True
                end.peer.reset(keep=self._random.random() < 0.5)
        self._ends = [end for end in self._ends if end.loop is not loop]
        if self._listener is not None and self._listener.loop is loop:
            self._listener = None
