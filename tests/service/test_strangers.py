"""Strangers: what a peer without a token may do, how long it may stay, and what wrong tokens cost it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kqs.core.job import DefaultsTable
from kqs.service.calllog import CallLog
from kqs.service.calls import Desk
from kqs.service.metrics import Metrics
from kqs.service.server import STRANGER_LINE, Server
from kqs.service.throttle import FREE
from kqs.service.tokens import Tokens, digest
from kqs.settings.config import CallLogConfig, LimitsConfig, TokenConfig
from tests.support import request

TOKEN = "right"


def _desk(log: CallLog, tokens: Tokens) -> Desk:
    parts: dict[str, Any] = dict.fromkeys(("bulk", "clock", "health", "about", "serves", "quit"))
    return Desk(
        engine=SimpleNamespace(capabilities=frozenset()),
        dispatch=SimpleNamespace(dismiss=lambda connection: None),
        intake=SimpleNamespace(unsynced=0, on_drained=None),
        crons=SimpleNamespace(handlers={}),
        table=DefaultsTable(),
        tokens=tokens,
        metrics=Metrics(),
        log=log,
        **parts,
    )


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """One that knows a single token, in this process."""
    tokens = Tokens(str(tmp_path), [TokenConfig("one", "read", digest(TOKEN))])
    made = Server(LimitsConfig(), tokens)
    log = CallLog(str(tmp_path), CallLogConfig(), lambda: 1.0)
    made.desk = _desk(log, tokens)
    await made.listen("127.0.0.1", 0, str(tmp_path / "sock"))
    yield made
    made.stop_listening()
    await made.close(10)
    log.close()


class _Peer:
    """A connection that waits for what comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def call(self, name: str, argument: Any = ...) -> Any:
        """The value or the error's code."""
        self._writer.write(request(name, argument))
        reply = msgspec.json.decode(await asyncio.wait_for(self._reader.readline(), 30))
        return reply["m"] if reply["e"] is None else reply["e"]["code"]

    async def rest(self, *data: bytes) -> list[dict[str, Any]]:
        """Send something; returns the replies until the server closes."""
        self._writer.write(b"".join(data))
        replies = await asyncio.wait_for(self._reader.read(), 30)
        return [msgspec.json.decode(line) for line in replies.splitlines()]

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


_Connect = Callable[..., Awaitable[_Peer]]


@pytest.fixture
async def connect(server: Server, tmp_path: Path) -> AsyncIterator[_Connect]:
    """Makes connections, over the Unix socket when asked to."""
    made: list[_Peer] = []

    async def new(*, unix: bool = False) -> _Peer:
        if unix:
            made.append(_Peer(*await asyncio.open_unix_connection(str(tmp_path / "sock"))))
        else:
            made.append(_Peer(*await asyncio.open_connection("127.0.0.1", server.port)))
        return made[-1]

    yield new
    for peer in made:
        await peer.close()


@pytest.mark.parametrize(
    "guess",
    [
        b'{"v":1,"id":"1","n":"auth","m":{"token":"wrong"}}\n',
        b'{"v":1,"id":"1","n":"stats","m":{"auth":{"usr":"me","pwd":"wrong"}}}\n',
    ],
)
@pytest.mark.parametrize("unusual", [b"", b'{"v":1,"id":"0","n":"ping","m":undefined}\n'])
async def test_a_wrong_token_is_answered_and_nothing_behind_it_taken(
    connect: _Connect, guess: bytes, unusual: bytes
) -> None:
    behind = b'{"v":1,"id":"2","n":"auth","m":{"token":"right"}}\n'
    replies = await (await connect()).rest(unusual, guess, behind)
    assert [(reply["id"], reply["e"]["code"]) for reply in replies] == [
        *([("0", "unauthorized")] if unusual else []),
        ("1", "unauthorized"),
    ]
    assert replies[-1]["e"]["message"] == "unknown token"


async def test_after_some_wrong_tokens_none_is_looked_at_for_a_while(connect: _Connect) -> None:
    known = await connect()
    assert await known.call("auth", {"token": TOKEN}) == {"role": "read"}
    for number in range(FREE):
        assert await (await connect()).call("auth", {"token": f"guess {number}"}) == "unauthorized"
    for _ in range(2):
        stranger = await connect()
        (reply,) = await stranger.rest(request("auth", {"token": TOKEN}))
        assert reply["e"]["code"] == "busy"
        assert reply["e"]["message"].startswith("too many wrong tokens from 127.0.0.1; try again in 0.")
    assert await known.call("ping", {"auth": {"usr": "me", "pwd": TOKEN}}) == "pong"
    async with asyncio.timeout(30):
        while (await (await connect()).call("auth", {"token": TOKEN})) == "busy":
            await asyncio.sleep(0.05)


async def test_on_the_unix_socket_wrong_tokens_hold_nobody_up(connect: _Connect) -> None:
    for number in range(FREE + 1):
        peer = await connect(unix=True)
        assert await peer.call("auth", {"token": f"guess {number}"}) == "unauthorized"
    peer = await connect(unix=True)
    assert await peer.call("auth", {"token": TOKEN}) == {"role": "read"}


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["without an end", "with an end"])
async def test_a_stranger_may_not_send_long_lines(connect: _Connect, end: bytes) -> None:
    stranger = await connect()
    (reply,) = await stranger.rest(b'{"v":1,"n":"echo","m":"' + b"x" * STRANGER_LINE + end)
    assert (reply["e"]["code"], reply["e"]["limit"]) == ("too_large", STRANGER_LINE)
    assert "before auth" in reply["e"]["message"]


async def test_who_has_shown_a_token_may(connect: _Connect) -> None:
    peer = await connect()
    assert await peer.call("auth", {"token": TOKEN}) == {"role": "read"}
    assert await peer.call("stats", {"x": "x" * 10 * STRANGER_LINE}) == "unknown_field"


async def test_a_stranger_may_not_stay(connect: _Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kqs.service.server.STRANGER_TIME", 0.05)
    known, silent, slow = [await connect() for _ in range(3)]
    assert await known.call("auth", {"token": TOKEN}) == {"role": "read"}
    assert await slow.call("ping") == "unauthorized"
    assert await silent.rest() == []
    assert await slow.rest(b'{"v":1,') == []
    assert await known.call("ping") == "pong"
