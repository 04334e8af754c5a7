"""The asyncio client against a scripted peer."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from kqs import AsyncClient
from kqs.errors import (
    BadRequest,
    CallTimeout,
    ConnectionFailed,
    NotFound,
    ProtocolError,
    TooLarge,
)

from .peer import PATIENCE, SHORT, Line, Peer, serve, take_and_close, take_and_reset

# -- calls ---------------------------------------------------------------------------------------


async def test_calls(aio: AsyncClient, peer: Peer) -> None:
    assert await aio.ping() == "pong"
    assert await aio.echo({"a": [1, None, "\u00e9"]}) == {"a": [1, None, "\u00e9"]}
    assert await aio.echo(bytes(range(256))) == bytes(range(256))
    assert await aio.call("echo", None) is None
    assert await aio.call("echo") is None
    assert await aio.insert("t", {"a": 1}, prio="low") == "0-0"
    assert await aio.insert_many([{"type": "t"}, {"type": "u", "data": b"x"}]) == ["0-1", "0-2"]
    assert peer.connections == 1


@pytest.mark.parametrize(
    ("make", "name", "argument", "blob"),
    [
        (lambda c: c.ping(), "ping", None, None),
        (lambda c: c.call("x", [1]), "x", [1], None),
        (lambda c: c.call("x", blob=b"\x00"), "x", None, b"\x00"),
        (lambda c: c.insert("t"), "insert", {"type": "t"}, None),
        (lambda c: c.insert("t", b"\xff", ttr=5), "insert", {"type": "t", "ttr": 5}, b"\xff"),
        (lambda c: c.job("7", data=True), "job", {"id": "7", "data": True}, None),
        (lambda c: c.stats(), "stats", None, None),
        (lambda c: c.health(), "health", None, None),
        (lambda c: c.quit(2.5), "quit", {"grace": 2.5}, None),
    ],
)
async def test_what_is_sent(make: Any, name: str, argument: Any, blob: bytes | None) -> None:
    seen: list[dict[str, Any]] = []

    def script(line: Line) -> None:
        call = line.call()
        seen.append(call)
        line.reply(call, {"id": "1", "ids": ["1"]})

    with Peer(script) as peer:
        async with AsyncClient(peer.url) as client:
            await make(client)
    (call,) = seen
    assert (call["v"], call["n"], call.get("m"), call.get("b")) == (1, name, argument, blob)


async def test_a_refusal_is_an_error_and_the_connection_stays() -> None:
    def script(line: Line) -> None:
        line.refuse(line.call(), "not_found", "no such job", index=3)
        serve(line)

    with Peer(script) as peer:
        async with AsyncClient(peer.url) as client:
            with pytest.raises(NotFound, match="no such job") as caught:
                await client.job("7")
            assert caught.value.index == 3
            assert await client.ping() == "pong"
            assert peer.connections == 1


async def test_an_argument_json_does_not_have_sends_nothing(aio: AsyncClient, peer: Peer) -> None:
    with pytest.raises(TypeError):
        await aio.call("echo", object())
    assert peer.connections == 0


async def test_many_calls_at_once_over_one_connection() -> None:
    """Replies may come in any order; each finds its call."""

    def script(line: Line) -> None:
        calls = [line.call() for _ in range(500)]
        for call in reversed(calls):
            line.reply(call, call["m"])

    with Peer(script) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            values = await asyncio.gather(*(client.echo(number) for number in range(500)))
        assert values == list(range(500))
        assert peer.connections == 1


async def test_a_cancelled_call_leaves_the_others_alone() -> None:
    def script(line: Line) -> None:
        held = line.call()
        taken.set()
        other = line.call()
        line.reply(held, "late")
        line.reply(other, "pong")

    taken = threading.Event()
    with Peer(script) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            held = asyncio.create_task(client.call("hold"))
            assert await asyncio.to_thread(taken.wait, PATIENCE)
            held.cancel()
            with pytest.raises(asyncio.CancelledError):
                await held
            assert await client.ping() == "pong"
            assert peer.connections == 1
            assert client._link is not None
            assert not client._link._queues  # nothing is kept of the call that was given up


# -- streams -------------------------------------------------------------------------------------


async def test_a_stream_yields_every_value() -> None:
    def script(line: Line) -> None:
        call = line.call()
        for number in range(3):
            line.answer(call, s="ok", m=number)
        line.answer(call, s="end")
        call = line.call()
        line.answer(call, s="ok", m="part")
        line.answer(call, e=None, s="end", m="last")
        call = line.call()
        line.answer(call, s="ok", m=None)
        line.answer(call, m=b"x".decode())  # no s: the last one, as npm's server may send it
        call = line.call()
        line.answer(call, s="end")

    with Peer(script) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            assert [value async for value in client.stream("watch")] == [0, 1, 2]
            assert [value async for value in client.stream("watch", {"id": "7"})] == ["part", "last"]
            assert [value async for value in client.stream("watch")] == [None, "x"]
            assert [value async for value in client.stream("watch")] == []


async def test_a_stream_ends_with_its_error() -> None:
    def script(line: Line) -> None:
        call = line.call()
        line.answer(call, s="ok", m=1)
        line.refuse(call, "not_found")

    with Peer(script) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            seen = []
            with pytest.raises(NotFound):
                async for value in client.stream("watch"):
                    seen.append(value)  # noqa: PERF401  # what came before the error counts
            assert seen == [1]


async def test_a_stream_that_is_left_early() -> None:
    def script(line: Line) -> None:
        call = line.call()
        for number in range(100):
            line.answer(call, s="ok", m=number)
        line.answer(call, s="end")
        serve(line)

    with Peer(script) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            stream = client.stream("watch")
            async for value in stream:
                assert value == 0
                break
            await stream.aclose()  # type: ignore[attr-defined]
            assert await client.ping() == "pong"


async def test_the_last_value_of_a_streamed_answer_to_a_call() -> None:
    def script(line: Line) -> None:
        call = line.call()
        line.answer(call, s="ok", m=1)
        line.answer(call, e=None, s="end", m=2)

    with Peer(script) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            assert await client.call("watch") == 2


# -- connections lost ----------------------------------------------------------------------------


@pytest.mark.parametrize("script", [take_and_close, take_and_reset])
async def test_a_connection_lost_mid_call(script: Any) -> None:
    with Peer(script, serve) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            with pytest.raises(ConnectionFailed, match="accepted is unknown") as caught:
                await client.insert("t")
            assert caught.value.sent
            assert not isinstance(caught.value, CallTimeout)
            assert await client.ping() == "pong"
            assert peer.connections == 2


async def test_everybody_who_waits_is_told() -> None:
    def script(line: Line) -> None:
        for _ in range(20):
            line.call()

    with Peer(script) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            results = await asyncio.gather(*(client.ping() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(result, ConnectionFailed) and result.sent for result in results)


async def test_close_fails_what_waits_and_the_next_call_connects_anew(aio: AsyncClient, peer: Peer) -> None:
    assert await aio.ping() == "pong"
    await aio.close()
    await aio.close()
    assert await aio.ping() == "pong"
    assert peer.connections == 2


async def test_close_while_a_call_waits() -> None:
    def silent(line: Line) -> None:
        line.call()
        taken.set()
        line.wait_closed()

    taken = threading.Event()
    with Peer(silent) as peer:
        client = AsyncClient(peer.url, timeout=PATIENCE)
        waiting = asyncio.create_task(client.ping())
        assert await asyncio.to_thread(taken.wait, PATIENCE)
        await client.close()
        with pytest.raises(ConnectionFailed) as caught:
            await waiting
        assert caught.value.sent


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError),
        (b'{"v":1,"e":{"message":"not JSON","code":"bad_request"},"s":"end"}\n', BadRequest),
        (b'{"v":1,"e":{"message":"long","code":"too_large"},"s":"end"}\n', TooLarge),
    ],
)
async def test_what_ends_a_connection_as_a_whole(sent: bytes, error: type[Exception]) -> None:
    def script(line: Line) -> None:
        line.call()
        line.call()
        line.send(sent)
        line.wait_closed()

    with Peer(script, serve) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            results = await asyncio.gather(client.ping(), client.ping(), return_exceptions=True)
            assert [type(result) for result in results] == [error, error]
            assert await client.ping() == "pong"
            assert peer.connections == 2


# -- timeouts ------------------------------------------------------------------------------------


async def test_no_reply_in_time() -> None:
    """The connection stays, for others may wait on it; the late reply is nobody's."""

    def script(line: Line) -> None:
        late = line.call()
        other = line.call()
        line.reply(late, "late")
        line.reply(other, "pong")

    with Peer(script) as peer:
        async with AsyncClient(peer.url, timeout=PATIENCE) as client:
            with pytest.raises(CallTimeout, match="no reply to insert within") as caught:
                await client.call("insert", {"type": "t"}, timeout=SHORT)
            assert caught.value.sent
            assert await client.ping() == "pong"
            assert peer.connections == 1


async def test_a_stream_that_never_ends_is_over_in_time() -> None:
    def endless(line: Line) -> None:
        call = line.call()
        while not done.wait(SHORT / 10):
            line.answer(call, s="ok", m=1)

    done = threading.Event()
    with Peer(endless) as peer:
        async with AsyncClient(peer.url, timeout=SHORT) as client, asyncio.timeout(PATIENCE):
            with pytest.raises(CallTimeout):
                await client.call("watch")
        done.set()


async def test_the_timeout_of_a_stream_is_for_each_reply() -> None:
    def script(line: Line) -> None:
        call = line.call()
        for number in range(5):
            line.answer(call, s="ok", m=number)
            asked.acquire(timeout=PATIENCE)
        line.wait_closed()

    asked = threading.Semaphore(0)
    with Peer(script) as peer:
        async with AsyncClient(peer.url, timeout=5 * SHORT) as client:
            seen = []
            with pytest.raises(CallTimeout):
                async for value in client.stream("watch"):
                    seen.append(value)
                    await asyncio.sleep(1.5 * SHORT)
                    asked.release()
            assert seen == [0, 1, 2, 3, 4]


async def test_a_peer_that_takes_nothing_does_not_hold_up_close() -> None:
    def deaf(line: Line) -> None:
        done.wait(3 * PATIENCE)

    done = threading.Event()
    with Peer(deaf) as peer:
        client = AsyncClient(peer.url, timeout=SHORT)
        with pytest.raises(CallTimeout):
            await client.echo(bytes(32 * 1024 * 1024))
        async with asyncio.timeout(PATIENCE):
            await client.close()
        done.set()
