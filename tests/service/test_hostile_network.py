"""Peers that send slowly, all at once, or leave in the middle; the others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator

import psutil
import pytest

from kqs.client import AsyncClient, Client
from tests.support import ServerProcess, until

MIB = 1024 * 1024
LINGER_NOT = struct.pack("ii", 1, 0)


@pytest.fixture
async def canary(shared: ServerProcess) -> AsyncIterator[AsyncClient]:
    """A client beside the peer of the test: each of its pings must be answered within a second or so."""
    process = psutil.Process(shared.pid)
    before = process.memory_info().rss
    async with AsyncClient(shared.url) as client:
        await client.ping()
        yield client
        async with asyncio.timeout(30):
            assert await client.ping() == "pong"
    assert process.memory_info().rss - before < 300 * MIB


@contextlib.asynccontextmanager
async def singing(canary: AsyncClient) -> AsyncIterator[list[str]]:
    """The canary pings without a pause for the length of a block."""
    pongs: list[str] = []

    async def sing() -> None:
        while True:
            async with asyncio.timeout(30):
                pongs.append(await canary.ping())
            await asyncio.sleep(0.001)

    task = asyncio.create_task(sing())
    try:
        yield pongs
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def connect(server: ServerProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.port, limit=64 * MIB)


async def test_one_line_in_1_byte_packets(shared: ServerProcess, canary: AsyncClient) -> None:
    reader, writer = await connect(shared)
    line = json.dumps({"v": 1, "id": "1", "n": "echo", "m": "\N{SNOWMAN}" * 500}, ensure_ascii=False)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    async with singing(canary) as pongs:
        for byte in line.encode() + b"\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        reply = json.loads(await asyncio.wait_for(reader.readline(), 30))
    assert reply["m"] == "\N{SNOWMAN}" * 500
    assert pongs
    writer.close()


async def test_slowloris(shared: ServerProcess, canary: AsyncClient) -> None:
    """Two hundred peers that never finish a line hold nothing up, and each may still finish it."""
    peers = [await connect(shared) for _ in range(200)]
    for part in (b'{"v":1,', b'"id":"s",', b'"n":'):
        for _reader, writer in peers:
            writer.write(part)
        await asyncio.sleep(0.02)
        assert await canary.ping() == "pong"
    for reader, writer in peers:
        writer.write(b'"ping"}\n')
        assert json.loads(await asyncio.wait_for(reader.readline(), 30))["m"] == "pong"
        writer.close()


async def test_a_hundred_thousand_calls_then_close(shared: ServerProcess, canary: AsyncClient) -> None:
    """All of them in the socket, then gone without a look at the answers."""
    before = (await canary.stats())["connections"]["open"]
    _reader, writer = await connect(shared)
    async with singing(canary) as pongs:
        writer.write(b'{"v":1,"id":"1","n":"ping"}\n' * 100_000)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        async with asyncio.timeout(60):
            while (await canary.stats())["connections"]["open"] > before:
                await asyncio.sleep(0.02)
    assert pongs


async def test_a_hundred_thousand_calls_are_all_answered_in_order(
    shared: ServerProcess, canary: AsyncClient
) -> None:
    reader, writer = await connect(shared)
    async with singing(canary) as pongs:
        writer.write(b"".join(b'{"v":1,"id":"%d","n":"ping"}\n' % n for n in range(100_000)))
        writer.write_eof()
        replies = await asyncio.wait_for(reader.read(), 60)
    expected = b"".join(b'{"v":1,"id":"%d","e":null,"s":"end","m":"pong"}\n' % n for n in range(100_000))
    assert replies == expected
    assert pongs
    writer.close()


async def test_a_hundred_thousand_inserts_are_all_answered(
    shared: ServerProcess, canary: AsyncClient
) -> None:
    """More than may be in flight at once: they wait in the socket, none is lost."""
    reader, writer = await connect(shared)
    line = b'{"v":1,"id":"%d","n":"insert","m":{"type":"storm","data":%d}}\n'
    async with singing(canary) as pongs:
        writer.write(b"".join(line % (n, n) for n in range(100_000)))
        writer.write_eof()
        replies = [json.loads(reply) for reply in (await asyncio.wait_for(reader.read(), 60)).splitlines()]
    assert sorted(int(reply["id"]) for reply in replies) == list(range(100_000))
    assert len({reply["m"]["id"] for reply in replies}) == 100_000
    assert pongs
    writer.close()


async def test_after_a_half_close_everything_outstanding_is_answered(
    shared: ServerProcess, canary: AsyncClient
) -> None:
    reader, writer = await connect(shared)
    writer.write(b'{"v":1,"id":"a","n":"insert","m":{"type":"x"}}\n')
    writer.write(b'{"v":1,"id":"b","n":"stats"}\n{"v":1,"id":"c","n":"jobs"}\n')
    writer.write(b'{"v":1,"id":"d","n":"ping"}')  # and no newline
    writer.write_eof()
    replies = [json.loads(line) for line in (await asyncio.wait_for(reader.read(), 30)).splitlines()]
    assert {reply["id"] for reply in replies} == set("abcd")
    assert all(reply["e"] is None for reply in replies)
    writer.close()


async def test_a_waiting_reserve_ends_with_a_half_close(shared: ServerProcess, canary: AsyncClient) -> None:
    """What it would wait for could not be settled on a connection that says no more."""
    reader, writer = await connect(shared)
    writer.write(b'{"v":1,"id":"1","n":"reserve","m":{"types":["nosuch"],"wait":600}}\n')
    writer.write_eof()
    assert json.loads(await asyncio.wait_for(reader.read(), 30))["m"] == {"jobs": []}
    writer.close()


@pytest.mark.parametrize("sent", [b"", b'{"v":1,"n":"pi', b'{"v":1,"n":"ping"}\n' * 1000])
async def test_a_reset_at_any_time(shared: ServerProcess, canary: AsyncClient, sent: bytes) -> None:
    for _ in range(50):
        peer = socket.create_connection(("127.0.0.1", shared.port))
        peer.sendall(sent)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        peer.close()
    assert await canary.ping() == "pong"


def test_a_reset_while_an_insert_is_on_its_way_is_done_or_not_done(shared: ServerProcess) -> None:
    with shared.client() as client:
        for number in range(50):
            peer = socket.create_connection(("127.0.0.1", shared.port))
            peer.sendall(
                b'{"v":1,"id":"1","n":"insert","m":[{"type":"half","data":%d},{"type":"half"}]}\n' % number
            )
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            peer.close()
        client.insert("half-marker")
        assert client.call("stats", {"type": "half"})["types"].get("half", {"ready": 0})["ready"] % 2 == 0


def test_connections_come_and_go(shared: ServerProcess) -> None:
    process = psutil.Process(shared.pid)
    with shared.client() as client:
        client.ping()
        before = process.num_fds()
        for _ in range(500):
            with Client(shared.url) as other:
                assert other.ping() == "pong"
        until(lambda: process.num_fds() <= before, "the descriptors to be given back")
        until(lambda: client.stats()["connections"]["open"] <= 2, "the connections to be forgotten")
