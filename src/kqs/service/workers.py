"""The workers of this server: processes beside it, whose leases are the engine's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from ..core.outcome import Settlement
from ..ports import Engine
from ..runners.spec import WorkerSpec
from .dispatch import Dispatch
from .server import Connection, Server


class _Line:
    """See :class:`kqs.runners.supervisor.Line`: a connection like any other."""

    def __init__(self, connection: Connection, dispatch: Dispatch) -> None:
        self._connection = connection
        self._dispatch = dispatch

    @property
    def spoke(self) -> bool:
        return self._connection.received > 0

    @property
    def settled(self) -> bool:
        return self._connection.settled

    @property
    def closed(self) -> bool:
        return self._connection.closed

    def asked(self) -> frozenset[str] | None:
        return self._dispatch.asked(self._connection)

    def dismiss(self) -> None:
        self._dispatch.dismiss(self._connection)

    def abort(self) -> None:
        self._connection.abort()


class EngineBook:
    """See :class:`kqs.runners.supervisor.LeaseBook`: the engine itself.

    Args:
        engine: where the leases are.
        dispatch: where reserves wait.
        server: what the connections of workers belong to.
    """

    def __init__(self, engine: Engine, dispatch: Dispatch, server: Server) -> None:
        self._engine = engine
        self._dispatch = dispatch
        self._server = server

    async def attach(self, sock: socket.socket, spec: WorkerSpec) -> _Line:
        connection = Connection(self._server, holder=spec.name, types=spec.types, role="work")
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        return _Line(connection, self._dispatch)

    def held_by(self, worker: str) -> list[str]:
        return self._engine.held_by(worker)

    async def release(self, receipts: Sequence[str]) -> None:
        await self._engine.settle([Settlement(receipt, "release") for receipt in receipts])

    async def rescue(self, receipts: Sequence[str], *, died: bool, alone: bool, reason: str) -> None:
        await self._engine.rescue(receipts, died=died, alone=alone, reason=reason)

    async def renew(self, receipts: Sequence[str]) -> None:
        await self._engine.renew(receipts)
