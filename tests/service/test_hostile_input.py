"""Lines nobody should send: each gets a typed error or a closed connection, and the server serves on.

After every case a canary, a client of its own, is answered, and the server's memory is still bounded.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from time import monotonic
from typing import Any

import psutil
import pytest

from kqs.client import Client
from kqs.errors import TooLarge
from tests.support import PATIENCE, ServerProcess, Wire

LINE = 16 * 1024 * 1024
#: What the server may use at most while a case runs, beyond what it used before.
BOUND = 200 * 1024 * 1024


@pytest.fixture
def wire(shared: ServerProcess) -> Iterator[Wire]:
    """A connection to do harm with."""
    process = psutil.Process(shared.pid)
    before = process.memory_info().rss
    with shared.connect() as connection:
        yield connection
        assert process.memory_info().rss - before < BOUND
    with shared.connect() as canary:
        assert canary.call("ping")["m"] == "pong"


def code(reply: dict[str, Any] | None) -> str:
    assert reply is not None, "closed without an answer"
    assert reply["s"] == "end" and reply["e"]["_isError__"] is True
    return str(reply["e"]["code"])


NOT_JSON = {
    "text": b"hello",
    "half an object": b'{"v":1,"n":"ping"',
    "two values": b'{"v":1,"n":"ping"} {"v":1,"n":"ping"}',
    "single quotes": b"{'v':1,'n':'ping'}",
    "trailing comma": b'{"v":1,"n":"ping",}',
    "comment": b'{"v":1,"n":"ping"}//',
    "NaN": b'{"v":1,"n":"echo","m":NaN}',
    "Infinity": b'{"v":1,"n":"echo","m":-Infinity}',
    "undefined inside": b'{"v":1,"n":"echo","m":{"a":undefined}}',
    "leading zero": b'{"v":1,"n":"echo","m":01}',
    "NUL": b'{"v":1,"n":"ping"}\0',
    "only NULs": b"\0" * 100,
    "NUL in a string": b'{"v":1,"n":"echo","m":"\0"}',
    "tab in a string": b'{"v":1,"n":"echo","m":"\t"}',
    "BOM": b'\xef\xbb\xbf{"v":1,"n":"ping"}',
    "UTF-16": '{"v":1,"n":"ping"}'.encode("utf-16-le"),
    "invalid UTF-8": b'{"v":1,"n":"echo","m":"\xff"}',
    "overlong UTF-8": b'{"v":1,"n":"echo","m":"\xc0\xaf"}',
    "surrogate in UTF-8": b'{"v":1,"n":"echo","m":"\xed\xa0\x80"}',
    "cut UTF-8": b'{"v":1,"n":"echo","m":"\xe2\x82"}',
    "CR in a string": b'{"v":1,"n":"echo","m":"\r"}',
    "bad escape": b'{"v":1,"n":"echo","m":"\\x41"}',
    "deep arrays": b'{"v":1,"n":"echo","m":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"v":1,"n":"echo","m":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "deep and open": b"[" * 100_000,
    "deep insert": b'{"v":1,"n":"insert","m":{"type":"x","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "deep batch": b'{"v":1,"n":"insert","m":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep id": b'{"v":1,"n":"ping","id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep unknown member": b'{"v":1,"n":"ping","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "binary noise": bytes(byte for byte in range(256) if byte != 10),
}


@pytest.mark.parametrize("line", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_told_once_and_the_connection_closed(wire: Wire, line: bytes) -> None:
    wire.send(b'{"v":1,"id":"1","n":"ping"}\n' + line + b'\n{"v":1,"id":"2","n":"ping"}\n')
    replies = wire.rest()
    assert [reply.get("m") for reply in replies] == ["pong", None], replies
    assert code(replies[1]) == "bad_request"


@pytest.mark.parametrize(
    "line",
    [b"", b" ", b"\t \r", b"\r", b"\n\n\n\n"],
    ids=["empty", "space", "whitespace", "CR", "many"],
)
def test_blank_lines_are_passed_over(wire: Wire, line: bytes) -> None:
    wire.send(line + b"\n")
    assert wire.call("ping")["m"] == "pong"


def test_carriage_returns_around_a_call_are_blanks(wire: Wire) -> None:
    assert wire.ask(b'\r{"v":1,"n":"ping"}\r')["m"] == "pong"
    assert wire.ask(b'{"v":1,"n":"ping"}\r\r\r')["m"] == "pong"


def test_whitespace_within_a_call_is_json(wire: Wire) -> None:
    assert wire.ask(b'  {\t"v" : 1 , "n" : "ping" }  ')["m"] == "pong"


@pytest.mark.parametrize("m", ["1e999", "-1e999", "1" * 10_000, "1e-999", "-0"])
def test_numbers_of_any_size_are_echoed(wire: Wire, m: str) -> None:
    wire.send(f'{{"v":1,"id":"1","n":"echo","m":{m}}}\n'.encode())
    got = b""
    while not got.endswith(b"\n"):
        got += wire.socket.recv(65536)
    assert got == f'{{"v":1,"id":"1","e":null,"s":"end","m":{m}}}\n'.encode()


def test_a_nesting_json_can_bear_is_borne(wire: Wire) -> None:
    nested = "[" * 400 + "]" * 400
    reply = wire.ask(f'{{"v":1,"id":"1","n":"insert","m":{{"type":"x","data":{nested}}}}}'.encode())
    assert reply["e"] is None


def test_names_and_ids_of_any_length_and_content(wire: Wire) -> None:
    name = "n" * 100_000
    assert wire.call(name)["e"]["code"] == "unsupported"
    assert wire.call("\0\n\x1b[31m")["e"]["code"] == "unsupported"
    id = "\N{SNOWMAN}\u0000" * 100_000
    assert wire.call("ping", id=id)["id"] == id


def test_a_line_of_the_full_length_is_taken(wire: Wire) -> None:
    text = "x" * (LINE - 1000)
    assert wire.call("echo", text)["m"] == text


@pytest.mark.parametrize("end", [b"", b'"}\n'], ids=["without an end", "with an end"])
def test_a_longer_line_is_refused(wire: Wire, end: bytes) -> None:
    head = b'{"v":1,"id":"1","n":"echo","m":"'
    try:
        wire.send(head + b"x" * (LINE + 1_000_000) + end)
    except OSError:
        pass  # refused before all of it was sent
    replies = wire.rest()
    assert [code(reply) for reply in replies] == ["too_large"]
    assert replies[0]["e"]["limit"] == LINE


def test_an_endless_line_is_cut_off(wire: Wire) -> None:
    deadline = monotonic() + PATIENCE
    with pytest.raises(ConnectionError):
        while monotonic() < deadline:
            wire.send(b"x" * 1_000_000)


def test_what_came_before_a_long_line_is_answered(wire: Wire) -> None:
    wire.send(b'{"v":1,"id":"%d","n":"insert","m":{"type":"x"}}\n' * 100 % tuple(range(100)))
    try:
        wire.send(b"x" * (LINE + 1_000_000))
    except OSError:
        pass
    replies = wire.rest()
    assert [reply.get("id") for reply in replies if reply["e"] is None] == [str(n) for n in range(100)]
    assert [code(reply) for reply in replies if reply["e"] is not None] == ["too_large"]


@pytest.mark.parametrize("big", [False, True], ids=["blob", "json"])
def test_our_client_learns_that_it_sent_too_much(shared: ServerProcess, big: bool) -> None:
    with shared.client() as client:
        with pytest.raises(TooLarge, match="longer than"):
            client.insert("x", "x" * (LINE + 1) if big else b"x" * LINE)
        assert client.ping() == "pong"


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /api HTTP/1.1\r\nContent-Length: 100\r\n\r\n" + b'{"v":1,"n":"quit"}\n' * 5,
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\x16\x03\x03\x00\x05\n\n\n\n\n",
    ],
    ids=["GET", "POST", "OPTIONS", "HTTP/2", "TLS", "TLS with newlines"],
)
@pytest.mark.parametrize("pieces", [1, 3], ids=["whole", "in pieces"])
def test_http_and_tls_are_cut_off_unanswered(wire: Wire, start: bytes, pieces: int) -> None:
    size = 3 if pieces > 1 else len(start)
    try:
        for at in range(0, len(start), size):
            wire.send(start[at : at + size])
    except OSError:
        pass
    assert wire.closed()


def test_http_later_on_is_just_no_json(wire: Wire) -> None:
    assert wire.call("ping")["m"] == "pong"
    wire.send(b"GET / HTTP/1.1\r\n")
    assert code(wire.line()) == "bad_request"
    assert wire.closed()


@pytest.mark.parametrize("call", ["insert", "settle", "reserve", "renew", "job", "jobs", "stats", "auth"])
@pytest.mark.parametrize(
    "m",
    [
        b"null",
        b"true",
        b"-1",
        b"1e999",
        b'"\\u0000"',
        b"[[[[[]]]]]",
        b"[" + b"{}," * 20_000 + b"{}]",
        b'{"\\u0000":{"\\u0000":[]}}',
        b'{"id":[],"type":{},"types":{},"receipts":{},"token":{},"limit":"9"}',
        b'{"max":%s,"limit":%s,"grace":%s}' % ((b"9" * 5000,) * 3),
        b'{"auth":%s}' % (b"[" * 400 + b"]" * 400),
    ],
    ids=lambda m: m[:12].decode(),
)
def test_arguments_of_any_shape_get_a_typed_error_or_an_answer(wire: Wire, call: str, m: bytes) -> None:
    reply = wire.ask(b'{"v":1,"id":"1","n":"%b","m":%b}' % (call.encode(), m))
    assert reply["e"] is None or reply["e"]["code"] in ("bad_request", "unknown_field", "too_large"), reply
    assert wire.call("ping")["m"] == "pong"


def test_a_blob_where_none_belongs(wire: Wire) -> None:
    for call in ("ping", "reserve", "settle", "renew", "job", "jobs", "stats", "health"):
        reply = wire.ask(b'{"v":1,"b":4,"id":"1","n":"%b","b":"YWJj"}' % call.encode())
        assert reply["e"] is None or reply["e"]["code"] == "bad_request", reply


def test_a_bare_integer_blob_everywhere(wire: Wire) -> None:
    for call in ("echo", "insert"):
        reply = wire.ask(b'{"v":1,"b":12345678901234567890,"id":"1","n":"%b"}' % call.encode())
        assert reply["e"]["code"] == "bad_request"


def test_a_canary_is_served_while_the_others_misbehave(shared: ServerProcess) -> None:
    peers = []
    try:
        for line in (b"x" * 1_000_000, b'{"v":1', b"\n" * 1_000_000, b"[" * 500_000):
            peer = socket.create_connection(("127.0.0.1", shared.port))
            peers.append(peer)
            peer.sendall(line)
        with shared.client() as canary:
            assert [canary.ping() for _ in range(100)] == ["pong"] * 100
    finally:
        for peer in peers:
            peer.close()


def test_refusals_are_counted(shared: ServerProcess) -> None:
    with shared.client() as client, shared.connect() as wire:
        before = client.stats()["errors"]
        wire.send(b"no json\n")
        assert wire.line() is not None
        after = client.stats()["errors"]
    assert after["bad_request"] - before.get("bad_request", 0) == 1


def test_the_message_names_what_and_where(wire: Wire) -> None:
    wire.send(b'{"v":1,"n":"echo","m":"\xff"}\n')
    reply = wire.line()
    assert reply is not None
    assert reply["e"]["message"] == "line is not UTF-8: invalid start byte at byte 23"
    assert json.dumps(reply).isascii()


def test_unused_clients_are_no_burden(shared: ServerProcess) -> None:
    """A thousand connections that say nothing."""
    peers = [socket.create_connection(("127.0.0.1", shared.port)) for _ in range(1000)]
    with Client(shared.url) as client:
        assert client.stats()["connections"]["open"] >= 1000
    for peer in peers:
        peer.close()
