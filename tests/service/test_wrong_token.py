"""A wrong token is answered before the connection is closed, and nothing behind it is taken."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kqs.core.job import DefaultsTable
from kqs.service.calllog import CallLog
from kqs.service.calls import Desk
from kqs.service.config import CallLogConfig, LimitsConfig, TokenConfig
from kqs.service.metrics import Metrics
from kqs.service.server import Server
from kqs.service.tokens import Tokens, digest

TOKEN = "right"


def _desk(log: CallLog, tokens: Tokens) -> Desk:
    parts: dict[str, Any] = dict.fromkeys(("dispatch", "bulk", "clock", "health", "about", "quit"))
    return Desk(
        engine=SimpleNamespace(capabilities=frozenset()),
        intake=SimpleNamespace(unsynced=0, on_drained=None),
        table=DefaultsTable(),
        tokens=tokens,
        metrics=Metrics(),
        log=log,
        **parts,
    )


async def _exchange(folder: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    """Send all lines in one write; returns the replies until the server closes."""
    tokens = Tokens(str(folder), [TokenConfig("one", "read", digest(TOKEN))])
    server = Server(LimitsConfig(), tokens)
    log = CallLog(str(folder), CallLogConfig(), lambda: 1.0)
    server.desk = _desk(log, tokens)
    await server.listen("127.0.0.1", 0, str(folder / "sock"))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(b"".join(lines))
        replies = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        server.stop_listening()
        log.close()
    return [msgspec.json.decode(line) for line in replies.splitlines()]


@pytest.mark.parametrize(
    "guess",
    [
        b'{"v":1,"id":"1","n":"auth","m":{"token":"wrong"}}\n',
        b'{"v":1,"id":"1","n":"stats","m":{"auth":{"usr":"me","pwd":"wrong"}}}\n',
    ],
)
@pytest.mark.parametrize("unusual", [b"", b'{"v":1,"id":"0","n":"ping","m":undefined}\n'])
async def test_answered_then_closed(tmp_path: Path, guess: bytes, unusual: bytes) -> None:
    behind = b'{"v":1,"id":"2","n":"auth","m":{"token":"right"}}\n'
    replies = await _exchange(tmp_path, [unusual, guess, behind])
    assert [(reply["id"], reply["e"]["code"]) for reply in replies] == [
        *([("0", "unauthorized")] if unusual else []),
        ("1", "unauthorized"),
    ]
    assert replies[-1]["e"]["message"] == "unknown token"
