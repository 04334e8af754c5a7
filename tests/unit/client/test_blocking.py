"""The blocking client against a scripted peer."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from kqs import Client
from kqs.client.session import NO_ARGUMENT
from kqs.errors import (
    BadRequest,
    Busy,
    CallTimeout,
    ConnectionFailed,
    NotFound,
    ProtocolError,
    TooLarge,
)

from .peer import PATIENCE, SHORT, Line, Peer, serve, take_and_close, take_and_reset

# -- calls ---------------------------------------------------------------------------------------


def test_calls(client: Client, peer: Peer) -> None:
    assert client.ping() == "pong"
    assert client.echo({"a": [1, None, "\u00e9"]}) == {"a": [1, None, "\u00e9"]}
    assert client.echo(bytes(range(256))) == bytes(range(256))
    assert client.call("echo", None) is None
    assert client.call("echo") is None
    assert client.insert("t", {"a": 1}, prio="low") == "0-0"
    assert client.insert_many([{"type": "t"}, {"type": "u", "data": b"x"}]) == ["0-1", "0-2"]
    assert peer.connections == 1


@pytest.mark.parametrize(
    ("make", "name", "argument", "blob"),
    [
        (lambda c: c.ping(), "ping", None, None),
        (lambda c: c.call("x"), "x", None, None),
        (lambda c: c.call("x", [1]), "x", [1], None),
        (lambda c: c.call("x", blob=b"\x00"), "x", None, b"\x00"),
        (lambda c: c.insert("t"), "insert", {"type": "t"}, None),
        (lambda c: c.insert("t", b"\xff", ttr=5), "insert", {"type": "t", "ttr": 5}, b"\xff"),
        (lambda c: c.insert("t", 0, delay=1.5), "insert", {"type": "t", "delay": 1.5, "data": 0}, None),
        (lambda c: c.job("7"), "job", {"id": "7", "data": False}, None),
        (lambda c: c.job("7", data=True), "job", {"id": "7", "data": True}, None),
        (lambda c: c.stats(), "stats", None, None),
        (lambda c: c.health(), "health", None, None),
        (lambda c: c.quit(2.5), "quit", {"grace": 2.5}, None),
        (
            lambda c: c.insert_many([{"type": "t", "data": b"\xff"}]),
            "insert",
            [{"type": "t", "data64": "/w=="}],
            None,
        ),
    ],
)
def test_what_is_sent(make: Any, name: str, argument: Any, blob: bytes | None) -> None:
    seen: list[dict[str, Any]] = []

    def script(line: Line) -> None:
        call = line.call()
        seen.append(call)
        line.reply(call, {"id": "1", "ids": ["1"]})

    with Peer(script) as peer, Client(peer.url) as client:
        make(client)
    (call,) = seen
    assert (call["v"], call["n"], call.get("m"), call.get("b")) == (1, name, argument, blob)
    assert isinstance(call["id"], str)


def test_a_streamed_answer_ends_with_its_last_reply() -> None:
    def script(line: Line) -> None:
        call = line.call()
        for number in range(3):
            line.answer(call, s="ok", m=number)
        line.answer(call, s="end")
        line.answer(call, s="ok", m="late")
        serve(line)

    with Peer(script) as peer, Client(peer.url) as client:
        assert client.call("watch") is None
        assert client.ping() == "pong"


def test_a_refusal_is_an_error_and_the_connection_stays() -> None:
    def script(line: Line) -> None:
        line.refuse(line.call(), "not_found", "no such job")
        line.refuse(line.call(), "bad_request", "bad prio", field="prio", index=3)
        line.refuse(line.call(), "of_tomorrow", "what")
        serve(line)

    with Peer(script) as peer, Client(peer.url) as client:
        with pytest.raises(NotFound, match="no such job"):
            client.job("7")
        with pytest.raises(BadRequest) as caught:
            client.insert("t")
        assert (caught.value.field, caught.value.index) == ("prio", 3)
        with pytest.raises(Exception, match="what") as other:
            client.ping()
        assert type(other.value).__name__ == "Internal"
        assert client.ping() == "pong"
        assert peer.connections == 1


def test_an_argument_json_does_not_have_sends_nothing(client: Client, peer: Peer) -> None:
    with pytest.raises(TypeError):
        client.call("echo", object())
    assert peer.connections == 0
    assert client.ping() == "pong"


# -- many calls ----------------------------------------------------------------------------------


def test_pipelined_replies_come_back_in_the_order_of_the_calls() -> None:
    def script(line: Line) -> None:
        calls = [line.call() for _ in range(50)]
        for call in reversed(calls):
            if call["m"] % 7 == 0:
                line.refuse(call, "busy", str(call["m"]))
            else:
                line.reply(call, call["m"])

    with Peer(script) as peer, Client(peer.url) as client:
        values = client.call_many([("echo", number) for number in range(50)])
    for number, value in enumerate(values):
        if number % 7 == 0:
            assert isinstance(value, Busy)
            assert value.message == str(number)
        else:
            assert value == number


def test_many_calls_at_once_while_neither_side_has_room(client: Client) -> None:
    """A peer that stops reading until its replies are taken must not lock both up."""
    text = "x" * 2000
    values = client.call_many([("echo", text)] * 5000, timeout=PATIENCE * 3)
    assert values == [text] * 5000
    assert client.call_many([]) == []
    assert client.call_many([("ping", NO_ARGUMENT), ("nothing", 1)])[0] == "pong"


# -- connections lost ----------------------------------------------------------------------------


def half_a_reply(line: Line) -> None:
    call = line.call()
    line.send(f'{{"v":1,"id":"{call["id"]}","e":null,"s":"en'.encode())


@pytest.mark.parametrize("script", [take_and_close, take_and_reset, half_a_reply])
def test_a_connection_lost_mid_call(script: Any) -> None:
    with Peer(script, serve) as peer, Client(peer.url) as client:
        with pytest.raises(ConnectionFailed, match="accepted is unknown") as caught:
            client.insert("t")
        assert caught.value.sent
        assert not isinstance(caught.value, CallTimeout)
        assert client.ping() == "pong"  # by another connection
        assert peer.connections == 2


def test_a_connection_closed_while_idle_is_not_an_error() -> None:
    def one_call(line: Line) -> None:
        line.reply(line.call(), "pong")

    with Peer(one_call, serve) as peer, Client(peer.url) as client:
        assert client.ping() == "pong"
        peer._threads[0].join(PATIENCE)  # it has closed
        assert client.ping() == "pong"
        assert peer.connections == 2


def test_close_and_go_on(client: Client, peer: Peer) -> None:
    assert client.ping() == "pong"
    client.close()
    client.close()
    assert client.ping() == "pong"
    assert peer.connections == 2


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError),
        (b'{"v":1,"e":{"message":"not JSON","code":"bad_request"},"s":"end"}\n', BadRequest),
        (b'{"v":1,"e":{"message":"long","code":"too_large"},"s":"end"}\n', TooLarge),
    ],
)
def test_what_ends_a_connection_as_a_whole(sent: bytes, error: type[Exception]) -> None:
    def script(line: Line) -> None:
        line.call()
        line.send(sent)
        line.wait_closed()

    with Peer(script, serve) as peer, Client(peer.url, timeout=PATIENCE) as client:
        with pytest.raises(error):
            client.ping()
        assert client.ping() == "pong"
        assert peer.connections == 2


class Interrupt(BaseException):
    """Raised by a signal's handler, as Ctrl-C raises KeyboardInterrupt."""


def _interrupt(_signal: int, _frame: object) -> None:
    raise Interrupt


def test_interrupted_in_the_middle_of_a_call() -> None:
    """Half a line may be out and a reply under way: the connection is not used for another call."""

    def script(line: Line) -> None:
        line.call()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        line.wait_closed()

    before = signal.signal(signal.SIGUSR1, _interrupt)
    try:
        with Peer(script, serve) as peer, Client(peer.url, timeout=PATIENCE) as client:
            with pytest.raises(Interrupt):
                client.insert("t")
            assert client.ping() == "pong"
            assert peer.connections == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- timeouts ------------------------------------------------------------------------------------


def test_no_reply_in_time() -> None:
    def silent(line: Line) -> None:
        line.call()
        line.wait_closed()

    with Peer(silent, serve) as peer, Client(peer.url, timeout=PATIENCE) as client:
        with pytest.raises(CallTimeout, match="no reply to insert in time") as caught:
            client.call("insert", {"type": "t"}, timeout=SHORT)
        assert caught.value.sent
        assert client.ping() == "pong"
        assert peer.connections == 2


def test_a_stream_that_never_ends_is_over_in_time() -> None:
    def endless(line: Line) -> None:
        call = line.call()
        while True:
            line.answer(call, s="ok", m=1)

    with Peer(endless) as peer, Client(peer.url, timeout=SHORT) as client, pytest.raises(CallTimeout):
        client.call("watch")


def test_a_peer_that_takes_nothing() -> None:
    def deaf(line: Line) -> None:
        done.wait(PATIENCE)

    done = threading.Event()
    with Peer(deaf) as peer, Client(peer.url, timeout=SHORT) as client:
        with pytest.raises(CallTimeout):
            client.echo(bytes(32 * 1024 * 1024))
        done.set()
