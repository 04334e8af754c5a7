"""The blocking client."""

from __future__ import annotations

import os
import random
import select
import socket
import ssl
import threading
import weakref
from collections.abc import Mapping, Sequence
from time import monotonic, sleep
from types import TracebackType
from typing import Any

from ..core.wire import Reply
from ..errors import CallTimeout, ConnectionFailed
from . import session as sessions
from .backoff import Backoff
from .session import NO_ARGUMENT, Session, encode_argument
from .tls import client_context, why
from .url import Address, parse

#: Most bytes handed to the socket before what came meanwhile is taken. TLS takes all of them or none.
_PIECE = 64 * 1024
#: A socket that does not block says so.
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Client:
    """Calls a KQS server; blocking, safe to share between threads (one call at a time) and across fork.

    Args:
        url: ``kqs://HOST:PORT``, ``kqss://HOST:PORT`` (TLS), ``kqs+unix:PATH``, several separated by commas
            (tried in turn); None for ``KQS_URL`` or the local server.
        token: for servers that want one; None for ``KQS_TOKEN``.
        timeout: seconds a call may take, connecting included, unless it says otherwise.

    Raises:
        ConfigError: the URL can't be read.
    """

    def __init__(self, url: str | None = None, *, token: str | None = None, timeout: float = 10.0) -> None:
        self._addresses = parse(url)
        self._token = token or os.environ.get("KQS_TOKEN")
        self._timeout = timeout
        self._lock = threading.RLock()
        self._socket: socket.socket | None = None
        self._session = Session()
        self._address: Address = self._addresses[0]
        self._next = 0
        _clients.add(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            self._drop()

    # -- calls ----------------------------------------------------------------------------------

    def call(
        self,
        name: str,
        argument: Any = NO_ARGUMENT,
        *,
        blob: bytes | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Make a call and return the value of its reply (the last one, where it has several).

        Args:
            name: the call.
            argument: what JSON can hold; left out for none.
            blob: binary argument.
            timeout: seconds, instead of the client's.

        Raises:
            CallError: the server refused it; the subclass says why.
            ConnectionFailed: no server was reached, or the connection was lost (``sent`` tells).
            CallTimeout: no reply in time; the outcome is unknown.
        """
        replies = self._exchange([(name, encode_argument(argument), blob)], timeout)
        return replies[0].value()

    def call_many(self, calls: Sequence[tuple[str, Any]], *, timeout: float | None = None) -> list[Any]:
        """Make many calls at once, pipelined; returns each one's value, or its CallError, in order.

        Args:
            calls: (name, argument) each; ``kqs.client.session.NO_ARGUMENT`` for none.
            timeout: seconds for all together.

        Raises:
            ConnectionFailed, CallTimeout: as :meth:`call`.
        """
        from ..errors import CallError

        replies = self._exchange([(name, encode_argument(arg), None) for name, arg in calls], timeout)
        values: list[Any] = []
        for reply in replies:
            try:
                values.append(reply.value())
            except CallError as error:
                values.append(error)
        return values

    def insert(self, type: str, data: Any = None, **options: Any) -> str:
        """Insert a job; returns its id. When this returns, the job is on the server's disk.

        Args:
            type: routes it to its handler.
            data: what JSON can hold, or bytes.
            options: what else an ``insert`` takes: prio, delay, ttr, max_attempts, key, unique, retry, ..
        """
        job, blob = sessions.insert_call(type, data, options)
        return str(self.call("insert", job, blob=blob)["id"])

    def insert_many(self, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Insert up to 10,000 jobs, all or none; returns their ids in order.

        Args:
            jobs: each ``{"type": .., "data": ..,  ..}``.
        """
        return list(self.call("insert", sessions.batch_argument(jobs))["ids"])

    def ping(self) -> str:
        return str(self.call("ping"))

    def echo(self, value: Any) -> Any:
        """Returns what it is given; bytes as bytes."""
        return self.call("echo", blob=value) if isinstance(value, bytes) else self.call("echo", value)

    def stats(self) -> dict[str, Any]:
        return dict(self.call("stats"))

    def health(self) -> dict[str, Any]:
        return dict(self.call("health"))

    def job(self, id: str, *, data: bool = False) -> dict[str, Any]:
        """A job as shown; raises NotFound."""
        return dict(self.call("job", {"id": id, "data": data}))

    def quit(self, grace: float = 30.0) -> None:
        """Ask the server to finish what runs, for ``grace`` seconds at most, and to exit."""
        self.call("quit", {"grace": grace})

    # -- the connection -------------------------------------------------------------------------

    def _exchange(self, calls: list[tuple[str, bytes, bytes | None]], timeout: float | None) -> list[Reply]:
        """Send calls and collect their last replies."""
        deadline = monotonic() + (self._timeout if timeout is None else timeout)
        with self._lock:
            self._connect(deadline)
            return self._ask(calls, deadline)

    def _ask(self, calls: list[tuple[str, bytes, bytes | None]], deadline: float) -> list[Reply]:
        """:meth:`_exchange` over the connection there is."""
        ids: dict[str, int] = {}
        out = []
        for position, (name, argument, blob) in enumerate(calls):
            id, data = self._session.call(name, argument, blob)
            ids[id] = position
            out.append(data)
        replies: list[Reply | None] = [None] * len(calls)
        try:
            self._converse(b"".join(out), ids, replies, deadline)
        except BaseException as error:
            # Whatever it was, an interrupt too: half a line may be out and replies under way, so nothing
            # more can be said over this connection.
            self._drop()
            if isinstance(error, TimeoutError):
                raise CallTimeout(
                    f"{self._address}: no reply to {calls[0][0]} in time; whether it was done is unknown"
                ) from None
            if isinstance(error, OSError):
                raise ConnectionFailed(
                    f"{sessions.lost_message(self._address, calls[0][0])} ({why(error)})", sent=True
                ) from error
            raise
        return [reply for reply in replies if reply is not None]

    def _converse(
        self, out: bytes, ids: dict[str, int], replies: list[Reply | None], deadline: float
    ) -> None:
        """Send and receive at the same time, so that neither side waits for the other's full buffer."""
        sock = self._socket
        assert sock is not None
        sock.setblocking(False)
        view = memoryview(out)
        left = len(ids)
        while left:
            if monotonic() >= deadline:
                raise TimeoutError
            stuck = True
            if view:
                try:
                    view = view[sock.send(view[:_PIECE]) :]
                    stuck = False
                except _NOT_NOW:
                    pass
            try:
                data = sock.recv(1 << 18)
            except _NOT_NOW:
                if stuck:
                    _wait(sock, deadline, sending=bool(view))
                continue
            if not data:
                raise ConnectionResetError("the server closed the connection")
            for id, reply in self._session.feed(data):
                if not id:
                    reply.value()  # an error for the connection as a whole: raises
                elif reply.last:
                    replies[ids[id]] = reply
                    left -= 1

    def _connect(self, deadline: float) -> None:
        """Be connected, trying the servers in turn until the deadline."""
        if self._socket is not None:
            if not _ended(self._socket):
                return
            self._drop()
        backoff = Backoff(random.random)
        failures: dict[str, str] = {}
        while True:
            for untried in range(len(self._addresses), 0, -1):
                address = self._addresses[self._next % len(self._addresses)]
                now = monotonic()
                try:
                    # One that is silent uses up its share of the time, not all of it.
                    self._open(address, now + (deadline - now) / untried)
                    return
                except OSError as error:
                    failures[str(address)] = why(error)
                except ConnectionFailed as error:
                    cause = error.__cause__
                    reason = f": {why(cause)}" if isinstance(cause, OSError) else ""
                    failures[str(address)] = f"lost while the token was checked{reason}"
                self._next += 1
            pause = backoff.next()
            if monotonic() + pause >= deadline:
                tried = ", ".join(f"{where} ({why})" for where, why in failures.items())
                raise ConnectionFailed(f"no KQS server reached: {tried}; is 'kqs serve' running?")
            sleep(pause)

    def _open(self, address: Address, deadline: float) -> None:
        seconds = max(0.001, deadline - monotonic())
        if address.path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(seconds)
            try:
                sock.connect(address.path)
            except BaseException:
                sock.close()
                raise
        else:
            sock = socket.create_connection((address.host, address.port), timeout=seconds)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls is not None:
                try:
                    sock = client_context(address.tls).wrap_socket(sock, server_hostname=address.host)
                except BaseException:
                    sock.close()
                    raise
        self._socket, self._session, self._address = sock, Session(), address
        if self._token is not None:
            try:
                self._ask([("auth", encode_argument({"token": self._token}), None)], deadline)[0].value()
            except BaseException:
                self._drop()
                raise

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _forked(self) -> None:
        """In a forked child: the connection is the parent's, and a thread that held the lock is not here."""
        self._lock = threading.RLock()
        self._drop()  # our copy of it; the parent's stays open


#: All clients there are, for what must happen to them when the process forks.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._forked()


os.register_at_fork(after_in_child=_after_fork)


def _wait(sock: socket.socket, deadline: float, *, sending: bool) -> None:
    """Return when a socket can be read from, or written to when ``sending``.

    Raises:
        TimeoutError: the deadline, by the monotonic clock, came first.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN | (select.POLLOUT if sending else 0))
    if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
        raise TimeoutError


def _ended(sock: socket.socket) -> bool:
    """Whether the server has closed an idle connection: nothing was sent yet, so another one will do."""
    sock.setblocking(False)
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.recv(1)  # it cannot peek; but whatever comes while nothing was asked is the end
            return True
        return not sock.recv(1, socket.MSG_PEEK)
    except _NOT_NOW:
        return False
    except OSError:
        return True
