"""The asyncio client."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from ..core.wire import Reply
from ..errors import CallTimeout, ConnectionFailed, KQSError
from . import session as sessions
from .backoff import Backoff
from .session import NO_ARGUMENT, Session, encode_argument
from .tls import client_context, why
from .url import Address, parse


class AsyncClient:
    """Calls a KQS server from asyncio: any number of calls at once over one connection.

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
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()
        self._next = 0

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls without a reply fail. The next call opens another."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
            await link.closed

    # -- calls ----------------------------------------------------------------------------------

    async def call(
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
        replies = [reply async for reply in self._replies(name, encode_argument(argument), blob, timeout)]
        return replies[-1].value()

    async def call_json(self, name: str, argument: bytes, *, timeout: float | None = None) -> bytes:
        """:meth:`call` for who passes JSON on: the argument is sent, and the value returned, as it is.

        Args:
            name: the call.
            argument: JSON text.
            timeout: seconds, instead of the client's.

        Raises:
            CallError, ConnectionFailed, CallTimeout: as :meth:`call`.
        """
        replies = [reply async for reply in self._replies(name, argument, None, timeout)]
        replies[-1].check()
        return bytes(replies[-1].m)

    async def connect(self, *, timeout: float | None = None) -> None:
        """Have a connection; every call does so by itself.

        Raises:
            CallError: the token was refused.
            ConnectionFailed: no server was reached.
        """
        seconds = self._timeout if timeout is None else timeout
        await self._reach(asyncio.get_running_loop().time() + seconds, seconds)

    def finish(self) -> None:
        """Say that no more calls come on this connection: what waits at the server, a ``reserve`` say, is
        answered now. The next call opens another. Nothing happens with TLS, which cannot say so."""
        if self._link is not None and self._link.finish():
            self._link = None

    async def stream(
        self, name: str, argument: Any = NO_ARGUMENT, *, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """Make a call that answers several times; yields each value.

        Args:
            name, argument: as :meth:`call`.
            timeout: seconds for each reply.
        """
        async for reply in self._replies(name, encode_argument(argument), None, timeout, each=True):
            if reply.last and not reply.m and not reply.e and reply.b is None:
                return
            yield reply.value()

    async def _replies(
        self, name: str, argument: bytes, blob: bytes | None, timeout: float | None, each: bool = False
    ) -> AsyncIterator[Reply]:
        """Make a call; its replies as they come. The timeout is for all of them together, or for each."""
        seconds = self._timeout if timeout is None else timeout
        now = asyncio.get_running_loop().time
        deadline = now() + seconds
        link = await self._reach(deadline, seconds)
        queue, id = link.send(name, argument, blob)
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        reply = await queue.get()
                except TimeoutError:
                    raise CallTimeout(
                        f"{link.address}: no reply to {name} within {seconds:g} s; "
                        "whether it was done is unknown"
                    ) from None
                if isinstance(reply, KQSError):
                    raise reply
                if reply is None:
                    raise ConnectionFailed(
                        f"{sessions.lost_message(link.address, name)}{link.reason}", sent=True
                    )
                yield reply
                if reply.last:
                    return
                if each:
                    deadline = now() + seconds
        finally:
            link.forget(id)

    async def insert(self, type: str, data: Any = None, **options: Any) -> str:
        """Insert a job; returns its id. When this returns, the job is on the server's disk.

        Args:
            type: routes it to its handler.
            data: what JSON can hold, or bytes.
            options: what else an ``insert`` takes: prio, delay, ttr, max_attempts, key, unique, retry, ..
        """
        job, blob = sessions.insert_call(type, data, options)
        return str((await self.call("insert", job, blob=blob))["id"])

    async def insert_many(self, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Insert up to 10,000 jobs, all or none; returns their ids in order."""
        return list((await self.call("insert", sessions.batch_argument(jobs)))["ids"])

    async def ping(self) -> str:
        return str(await self.call("ping"))

    async def echo(self, value: Any) -> Any:
        """Returns what it is given; bytes as bytes."""
        if isinstance(value, bytes):
            return await self.call("echo", blob=value)
        return await self.call("echo", value)

    async def stats(self) -> dict[str, Any]:
        return dict(await self.call("stats"))

    async def health(self) -> dict[str, Any]:
        return dict(await self.call("health"))

    async def job(self, id: str, *, data: bool = False) -> dict[str, Any]:
        """A job as shown; raises NotFound."""
        return dict(await self.call("job", {"id": id, "data": data}))

    async def quit(self, grace: float = 30.0) -> None:
        """Ask the server to finish what runs, for ``grace`` seconds at most, and to exit."""
        await self.call("quit", {"grace": grace})

    # -- the connection -------------------------------------------------------------------------

    async def _reach(self, deadline: float, seconds: float) -> _Link:
        """:meth:`_connected`, or an error that says what was tried."""
        failures: dict[str, str] = {}
        try:
            async with asyncio.timeout_at(deadline):
                return await self._connected(deadline, failures)
        except TimeoutError:
            tried = ", ".join(f"{where} ({why})" for where, why in failures.items())
            raise ConnectionFailed(
                f"no KQS server reached within {seconds:g} s: {tried or 'still connecting'}; "
                "is 'kqs serve' running?"
            ) from None

    async def _connected(self, deadline: float, failures: dict[str, str]) -> _Link:
        """The open connection, or a new one; servers are tried in turn until the caller's timeout.

        Args:
            deadline: when the caller gives up, by the loop's clock.
            failures: filled with what was tried, for the caller's error.
        """
        now = asyncio.get_running_loop().time
        async with self._connecting:
            if self._link is not None and not self._link.lost:
                return self._link
            backoff = Backoff(random.random)
            while True:
                for untried in range(len(self._addresses), 0, -1):
                    address = self._addresses[self._next % len(self._addresses)]
                    # One that is silent uses up its share of the time, not all of it.
                    share = (deadline - now()) / untried
                    try:
                        async with asyncio.timeout(share):
                            self._link = await self._open(address)
                        return self._link
                    except OSError as error:
                        failures[str(address)] = why(error)
                        self._next += 1
                await asyncio.sleep(backoff.next())

    async def _open(self, address: Address) -> _Link:
        loop = asyncio.get_running_loop()
        if address.path is not None:
            _transport, link = await loop.create_unix_connection(lambda: _Link(address), address.path)
        else:
            context = client_context(address.tls) if address.tls is not None else None
            _transport, link = await loop.create_connection(
                lambda: _Link(address), address.host, address.port, ssl=context
            )
        if self._token is not None:
            try:
                queue, _id = link.send("auth", encode_argument({"token": self._token}), None)
                reply = await queue.get()
                if not isinstance(reply, Reply):
                    raise ConnectionResetError(f"lost while the token was checked{link.reason}")
                reply.value()
            except BaseException:
                link.close()
                raise
        return link


_Queue = asyncio.Queue["Reply | KQSError | None"]


class _Link(asyncio.Protocol):
    """One connection. Calls made in one turn of the loop leave in one write.

    Attributes:
        reason: why it was lost, in brackets; empty when the server closed it or nothing is known.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.lost = False
        self.reason = ""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._session = Session()
        self._queues: dict[str, _Queue] = {}
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass of asyncio's

    def send(self, name: str, argument: bytes, blob: bytes | None) -> tuple[_Queue, str]:
        """Send a call; its replies come to the queue, None when the connection is lost."""
        id, data = self._session.call(name, argument, blob)
        queue: _Queue = asyncio.Queue()
        if self.lost:
            queue.put_nowait(None)
            return queue, id
        self._queues[id] = queue
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(data)
        return queue, id

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self.lost:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def forget(self, id: str) -> None:
        self._session.forget(id)
        self._queues.pop(id, None)

    def data_received(self, data: bytes) -> None:
        try:
            for id, reply in self._session.feed(data):
                if not id:
                    reply.value()
                elif (queue := self._queues.get(id)) is not None:
                    queue.put_nowait(reply)
        except KQSError as error:
            self._fail(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if isinstance(exc, OSError):
            self.reason = f" ({why(exc)})"
        self._fail(None)
        if not self.closed.done():
            self.closed.set_result(None)

    def _fail(self, error: KQSError | None) -> None:
        """Everybody waiting learns that no reply will come."""
        for queue in self._queues.values():
            queue.put_nowait(error)
        self._queues.clear()

    def finish(self) -> bool:
        """Close this half of the connection, if that can be done; replies still come."""
        if self.lost or self._transport is None or not self._transport.can_write_eof():
            return False
        self._flush()
        self._transport.write_eof()
        return True

    def close(self) -> None:
        self.lost = True
        if self._transport is not None:
            if self._transport.get_write_buffer_size():
                self._transport.abort()  # the peer takes nothing: close would wait for it, perhaps for ever
            else:
                self._transport.close()
