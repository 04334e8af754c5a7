"""Connections: bytes in, slices of calls to the desk, replies out.

A burst on one connection must not starve the others, so a connection's lines are taken in slices of about
64 KiB, in turn with those of all others, and reading stops while lines wait, while too many calls are
unanswered, while accepted bytes wait for the disk, or while the peer does not take its replies.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from ..core.calls import Role
from ..core.wire import LineReader, encode_error, looks_foreign
from ..errors import TooLarge
from ..settings.config import LimitsConfig
from .tls import TlsListener, bind
from .tokens import Tokens

if TYPE_CHECKING:
    from .calls import Desk

SLICE = 64 * 1024
#: Seconds of work after which other events get their turn.
TURN = 0.002
#: Reply bytes a transport may hold before its connection is not read any more.
REPLY_BUFFER = 1024 * 1024
#: Seconds a peer that was told why has to stop sending before the connection is cut.
LINGER = 2.0
#: Longest line taken from a peer that has not shown a token yet, bytes.
STRANGER_LINE = 64 * 1024
#: Seconds a peer has to show its token.
STRANGER_TIME = 10.0
#: A block below this size is taken at once when nobody waits.
SMALL = 16 * 1024


class Connection(asyncio.Protocol):
    """One peer.

    Args:
        server: whose turns it takes.
        holder: name of the local worker at the other end, or None.
        types: the job types it reserves when it names none; None for all.
        role: of a local worker; others get theirs when they connect or authenticate.

    Attributes:
        role: what it may do; None until it authenticated.
        token: SHA-256 of the token that gave it the role, or None.
        in_flight: calls taken and not answered yet.
        peer: the address, as shown.
        host: the peer's IP address; None on the Unix socket and for local workers.
        settled: whether it settled anything yet.
        rejected: whether it gave a wrong token: that is answered, nothing after it is taken.
    """

    __slots__ = (
        "_blocks",
        "_drop_timer",
        "_ending",
        "_linger",
        "_linger_timer",
        "_reader",
        "_reading",
        "_server",
        "_start",
        "_stranger_timer",
        "_taken",
        "_transport",
        "_writable",
        "holder",
        "host",
        "in_flight",
        "peer",
        "received",
        "rejected",
        "role",
        "scheduled",
        "settled",
        "tasks",
        "token",
        "types",
    )

    def __init__(
        self,
        server: Server,
        *,
        holder: str | None = None,
        types: frozenset[str] | None = None,
        role: Role | None = None,
    ) -> None:
        self._server = server
        self._reader = LineReader(server.limits.line)
        self._blocks: deque[bytes] = deque()
        self._taken = 0
        self._start: bytes | None = b""
        self._ending = False
        self._linger = False
        self._linger_timer: asyncio.TimerHandle | None = None
        self._reading = True
        self._writable = True
        self._drop_timer: asyncio.TimerHandle | None = None
        self._stranger_timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.holder = holder
        self.types = types
        self.role = role
        self.token: str | None = None
        self.host: str | None = None
        self.in_flight = 0
        self.received = 0.0
        self.rejected = False
        self.settled = False
        self.scheduled = False
        self.peer = holder or "?"
        self.tasks: dict[asyncio.Task[Any], None] = {}

    # -- from the transport ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        transport.set_write_buffer_limits(high=REPLY_BUFFER)
        if self.holder is None:
            name = transport.get_extra_info("peername")
            self.host = name[0] if isinstance(name, tuple) else None
            self.peer = "unix" if self.host is None else f"{self.host}:{name[1]}"
            if self._server.tokens.required:
                self._reader.max_line = min(STRANGER_LINE, self._reader.max_line)
                self._stranger_timer = asyncio.get_running_loop().call_later(STRANGER_TIME, self.stop_reading)
            else:
                self.role = "admin"
        if not self._server.joined(self):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        if self._start is not None:
            start = self._start + data[:16]
            if looks_foreign(start):
                self._close(abort=True)
                return
            self._start = start if len(start) < 8 and b"\n" not in start else None
        try:
            block = self._reader.feed(data)
        except TooLarge as error:
            self.fail(self._too_long(error))
            return
        if not block:
            return
        self._blocks.append(block)
        self.received = self._server.monotonic()
        # A small block is taken at once: on a quiet server that is the shortest way. A large one waits for
        # its turn, unread, or libuv would go on reading this peer before it looks at the others.
        self._server.schedule(self, at_once=len(block) < SMALL)
        if self._blocks:
            self._gate()
        if self._reader.broken and not self._ending:  # else a line before it ended the connection
            self.fail(self._too_long(self._reader.too_long()))

    def _too_long(self, error: TooLarge) -> TooLarge:
        if self.role is not None:
            return error
        return TooLarge(
            f"before auth a line has {STRANGER_LINE} bytes at most; wait for the reply to auth",
            limit=error.limit,
        )

    def eof_received(self) -> bool:
        """The peer sends no more; what it asked is still answered (``nc -N``), except over TLS, which has no
        half-closed connections."""
        if self._linger_timer is not None:
            self._close()
            return False
        if rest := self._reader.finish():
            self._blocks.append(rest + b"\n")
            self._server.schedule(self)
        self._ending = True
        self._server.desk.ended(self)
        self._maybe_close()
        transport = self._transport
        return transport is not None and transport.can_write_eof()

    def pause_writing(self) -> None:
        self._writable = False
        self._gate()
        self._drop_timer = asyncio.get_running_loop().call_later(
            self._server.limits.write_timeout, self._close, True
        )

    def resume_writing(self) -> None:
        self._writable = True
        if self._drop_timer is not None:
            self._drop_timer.cancel()
            self._drop_timer = None
        self._gate()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = True
        self._blocks.clear()
        for timer in (self._drop_timer, self._linger_timer, self._stranger_timer):
            if timer is not None:
                timer.cancel()
        for task in list(self.tasks):
            task.cancel()
        self._transport = None
        self._server.desk.ended(self)
        self._server.left(self)

    @property
    def ending(self) -> bool:
        """Whether nothing more is read from the peer."""
        return self._ending

    @property
    def writable(self) -> bool:
        """Whether the peer takes what it is sent."""
        return self._writable

    @property
    def closed(self) -> bool:
        """Whether the connection is over and nothing of it is under way."""
        return self._transport is None and not self.tasks

    def authenticate(self, role: Role, token: str) -> None:
        """Give it a role, and what strangers may not.

        Args:
            role: what it may do.
            token: SHA-256 of the token it showed.
        """
        self.role = role
        self.token = token
        self._reader.max_line = self._server.limits.line
        if self._stranger_timer is not None:
            self._stranger_timer.cancel()
            self._stranger_timer = None

    def revoke(self) -> None:
        """Its token is none any more: answer what was asked, and close."""
        self.role = None
        self._server.desk.ended(self)
        self.stop_reading()

    def abort(self) -> None:
        """End it at once."""
        self._close(abort=True)

    # -- slices ---------------------------------------------------------------------------------

    @property
    def runnable(self) -> bool:
        """Whether lines wait and nothing holds them up."""
        return (
            bool(self._blocks)
            and self._writable
            and self.in_flight < self._server.limits.in_flight
            and not self._server.flooded
        )

    def next_slice(self) -> bytes:
        """The next whole lines, about :data:`SLICE` bytes."""
        block = self._blocks[0]
        start = self._taken
        end = len(block)
        if end - start > SLICE:
            cut = block.rfind(b"\n", start, start + SLICE) + 1
            end = cut if cut > start else block.find(b"\n", start) + 1
        if end == len(block):
            self._blocks.popleft()
            self._taken = 0
        else:
            self._taken = end
        return block if start == 0 and end == len(block) else block[start:end]

    def _gate(self) -> None:
        """Read on, or not: lines that wait here are the bound of what a peer may push at us."""
        transport = self._transport
        if transport is None:
            return
        want = not self._ending and not self._blocks and self._writable
        want |= self._linger_timer is not None
        if want is not self._reading:
            self._reading = want
            if want:
                transport.resume_reading()
            else:
                transport.pause_reading()
        if self._blocks and not self.scheduled and self.runnable:
            self._server.schedule(self)

    def after_slice(self) -> None:
        """Called by the server when a slice was taken or none may be."""
        self._gate()
        self._maybe_close()

    # -- answers --------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Hand reply bytes to the socket; nothing happens when the peer is gone."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def answer(self, data: bytes, calls: int) -> None:
        """Replies to ``calls`` calls that were in flight."""
        self.in_flight -= calls
        self.write(data)
        if self._blocks:
            self._gate()
        elif self._ending:
            self._maybe_close()

    def fail(self, error: TooLarge) -> None:
        """Answer a line that can't be read on with, then close when everything before it is answered."""
        self.write(encode_error(b"", error))
        self._server.desk.failed(self, "", error)
        self._ending = self._linger = True
        self._gate()
        self._maybe_close()

    def stop_reading(self, *, linger: bool = True) -> None:
        """Take nothing more; close when all that was taken is answered.

        Args:
            linger: whether the peer may be sending still: closed on it, it would hear "connection reset"
                and might never read why. What it sends is dropped then, for a while.
        """
        self._ending = True
        self._linger = linger
        self._blocks.clear()
        self._gate()
        self._maybe_close()

    def _maybe_close(self) -> None:
        over = self._ending and not self._blocks and self.in_flight == 0 and not self.scheduled
        if over and self._linger_timer is None:
            self._close()

    def _close(self, abort: bool = False) -> None:
        self._ending = True
        self._blocks.clear()
        transport = self._transport
        if transport is None:
            return
        if abort:
            transport.abort()
        elif self._linger and self._linger_timer is None:
            self._linger_timer = asyncio.get_running_loop().call_later(LINGER, self._close, True)
            if transport.can_write_eof():  # not over TLS
                transport.write_eof()
            self._gate()
        else:
            transport.close()


class Server:
    """All connections, and whose turn it is.

    Args:
        limits: what a peer may use.
        tokens: who may call; while no token is required, whoever reaches us is admin.
        monotonic: seconds that never run backwards.
    """

    def __init__(
        self, limits: LimitsConfig, tokens: Tokens, *, monotonic: Callable[[], float] = monotonic
    ) -> None:
        self.limits = limits
        self.tokens = tokens
        self.monotonic = monotonic
        self.desk: Desk
        self._connections: dict[Connection, None] = {}
        self._ready: deque[Connection] = deque()
        self._running = False
        self._listeners: list[asyncio.Server | TlsListener] = []
        self._all_left: asyncio.Future[None] | None = None
        self.refused = 0

    def connection(self) -> Connection:
        """A new peer's protocol (the factory of the listeners)."""
        return Connection(self)

    async def listen(
        self, host: str, port: int, unix: str, *, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        """Open the TCP port and the Unix socket.

        Args:
            host, port, unix: the addresses.
            tls: gives the context of the next TLS handshake; None for a port without TLS.

        Raises:
            OSError: the port is taken or the address is not ours.
        """
        loop = asyncio.get_running_loop()
        if tls is None:
            self._listeners.append(await loop.create_server(self.connection, host, port, backlog=1024))
        else:
            self._listeners.append(TlsListener(await bind(host, port), tls, self.connection, self._full))
        self._listeners.append(await loop.create_unix_server(self.connection, unix, backlog=1024))

    @property
    def port(self) -> int:
        """The TCP port, also when 0 was asked for."""
        return int(self._listeners[0].sockets[0].getsockname()[1])

    @property
    def flooded(self) -> bool:
        """Whether so many accepted bytes wait for the disk that no line is taken until some are durable."""
        intake = self.desk.intake
        if intake.unsynced <= self.limits.unsynced:
            return False
        intake.on_drained = self.resume
        return True

    @property
    def connections(self) -> int:
        return len(self._connections)

    def joined(self, connection: Connection) -> bool:
        """A peer connected; False when there are too many."""
        if connection.holder is None and self._full():
            return False
        self._connections[connection] = None
        return True

    def _full(self, coming: int = 0) -> bool:
        """Whether one more peer is too many, when ``coming`` others are about to connect."""
        full = len(self._connections) + coming >= self.limits.connections
        self.refused += full
        return full

    def tokens_changed(self) -> None:
        """Let those go whose token is none any more, and those who came when none was needed."""
        for connection in list(self._connections):
            if connection.holder is not None or connection.role is None:
                continue
            role = self.tokens.role(connection.token) if connection.token is not None else None
            if role is None:
                connection.revoke()
            else:
                connection.role = role

    def left(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if not self._connections and self._all_left is not None and not self._all_left.done():
            self._all_left.set_result(None)

    def schedule(self, connection: Connection, *, at_once: bool = False) -> None:
        """A connection has lines: it gets its turn, ``at_once`` when nobody else is waiting for one."""
        if not connection.scheduled:
            connection.scheduled = True
            self._ready.append(connection)
        if not self._running:
            self._running = True
            if at_once:
                self._turn()
            else:
                asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Take a slice of each waiting connection in turn, for a few milliseconds at most."""
        ready = self._ready
        monotonic = self.monotonic
        monotonic = self.monotonic
        until = monotonic() + TURN
        desk = self.desk
        while ready:
            connection = ready.popleft()
            connection.scheduled = False
            if connection.runnable:
                desk.take(connection, connection.next_slice())
            if connection.runnable:
                connection.scheduled = True
                ready.append(connection)
            connection.after_slice()
            if monotonic() > until:
                break
        if ready:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._running = False

    def resume(self) -> None:
        """The flood is over: everybody who waits gets a turn again."""
        for connection in list(self._connections):
            connection.after_slice()

    def stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def close(self, seconds: float) -> None:
        """Let every connection go; returns when they have taken their replies, or the seconds are over."""
        for connection in list(self._connections):
            connection.stop_reading(linger=False)
        if self._connections:
            self._all_left = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._all_left], timeout=seconds)
