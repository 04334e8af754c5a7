"""A connection that is lost before its calls were begun leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from types import SimpleNamespace
from typing import Any

from kqs.core.job import DefaultsTable
from kqs.service.calls import Desk
from kqs.service.dispatch import Dispatch
from kqs.service.metrics import Metrics
from kqs.service.server import Connection, Server
from kqs.settings.config import LimitsConfig


async def test_calls_that_were_never_begun_are_dropped_without_a_word() -> None:
    """Their lines and the reset came in one turn of the loop."""
    engine = SimpleNamespace(capabilities=frozenset(), on_ready=lambda notify: None)
    parts: dict[str, Any] = dict.fromkeys(("bulk", "clock", "health", "about", "serves", "quit"))
    server = Server(LimitsConfig(), tokens=False)
    server.desk = Desk(
        engine=engine,  # type: ignore[arg-type]
        intake=SimpleNamespace(unsynced=0, on_drained=None),  # type: ignore[arg-type]
        dispatch=Dispatch(engine),  # type: ignore[arg-type]
        crons=SimpleNamespace(handlers={}),  # type: ignore[arg-type]
        table=DefaultsTable(),
        tokens=[],
        metrics=Metrics(),
        log=SimpleNamespace(note=lambda *what: None),  # type: ignore[arg-type]
        **parts,
    )
    here, there = socket.socketpair()
    connection = Connection(server, role="admin")
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, here)
    with warnings.catch_warnings(record=True) as caught:
        connection.data_received(b'{"v":1,"id":"1","n":"reserve","m":{"wait":60}}\n')
        transport.abort()
        connection.connection_lost(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
    there.close()
    assert connection.closed
    assert [str(one.message) for one in caught] == []
