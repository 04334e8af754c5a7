"""What the asyncio client has for workers."""

from __future__ import annotations

import asyncio

import pytest

from kqs.client import AsyncClient
from kqs.errors import ConnectionFailed
from tests.support import ServerProcess, until


async def test_json_is_passed_on_as_it_is(server: ServerProcess) -> None:
    text = b'{"b":1e2,"a":[1.0,  "\\u00e9"]}'
    async with AsyncClient(server.url) as client:
        assert await client.call_json("echo", text) == text


async def test_a_reserve_that_waits_is_answered_when_no_more_calls_come(server: ServerProcess) -> None:
    async with AsyncClient(server.url) as client:
        argument = {"types": ["t"], "wait": 3000}
        waiting = asyncio.create_task(client.call("reserve", argument, timeout=3600))
        await asyncio.to_thread(until, lambda: server.client().stats()["reserves_waiting"] == 2)  # and ping's
        client.finish()
        assert await waiting == {"jobs": []}
        assert await client.ping() == "pong", "over another connection"


async def test_connect_says_that_nobody_is_there() -> None:
    async with AsyncClient("kqs+unix:/nowhere/kqs.sock") as client:
        with pytest.raises(ConnectionFailed, match="nowhere"):
            await client.connect(timeout=0.2)
