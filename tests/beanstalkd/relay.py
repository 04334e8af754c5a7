"""A way to a beanstalkd that holds, changes and cuts what passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from kqs.engines.beanstalk.pool import Address

#: Makes of some bytes those to pass on; None: none, and the connections are cut.
Meddle = Callable[[bytes], bytes | None]


class Relay:
    """Passes everything on, until told otherwise. Use it in an ``async with``.

    Args:
        target: where it leads.

    Attributes:
        address: where it listens.
        up, down: what becomes of bytes on the way to the server, and back.
        passing: set while anything is passed on.
        held: set when something is not.
    """

    def __init__(self, target: Address) -> None:
        self._target = target
        self.up: Meddle = bytes
        self.down: Meddle = bytes
        self.passing = asyncio.Event()
        self.passing.set()
        self.held = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address(*self._server.sockets[0].getsockname()[:2])
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self.passing.set()
        self.cut()
        if self._serving:
            await asyncio.wait(self._serving)

    def cut(self) -> None:
        """End all connections, whatever is on its way."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, far_writer]
        await asyncio.gather(
            self._pass(reader, far_writer, lambda data: self.up(data)),
            self._pass(far_reader, writer, lambda data: self.down(data)),
        )
        for end in (writer, far_writer):
            end.transport.abort()
            with suppress(OSError):
                await end.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meddle: Meddle) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if not self.passing.is_set():
                    self.held.set()
                await self.passing.wait()
                passed = meddle(data)
                if passed is None:
                    self.cut()
                    return
                writer.write(passed)
        writer.close()


def swap(old: bytes, new: bytes) -> Meddle:
    """Puts one text in place of another."""
    return lambda data: data.replace(old, new)
