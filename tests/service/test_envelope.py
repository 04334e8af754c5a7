"""What stands around every call: ids, versions, arguments there and missing, binary parts, unknown names."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import ServerProcess, Wire


@pytest.fixture
def wire(shared: ServerProcess) -> Iterator[Wire]:
    with shared.connect() as connection:
        yield connection


def raw(wire: Wire, line: bytes) -> bytes:
    """Send one line; return the reply's bytes."""
    wire.send(line + b"\n")
    got = b""
    while not got.endswith(b"\n"):
        part = wire.socket.recv(65536)
        assert part, "closed"
        got += part
    return got


def test_a_reply_has_exactly_the_members_of_the_wire(wire: Wire) -> None:
    assert raw(wire, b'{"v":1,"id":"a","n":"ping"}') == b'{"v":1,"id":"a","e":null,"s":"end","m":"pong"}\n'


@pytest.mark.parametrize(
    ("given", "answered"),
    [
        ('"x"', '"x"'),
        ('""', '""'),
        ('"q\\"\\\\\\n\\u00e9"', '"q\\"\\\\\\n\\u00e9"'),
        ('"\N{SNOWMAN}"', '"\N{SNOWMAN}"'),
        ("7", '"7"'),
        ("-1.5", '"-1.5"'),
        ("12345678901234567890123", '"12345678901234567890123"'),
    ],
)
def test_ids_come_back_as_strings(wire: Wire, given: str, answered: str) -> None:
    reply = raw(wire, f'{{"v":1,"id":{given},"n":"ping"}}'.encode())
    assert reply == f'{{"v":1,"id":{answered},"e":null,"s":"end","m":"pong"}}\n'.encode()


@pytest.mark.parametrize("line", [b'{"v":1,"n":"ping"}', b'{"v":1,"id":null,"n":"ping"}'])
def test_no_id_is_answered_without_one(wire: Wire, line: bytes) -> None:
    assert raw(wire, line) == b'{"v":1,"e":null,"s":"end","m":"pong"}\n'


@pytest.mark.parametrize("id", [b"true", b"[1]", b"{}"])
def test_ids_of_other_kinds_are_refused(wire: Wire, id: bytes) -> None:
    reply = wire.ask(b'{"v":1,"id":%b,"n":"ping"}' % id)
    assert (reply["e"]["code"], reply["e"]["field"], "id" in reply) == ("bad_request", "id", False)
    assert wire.call("ping")["m"] == "pong"  # only that call is refused


@pytest.mark.parametrize(
    "line",
    [
        b'{"v":1,"id":"1","n":"echo"}',
        b'{"v":1,"id":"1","n":"echo","m":undefined}',
        b'{"v":1,"id":"1","m":undefined,"n":"echo"}',
        b'{"m":undefined,"v":1,"id":"1","n":"echo"}',
    ],
)
def test_no_argument_in_all_its_spellings(wire: Wire, line: bytes) -> None:
    assert raw(wire, line) == b'{"v":1,"id":"1","e":null,"s":"end"}\n'


def test_undefined_as_text_is_text(wire: Wire) -> None:
    for text in ('"m":undefined', 'a,"m":undefined,b'):
        assert wire.call("echo", text)["m"] == text


@pytest.mark.parametrize(
    "value",
    [
        "null",
        "true",
        "0",
        "-0.0",
        "1e300",
        '""',
        '"\\u0000"',
        "[]",
        "{}",
        '{"a":[1,{"b":null}]}',
        '"auth"',
        ' { "kept" :\t[ 1 , 2 ] } ',
        '{"a":1,"a":2}',
        "123456789012345678901234567890",
        '{"auth":1}',
    ],
)
def test_echo_returns_json_as_it_came(wire: Wire, value: str) -> None:
    reply = raw(wire, f'{{"v":1,"id":"1","n":"echo","m":{value}}}'.encode())
    assert reply == f'{{"v":1,"id":"1","e":null,"s":"end","m":{value.strip()}}}\n'.encode()


@pytest.mark.parametrize("blob", [b"\0", b"abc", bytes(range(256)), b"\xff" * 100_000])
def test_echo_returns_binary_as_it_came(wire: Wire, blob: bytes) -> None:
    text = b64encode(blob)
    reply = raw(wire, b'{"v":1,"b":%d,"id":"1","n":"echo","b":"%b"}' % (len(text), text))
    assert reply == b'{"v":1,"b":%d,"id":"1","e":null,"s":"end","b":"%b"}\n' % (len(text), text)


@pytest.mark.parametrize("b", ["3", '"***"', '"YQ"'])
def test_binary_that_is_none_is_refused(wire: Wire, b: str) -> None:
    reply = wire.ask(f'{{"v":1,"id":"1","n":"echo","b":{b}}}'.encode())
    assert (reply["id"], reply["e"]["code"], reply["e"]["field"]) == ("1", "bad_request", "b")


def test_an_unknown_call_is_answered_as_npm_does(wire: Wire) -> None:
    reply = wire.call("nosuch")
    assert reply == {
        "v": 1,
        "id": "1",
        "e": {"_isError__": True, "message": "nosuch: no handler", "code": "unsupported"},
        "s": "end",
    }


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"v":1,"id":"1"}', "`n`"),
        (b'{"v":1,"id":"1","n":7}', "$.n"),
        (b'{"v":2,"id":"1","n":"ping"}', "version 2"),
        (b'{"v":"1","id":"1","n":"ping"}', "$.v"),
        (b'{"v":true,"id":"1","n":"ping"}', "$.v"),
        (b'{"v":1,"id":"1","n":"ping","b":[]}', "$.b"),
        (b"[]", "object"),
        (b"7", "object"),
        (b"null", "object"),
    ],
)
def test_json_that_is_no_call_is_refused_and_the_next_is_served(wire: Wire, line: bytes, text: str) -> None:
    reply = wire.ask(line)
    assert reply["e"]["code"] == "bad_request"
    assert text in reply["e"]["message"]
    assert reply.get("id") == ("1" if b'"id"' in line else None)
    assert wire.call("ping")["m"] == "pong"


def test_members_nobody_knows_and_any_order_are_fine(wire: Wire) -> None:
    assert wire.ask(b'{"x":[1],"n":"ping","s":"ok","id":"9","v":1,"e":null}')["m"] == "pong"
    assert wire.ask(b'{"n":"ping"}')["m"] == "pong"


def test_calls_on_one_connection_run_in_the_order_sent(wire: Wire) -> None:
    wire.send(b"".join(b'{"v":1,"id":"%d","n":"echo","m":%d}\n' % (n, n) for n in range(5000)))
    assert [wire.line()["m"] for _ in range(5000)] == list(range(5000))


def test_errors_have_the_form_npm_makes_errors_of(wire: Wire) -> None:
    reply = wire.call("insert", [{"type": "x"}, {"type": "x", "prio": "top"}])
    error = reply["e"]
    assert reply.keys() == {"v", "id", "e", "s"} and reply["s"] == "end"
    assert error.keys() == {"_isError__", "message", "code", "field", "index"}
    assert (error["_isError__"], error["code"], error["field"], error["index"]) == (
        True,
        "bad_request",
        "prio",
        1,
    )


def test_unix_socket_speaks_the_same(shared: ServerProcess) -> None:
    import socket

    path = shared.data / "kqs.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(60)
        peer.connect(str(path))
        peer.sendall(b'{"v":1,"id":"u","n":"ping"}\n')
        reply: dict[str, Any] = json.loads(peer.recv(4096))
    assert reply == {"v": 1, "id": "u", "e": None, "s": "end", "m": "pong"}
