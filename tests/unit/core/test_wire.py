"""The qrpc v1 codec: one table drives encoder and decoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from kqs.core import wire
from kqs.core.wire import LineReader, Reply, Request
from kqs.errors import BadRequest, Busy, Internal, ProtocolError, TooLarge, UnknownField

from . import qrpc


class Call(NamedTuple):
    """A request, as a client's encoder is given it and as the line it makes."""

    id: str
    name: str
    argument: bytes
    blob: bytes | None
    line: bytes


CALLS = [
    Call("1", "ping", b"", None, b'{"v":1,"id":"1","n":"ping"}\n'),
    Call("a0", "echo", b"null", None, b'{"v":1,"id":"a0","n":"echo","m":null}\n'),
    Call("z", "echo", b'[1, 2.50,"x"]', None, b'{"v":1,"id":"z","n":"echo","m":[1, 2.50,"x"]}\n'),
    Call('"\\', "n\u00e9", b'"\xc3\xa9"', None, b'{"v":1,"id":"\\"\\\\","n":"n\xc3\xa9","m":"\xc3\xa9"}\n'),
    Call("b", "echo", b"", b"\x00\xff", b'{"v":1,"b":4,"id":"b","n":"echo","b":"AP8="}\n'),
    Call("0", "echo", b"", b"", b'{"v":1,"b":0,"id":"0","n":"echo","b":""}\n'),
    Call(
        "mb",
        "insert",
        b'{"type":"t"}',
        b"abc",
        b'{"v":1,"b":4,"id":"mb","n":"insert","m":{"type":"t"},"b":"YWJj"}\n',
    ),
    Call("u", "echo", b'"\\"m\\":undefined"', None, b'{"v":1,"id":"u","n":"echo","m":"\\"m\\":undefined"}\n'),
]
STREAM = b"".join(call.line for call in CALLS)

ID = b'"id":"7",'
#: Replies: the line an encoder makes of its arguments, and what a client reads in it.
REPLIES: list[tuple[bytes, bytes, bool, Any]] = [
    (wire.encode_reply(ID, b'{"a":1}'), b'{"v":1,"id":"7","e":null,"s":"end","m":{"a":1}}\n', True, {"a": 1}),
    (wire.encode_reply(ID, b"null"), b'{"v":1,"id":"7","e":null,"s":"end","m":null}\n', True, None),
    (wire.encode_reply(b"", b"1"), b'{"v":1,"e":null,"s":"end","m":1}\n', True, 1),
    (wire.encode_empty_reply(ID), b'{"v":1,"id":"7","e":null,"s":"end"}\n', True, None),
    (wire.encode_part(ID, b"[1]"), b'{"v":1,"id":"7","s":"ok","m":[1]}\n', False, [1]),
    (wire.encode_end(ID), b'{"v":1,"id":"7","s":"end"}\n', True, None),
    (
        wire.encode_blob_reply(ID, b"\x00\xff\xfe"),
        b'{"v":1,"b":4,"id":"7","e":null,"s":"end","b":"AP/+"}\n',
        True,
        b"\x00\xff\xfe",
    ),
    (wire.encode_blob_reply(b"", b""), b'{"v":1,"b":0,"e":null,"s":"end","b":""}\n', True, b""),
]
REPLY_STREAM = b"".join(line for _made, line, _last, _value in REPLIES)


def chunkings(stream: bytes) -> Iterator[list[bytes]]:
    """The stream whole, byte by byte, and cut in two at every place."""
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    for at in range(1, len(stream)):
        yield [stream[:at], stream[at:]]


def blocks(chunks: list[bytes], reader: LineReader | None = None) -> list[bytes]:
    reader = reader or LineReader()
    return [block for chunk in chunks if (block := reader.feed(chunk))]


def fields(request: Request) -> tuple[bytes, str, bytes, bytes | None]:
    return bytes(request.id), request.n, bytes(request.m), wire.request_blob(request)


# -- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.id)
def test_request_both_ways(call: Call) -> None:
    assert wire.encode_request(call.id, call.name, call.argument, call.blob) == call.line
    for request in (wire.decode_request(call.line), *wire.decode_requests(call.line)):
        id, name, argument, blob = fields(request)
        assert (json.loads(id), name, argument, blob) == (call.id, call.name, call.argument, call.blob)
        assert request.v == 1


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.id)
def test_request_is_read_alike_by_npm(call: Call) -> None:
    members = qrpc.decode(call.line)
    assert (members["v"], members["id"], members["n"]) == (1, call.id, call.name)
    assert members.get("b") == (call.blob or None)
    assert ("m" in members) is bool(call.argument)
    if call.argument:
        assert members["m"] == json.loads(call.argument)


def test_requests_however_the_stream_is_cut() -> None:
    whole = [fields(request) for request in wire.decode_requests(STREAM)]
    assert len(whole) == len(CALLS)
    for chunks in chunkings(STREAM):
        for tail in (b"", b'{"v":1,"id":"tail'):
            reader = LineReader()
            found = [
                fields(request)
                for block in blocks([*chunks, tail] if tail else chunks, reader)
                for request in wire.decode_requests(block)
            ]
            assert found == whole
            assert reader.pending == len(tail)
            assert reader.finish() == tail


@given(
    name=st.text(st.characters(exclude_categories=["Cs"])),
    id=st.text(st.characters(exclude_categories=["Cs"])),
    argument=st.none()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ).map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")),
    blob=st.none() | st.binary(max_size=64),
)
def test_any_request_round_trips(name: str, id: str, argument: bytes | None, blob: bytes | None) -> None:
    line = wire.encode_request(id, name, argument or b"", blob)
    request = wire.decode_request(line)
    assert fields(request) == (msgspec.json.encode(id), name, argument or b"", blob)
    members = qrpc.decode(line)
    assert (members["n"], members["id"], members.get("b")) == (name, id, blob or None)


# -- the parts of a request ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_id", "part"),
    [
        (b'"abc"', b'"id":"abc",'),
        (b'"a\\u00e9\\""', b'"id":"a\\u00e9\\"",'),
        (b'""', b'"id":"",'),
        (b"7", b'"id":"7",'),
        (b"-0.5", b'"id":"-0.5",'),
        (b"1e999", b'"id":"1e999",'),
        (b"123456789012345678901234567890", b'"id":"123456789012345678901234567890",'),
        (b"null", b""),
        (None, b""),
    ],
)
def test_id_is_echoed_as_a_string(given_id: bytes | None, part: bytes) -> None:
    member = b"" if given_id is None else b'"id": %b ,' % given_id
    line = b'{"v":1,%b"n":"ping"}' % member
    assert wire.reply_id(wire.decode_request(line).id) == part
    assert wire.salvage_id(line) == part
    reply = wire.decode_replies(wire.encode_reply(part, b"1"))[0]
    assert reply.id == (json.loads(b"{%b}" % part[:-1])["id"] if part else None)


@pytest.mark.parametrize("bad", [b"true", b"false", b"{}", b"[1]", b'{"a":"b"}'])
def test_other_ids_are_refused(bad: bytes) -> None:
    line = b'{"v":1,"id":%b,"n":"ping"}' % bad
    with pytest.raises(BadRequest, match="string or a number") as caught:
        wire.reply_id(wire.decode_request(line).id)
    assert caught.value.field == "id"
    assert wire.salvage_id(line) == b""


@pytest.mark.parametrize(
    ("line", "blob"),
    [
        (b'{"v":1,"id":"1","n":"echo","b":"AAE="}', b"\x00\x01"),  # not framed, still understood
        (b'{"v":1,"b":4,"id":"1","n":"echo","b":"AAE="}', b"\x00\x01"),
        (b'{"v":1,"b":99,"id":"1","n":"echo","b":"AAE="}', b"\x00\x01"),
        (b'{"v":1,"id":"1","n":"echo","b":null}', None),
        (b'{"v":1,"id":"1","n":"echo"}', None),
    ],
)
def test_binary_argument(line: bytes, blob: bytes | None) -> None:
    assert wire.request_blob(wire.decode_request(line)) == blob


@pytest.mark.parametrize("text", [b"A", b"AAE", b"AA E=", b"AA-_", b"AAE=\\n", b"\xc3\xa9===", b"AAE=AAE="])
def test_binary_that_is_not_base64(text: bytes) -> None:
    request = wire.decode_request(b'{"v":1,"id":"1","n":"echo","b":"%b"}' % text)
    with pytest.raises(BadRequest, match="not base64") as caught:
        wire.request_blob(request)
    assert caught.value.field == "b"


def test_length_without_binary() -> None:
    request = wire.decode_request(b'{"v":1,"b":4,"id":"1","n":"echo"}')
    with pytest.raises(BadRequest, match="no binary follows") as caught:
        wire.request_blob(request)
    assert caught.value.field == "b"


# -- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "line", "last", "value"), REPLIES)
def test_reply_both_ways(made: bytes, line: bytes, last: bool, value: Any) -> None:
    assert made == line
    (reply,) = wire.decode_replies(line)
    assert (reply.last, reply.value()) == (last, value)
    assert reply.id == (None if b'"id"' not in line else "7")
    assert qrpc.decode(line)["v"] == 1


def test_replies_however_the_stream_is_cut() -> None:
    def read(chunks: list[bytes]) -> list[Any]:
        return [
            (reply.id, reply.last, reply.value())
            for block in blocks(chunks)
            for reply in wire.decode_replies(block)
        ]

    whole = read([REPLY_STREAM])
    assert len(whole) == len(REPLIES)
    for chunks in chunkings(REPLY_STREAM):
        assert read(chunks) == whole


@given(st.binary(max_size=200))
def test_any_binary_reply_is_framed_as_npm_looks_for_it(blob: bytes) -> None:
    line = wire.encode_blob_reply(ID, blob)
    assert qrpc.callbacks([line]) == [(None, blob or None)]
    assert wire.decode_replies(line)[0].value() == blob


@pytest.mark.parametrize("count", [0, 1, 3])
def test_npm_calls_back_once_a_part_and_not_for_the_end(count: int) -> None:
    lines = [wire.encode_part(ID, b"%d" % number) for number in range(count)]
    assert qrpc.callbacks([*lines, wire.encode_end(ID)]) == [(None, number) for number in range(count)]


@pytest.mark.parametrize("line", [wire.encode_reply(ID, b"5"), wire.encode_empty_reply(ID)])
def test_npm_calls_back_once_for_a_single_reply(line: bytes) -> None:
    assert len(qrpc.callbacks([line])) == 1


@pytest.mark.parametrize("status", [b"", b'"s":"end",', b'"s":"err",', b'"s":null,'])
def test_a_reply_without_ok_is_the_last(status: bytes) -> None:
    """npm's server leaves ``s`` out, or says ``err``."""
    (reply,) = wire.decode_replies(b'{"v":1,"id":"1",%b"e":null,"m":1}\n' % status)
    assert reply.last
    assert reply.value() == 1


def test_unknown_members_of_a_reply_are_passed_over() -> None:
    (reply,) = wire.decode_replies(b'{"v":1,"new":{"a":[1]},"id":3,"n":null,"s":"end","m":"x"}\n\n')
    assert (reply.id, reply.value()) == (3, "x")


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        Busy("later"),
        UnknownField("x", field="typ", index=3),
        TooLarge("x", limit=197),
        BadRequest('quote " and \u00e9', field="data"),
        BadRequest("first", index=0),
    ],
)
def test_error_both_ways(error: Any) -> None:
    line = wire.encode_error(ID, error)
    members = qrpc.decode(line)
    assert members["s"] == "end"
    assert members["e"]["_isError__"] is True
    assert members["e"]["message"] == error.message
    assert "m" not in members
    assert len(qrpc.callbacks([line])) == 1
    (reply,) = wire.decode_replies(line)
    assert reply.last
    with pytest.raises(type(error)) as caught:
        reply.value()
    assert caught.value.to_wire() == error.to_wire()


@pytest.mark.parametrize(
    ("e", "message"),
    [
        (b'{"_isError__":true,"message":"ping: no handler","stack":"at x"}', "ping: no handler"),
        (b'{"message":"x","code":"ENOENT"}', "x"),
        (b'{"message":"x","code":404}', "x"),
        (b'{"message":"x","code":["a"]}', "x"),
        (b'{"message":"x","code":{"a":1}}', "x"),
        (b'"plain text"', "plain text"),
        (b"false", "False"),
        (b"[1]", "[1]"),
    ],
)
def test_errors_of_another_server(e: bytes, message: str) -> None:
    (reply,) = wire.decode_replies(b'{"v":1,"id":"1","s":"end","e":%b}\n' % e)
    with pytest.raises(Internal) as caught:
        reply.value()
    assert caught.value.message == message


@pytest.mark.parametrize(
    "line",
    [b"x", b"[]", b'{"v":1,"id":true}', b'{"v":1,"s":1}', b'{"m":NaN}', b'{"b":"\xff"}', b"\xef\xbb\xbf{}"],
)
def test_a_line_that_is_no_reply(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="not qrpc v1"):
        wire.decode_replies(line + b"\n")


@pytest.mark.parametrize(
    "member",
    [b'"b":"AAA"', b'"b":"\xc3\xa9"', b'"m":1e999', b'"m":' + b"9" * 5000, b'"e":1e999'],
)
def test_a_value_that_cannot_be_read(member: bytes) -> None:
    (reply,) = wire.decode_replies(b'{"v":1,"id":"1","s":"end",%b}\n' % member)
    with pytest.raises(ProtocolError):
        reply.value()


def test_reply_is_last_unless_it_says_ok() -> None:
    assert not Reply(s="ok").last
    assert all(Reply(s=s, m=Raw(b"1")).last for s in ("end", "err", None, "other"))
