"""A way to PostgreSQL that passes everything on until it is told to swallow an answer."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kqs.testing.postgres import PostgresServer


class Relay:
    """A Unix socket in front of a server's.

    Attributes:
        url: connects through it.
        marker: the connection on which this goes to the server next hears nothing more of it; empty: none.
        swallowed: set when the server answered there, and that answer is gone.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._folder = tempfile.mkdtemp(prefix="kqs-relay-")
        self._port, self._server = server.port, server
        self.url = f"host={self._folder} port={self._port} user=postgres dbname=postgres"
        self.marker = b""
        self.swallowed = asyncio.Event()
        self._deaf: asyncio.StreamWriter | None = None
        self._dropping = False
        self._connections: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Relay]:
        listener = await asyncio.start_unix_server(self._connected, f"{self._folder}/.s.PGSQL.{self._port}")
        try:
            yield self
        finally:
            listener.close()
            await asyncio.gather(*self._connections)  # their ends are closed
            shutil.rmtree(self._folder)

    async def swallow(self, marker: bytes) -> None:
        """Let the server do what it is asked by ``marker`` next, cut the connection, and tell nobody."""
        self.swallowed.clear()
        self.marker = marker
        await self.swallowed.wait()
        assert self._deaf is not None
        self._deaf.transport.abort()

    async def drop(self, marker: bytes) -> None:
        """Cut the connection on which ``marker`` goes to the server next, before it arrives there."""
        self.swallowed.clear()
        self.marker, self._dropping = marker, True
        await self.swallowed.wait()

    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        server, to_server = await asyncio.open_unix_connection(
            f"{self._server.folder}/.s.PGSQL.{self._server.port}"
        )
        down = asyncio.ensure_future(self._down(server, to_client))
        try:
            while data := await client.read(1 << 16):
                if self.marker and self.marker in data:
                    self.marker, self._deaf = b"", to_client
                    if self._dropping:
                        self._dropping = False
                        self.swallowed.set()
                        to_client.transport.abort()
                        return
                to_server.write(data)
        except ConnectionError:
            pass
        finally:
            down.cancel()
            to_server.close()
            to_client.close()

    async def _down(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while data := await server.read(1 << 16):
            if self._deaf is to_client:
                self.swallowed.set()
                return
            to_client.write(data)
        to_client.close()
