"""The other end of a worker's socket: its calls are those of any worker, and the lease book answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol, cast

import msgspec

from ..core import wire
from ..core.calls import RenewArgument, ReserveArgument
from ..core.outcome import Settlement
from ..core.wire import LineReader, Request
from ..errors import KQSError, Unsupported
from ..runners.spec import WorkerSpec

#: Longest line taken of a worker: many results may be in one.
_MAX_LINE = 1 << 30

_settlements = msgspec.json.Decoder(list[Settlement])


class Desk(Protocol):
    """What answers the calls of workers."""

    async def reserve(self, line: WorkerLine, argument: ReserveArgument) -> bytes: ...

    async def renewed(self, argument: RenewArgument) -> bytes: ...

    def settle(self, settlements: list[Settlement]) -> bytes: ...


class WorkerLine(asyncio.Protocol):
    """See :class:`kqs.runners.supervisor.Line`.

    Args:
        spec: the worker at the other end.
        desk: what answers it.

    Attributes:
        spec: as given.
        gone: whether nobody is there to take a job.
    """

    def __init__(self, spec: WorkerSpec, desk: Desk) -> None:
        self.spec = spec
        self.spoke = False
        self.settled = False
        self.closed = False
        self.gone = asyncio.Event()
        self._desk = desk
        self._asked: frozenset[str] | None = None
        self._reader = LineReader(_MAX_LINE)
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self) -> frozenset[str] | None:
        return self._asked

    def dismiss(self) -> None:
        self.gone.set()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- from the transport ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.spoke = True
        try:
            for request in wire.decode_requests(self._reader.feed(data)):
                self._take(request)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KQSError):
            self.abort()  # not what a worker says: a handler wrote to its socket. Another is started

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()
        self.closed = True

    # -- calls ----------------------------------------------------------------------------------

    def _take(self, request: Request) -> None:
        id_part = wire.reply_id(request.id)
        if request.n == "settle":
            self.settled = True
            self._answer(id_part, self._desk.settle(_settlements.decode(request.m)))
        elif request.n == "reserve":
            reserve = msgspec.json.decode(request.m, type=ReserveArgument)
            types = frozenset(self.spec.types if reserve.types is msgspec.UNSET else reserve.types)
            self._asked = types & self.spec.types
            self._later(id_part, self._desk.reserve(self, reserve))
        elif request.n == "renew":
            self._later(id_part, self._desk.renewed(msgspec.json.decode(request.m, type=RenewArgument)))
        else:
            raise Unsupported(f"{request.n}: no handler")

    def _later(self, id_part: bytes, work: Awaitable[bytes]) -> None:
        async def answer() -> None:
            self._answer(id_part, await work)

        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answer(self, id_part: bytes, value: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.encode_reply(id_part, value))
