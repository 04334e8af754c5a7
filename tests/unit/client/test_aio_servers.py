"""The asyncio client: several servers, and tokens."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from kqs import AsyncClient
from kqs.errors import ConfigError, ConnectionFailed, Unauthorized

from .peer import PATIENCE, SHORT, DeafListener, Line, Peer, serve, take_and_close, take_and_reset, unused_url

# -- servers -------------------------------------------------------------------------------------


async def test_nobody_there() -> None:
    url = f"{unused_url()},kqs+unix:/no/such.sock"
    async with AsyncClient(url, timeout=SHORT) as client:
        with pytest.raises(ConnectionFailed) as caught:
            await client.ping()
    assert not caught.value.sent
    text = str(caught.value)
    assert "kqs serve" in text
    assert all(part in text for part in url.split(","))


async def test_servers_are_tried_in_turn(tmp_path: Path) -> None:
    with Peer(path=str(tmp_path / "s")) as second, Peer() as third:
        urls = f"{unused_url()},{second.url},{third.url}"
        async with AsyncClient(urls, timeout=PATIENCE) as client:
            assert await client.insert("t") == "0-0"
            assert (second.connections, third.connections) == (1, 0)
            link = client._link
            second.close()
            assert link is not None
            await link.closed
            assert await client.ping() == "pong"
            assert third.connections == 1


async def test_a_server_that_does_not_answer_does_not_use_up_the_time() -> None:
    with DeafListener() as deaf, Peer() as peer:
        async with AsyncClient(f"{deaf.url},{peer.url}", timeout=1.0) as client:
            assert await client.ping() == "pong"


async def test_calls_made_before_there_is_a_connection_share_one(aio: AsyncClient, peer: Peer) -> None:
    assert await asyncio.gather(*(aio.ping() for _ in range(10))) == ["pong"] * 10
    assert peer.connections == 1


async def test_a_url_that_cannot_be_read_is_told_at_once() -> None:
    with pytest.raises(ConfigError):
        AsyncClient("http://h")


# -- tokens --------------------------------------------------------------------------------------


def with_token(line: Line) -> None:
    """Wants the token first."""
    call = line.call()
    assert (call["n"], call["m"]) == ("auth", {"token": "secret"})
    line.reply(call, {"role": "insert"})
    serve(line)


async def test_every_connection_begins_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KQS_TOKEN", "secret")
    with Peer(with_token) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            assert await client.ping() == "pong"
            await client.close()
            assert await client.ping() == "pong"
            assert peer.connections == 2


async def test_a_wrong_token() -> None:
    def script(line: Line) -> None:
        line.refuse(line.call(), "unauthorized", "unknown token")
        line.wait_closed()
        closed.set()

    closed = threading.Event()
    with Peer(script, with_token) as peer:
        async with AsyncClient(peer.url, token="secret", timeout=PATIENCE) as client:
            with pytest.raises(Unauthorized, match="unknown token"):
                await client.ping()
            assert await asyncio.to_thread(closed.wait, PATIENCE)
            assert await client.ping() == "pong"


@pytest.mark.parametrize("script", [take_and_close, take_and_reset])
async def test_a_server_lost_while_it_is_given_the_token_is_tried_again(script: Any) -> None:
    with Peer(script, with_token) as peer:
        async with AsyncClient(peer.url, token="secret", timeout=PATIENCE) as client:
            assert await client.ping() == "pong"
        assert peer.connections == 2


async def test_a_server_silent_while_it_is_given_the_token() -> None:
    def silent(line: Line) -> None:
        line.wait_closed()
        closed.set()

    closed = threading.Event()
    with Peer(silent) as peer:
        async with AsyncClient(peer.url, token="secret", timeout=SHORT) as client:
            with pytest.raises(ConnectionFailed) as caught:
                await client.ping()
            assert not caught.value.sent
            assert await asyncio.to_thread(closed.wait, PATIENCE)
