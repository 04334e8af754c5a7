"""What comes in and is unusual or bad: each line is taken for what it is, or refused with a typed error."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core import wire
from kqs.core.wire import BadLine, Request
from kqs.errors import BadRequest

DEEP = 100_000


def read(line: bytes) -> tuple[str, bytes, bytes]:
    """(name, the reply's id part, m) of one line."""
    request = wire.decode_request(line)
    return request.n, wire.reply_id(request.id), bytes(request.m)


# -- taken ---------------------------------------------------------------------------------------

CALL = ("x", b'"id":"1",', b"")


@pytest.mark.parametrize(
    "line",
    [
        b'{"v":1,"id":"1","n":"x"}',
        b'{"id":"1","n":"x"}',  # no v
        b'{"n":"x","id":"1","v":1}',
        b' {"v": 1 , "id": "1" , "n": "x"}\t',
        b'{"v":1,"id":"1","n":"x"}\r',
        b'{"v":1,"id":"1","n":"x"}\r\n',
        b'{"v":1,"id":"1","n":"x","new":{"n":"y","list":[1,{}]}}',
        b'{"v":1,"id":"2","id":"1","n":"y","n":"x"}',  # duplicate keys: the last wins
        b'{"v":2,"id":"1","n":"x","v":1}',
        b'{"\\u0076":1,"id":"1","\\u006e":"x"}',
        b'{"v":1,"id":"1","n":"x","m":undefined}',
        b'{"v":1,"m":undefined,"id":"1","n":"x"}',
        b'{"m":undefined,"v":1,"id":"1","n":"x"}',
        b'{"v":1,"id":"1","n":"x" , "m":undefined }',
        b'{"v":1,"id":"1","n":"x","m":5,"m":undefined}',
    ],
)
def test_a_call_without_an_argument(line: bytes) -> None:
    assert read(line) == CALL


@pytest.mark.parametrize(
    "value",
    [
        b"null",
        b"false",
        b"0",
        b'""',
        b"-0.0",
        b"1e999",  # JSON; what it means is up to its reader
        b"9" * 400,
        b"[ 1 ,\t2 ]",
        b'{"b":1,"b":2}',
        b'"\\ud83d\\ude00"',
        b'"\\u0000"',
        b'"\xe2\x80\xa8"',
        b'"\x7f"',
        b'"\\"m\\":undefined"',
        b'{"x":"\\"m\\":undefined,"}',
        b'"undefined"',
    ],
)
def test_an_argument_stays_the_bytes_that_came(value: bytes) -> None:
    line = b'{"v":1,"id":"1","n":"x","m":%b}' % value
    assert read(line) == (*CALL[:2], value)
    assert bytes(wire.decode_requests(line + b"\n")[0].m) == value


@pytest.mark.parametrize(
    "text", [b"undefined", b'\\"m\\":undefined', b',\\"m\\":undefined,', b'\\\\\\"m\\":undefined']
)
def test_undefined_inside_a_string_is_left_alone(text: bytes) -> None:
    """The literal is taken out; text that looks like it is data."""
    other = b'"other":"%b","id":"%b","n":"x"' % (text, text)
    for line in (
        b'{"v":1,%b,"m":undefined}' % other,
        b'{"v":1,"m":undefined,%b}' % other,
    ):
        assert read(line) == ("x", b'"id":"%b",' % text, b"")
    assert read(b'{"v":1,"id":"1","n":"x","m":"%b"}' % text) == (*CALL[:2], b'"%b"' % text)


# -- refused -------------------------------------------------------------------------------------

#: Not JSON: answered once without an id, then the connection is closed.
NOT_JSON = [
    b"quit",
    b"{",
    b"}",
    b'{"v":1,"id":"1","n":"x"',
    b'{"v":1,"id":"1","n":"x"}}',
    b'{"v":1,"id":"1","n":"x"} {"v":1,"id":"2","n":"x"}',
    b"{'v':1,'n':'x'}",
    b"{v:1,n:1}",
    b'{"v":1,"id":"1","n":"x"}//',
    b'{"v":1,"id":"1","n":"x","m":NaN}',
    b'{"v":1,"id":"1","n":"x","m":Infinity}',
    b'{"v":1,"id":"1","n":"x","m":-Infinity}',
    b'{"v":1,"id":"1","n":"x","m":[1,]}',
    b'{"v":1,"id":"1","n":"x","m":01}',
    b'{"v":1,"id":"1","n":"x","m":tru}',
    b'{"v":1,"id":"1","n":"x","m":}',
    b'{"v":1,"id":"1","n":"x","m":"\x01"}',
    b'{"v":1,"id":"1","n":"x","m":"\\x"}',
    b'{"v":1,"id":"a\tb","n":"x"}',
    b'{"v":1,"id":"\\u00zz","n":"x"}',
    b'{"v":1,"id":"1","n":"x","m": undefined}',
    b'{"v":1,"id":"1","n":"x","m":undefinedx}',
    b'{"v":1,"id":"1","n":"x","m":{"m":undefined}}',
    b'{"v":1,"id":"1","n":"x","m":[{"a":1,"m":undefined}]}',
    b'{"v":1,"id":"1","n":"x","other":{"m":undefined}}',
    b'{"v":1,"id":"1","n":"x","other":undefined}',
    b"undefined",
    b"\x00",
    b'{"v":1,"id":"1","n":"x"}\x00',
    b'{"v":1,"id":"1",\x00"n":"x"}',
    b'\xef\xbb\xbf{"v":1,"id":"1","n":"x"}',
]
NOT_UTF8 = [
    b'{"v":1,"id":"1","n":"x\xff"}',
    b'{"v":1,"id":"\xc3","n":"x"}',
    b'{"v":1,"id":"1","n":"x","m":"\xc0\xaf"}',
    b'{"v":1,"id":"1","n":"x","m":"\xed\xa0\x80"}',
    b'{"v":1,"id":"1","n":"x","m":"\xf4\x90\x80\x80"}',
    b"\xff\xfe",
]
TOO_DEEP = [
    b'{"v":1,"id":"1","n":"x","m":%b%b}' % (b"[" * DEEP, b"]" * DEEP),
    b'{"v":1,"id":"1","n":"x","m":%b1%b}' % (b'{"a":' * DEEP, b"}" * DEEP),
    b'{"v":1,"id":"1","n":"x","m":%b' % (b"[" * DEEP),
    b'{"v":1,"other":%b%b,"n":"x"}' % (b"[" * DEEP, b"]" * DEEP),
    b'{"v":1,"id":%b%b,"n":"x"}' % (b"[" * DEEP, b"]" * DEEP),
]


def _refused_alike(line: bytes) -> bool:
    """Whether the block that holds the line sends its reader to the line by line way."""
    try:
        wire.decode_requests(line + b"\n")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadRequest):
        return True
    return False


@pytest.mark.parametrize("line", NOT_JSON)
def test_not_json(line: bytes) -> None:
    with pytest.raises(BadLine, match="not JSON") as caught:
        wire.decode_request(line)
    assert caught.value.code == "bad_request"
    assert _refused_alike(line)


@pytest.mark.parametrize("line", NOT_UTF8)
def test_not_utf8(line: bytes) -> None:
    with pytest.raises(BadLine, match=r"not UTF-8: .* at byte"):
        wire.decode_request(line)
    assert _refused_alike(line)


@pytest.mark.parametrize("line", TOO_DEEP, ids=["list", "object", "unclosed", "unknown", "id"])
def test_nested_too_deep(line: bytes) -> None:
    with pytest.raises(BadLine, match="nested too deep"):
        wire.decode_request(line)
    assert wire.salvage_id(line) == b""
    assert _refused_alike(line)


#: JSON, but no call: answered to its id where it has one, and the connection goes on.
NO_CALL: list[tuple[bytes, bytes, str]] = [
    (b'{"v":2,"id":"1","n":"x"}', b'"id":"1",', "version 2"),
    (b'{"v":0,"id":7,"n":"x"}', b'"id":"7",', "version 0"),
    (b'{"v":%b,"id":"1","n":"x"}' % (b"9" * 30), b'"id":"1",', "version 9+"),
    (b'{"v":true,"id":"1","n":"x"}', b'"id":"1",', "bool"),
    (b'{"v":"1","id":"1","n":"x"}', b'"id":"1",', "str"),
    (b'{"v":1.0,"id":"1","n":"x"}', b'"id":"1",', "float"),
    (b'{"v":null,"id":"1","n":"x"}', b'"id":"1",', "null"),
    (b'{"v":1,"id":"1"}', b'"id":"1",', "`n`"),
    (b'{"v":1,"n":1,"id":"1"}', b'"id":"1",', r"\$.n"),
    (b'{"v":1,"n":null,"id":"1"}', b'"id":"1",', r"\$.n"),
    (b'{"v":1,"id":"1","n":"x","b":true}', b'"id":"1",', r"\$.b"),
    (b'{"v":1,"id":"1","n":"x","b":["AA=="]}', b'"id":"1",', r"\$.b"),
    (b'{"v":1,"id":{},"n":1}', b"", r"\$.n"),
    (b"{}", b"", "`n`"),
    (b"[]", b"", "object"),
    (b"1", b"", "object"),
    (b"null", b"", "object"),
    (b'"x"', b"", "object"),
    (b"[[]]", b"", "object"),
]


@pytest.mark.parametrize(("line", "id_part", "says"), NO_CALL, ids=lambda case: str(case)[:40])
def test_json_that_is_no_call(line: bytes, id_part: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        wire.decode_request(line)
    assert not isinstance(caught.value, BadLine)
    assert wire.salvage_id(line) == id_part
    assert _refused_alike(line)


NO_JSON = [
    b'"m":undefined',
    b"[" * DEEP,
    b'{"v":"1","n":x}',
    b'{"v":true',
    b'{"v":1e999,"n":',
    b'{"v":%b' % (b"9" * 40),
]


@pytest.mark.parametrize("line", NO_JSON)
def test_what_is_neither_a_call_nor_json_ends_the_connection(line: bytes) -> None:
    with pytest.raises(BadLine, match="not JSON"):
        wire.decode_request(line)


@pytest.mark.parametrize("half", [b"\\ud800", b"\\uDBFFx", b"\\udc00", b"\\ud83d\\u0041", b"\\udc00\\ud800"])
def test_half_a_surrogate_pair_is_refused_but_is_json(half: bytes) -> None:
    """JavaScript writes one for a text cut in the middle of an emoji; only that call is refused."""
    for line in (
        b'{"v":1,"id":"1","n":"x","m":{"type":"t","data":"%b"}}' % half,
        b'{"v":1,"m":"%b","id":"1","n":"x"}' % half,
    ):
        with pytest.raises(BadRequest, match="surrogate") as caught:
            wire.decode_request(line)
        assert not isinstance(caught.value, BadLine)
        assert wire.salvage_id(line) == b'"id":"1",'
        assert _refused_alike(line)
    in_the_id = b'{"v":1,"id":"%b","n":"x"}' % half
    with pytest.raises(BadRequest, match="surrogate"):
        wire.decode_request(in_the_id)
    assert wire.salvage_id(in_the_id) == b""
    assert wire.salvage_id(b'{"v":1,"n":"%b","id":5}' % half) == b'"id":"5",'
    assert wire.salvage_id(b'{"v":1,"n":"%b","id":true}' % half) == b""
    for no_call in (b'{"v":"%b","id":"1","n":"x"}', b'{"v":1,"id":"1","%b":"x"}', b'["%b"]'):
        with pytest.raises(BadRequest, match="not a qrpc v1 call") as caught:
            wire.decode_request(no_call % half)
        assert not isinstance(caught.value, BadLine)
    with pytest.raises(BadLine, match="not JSON"):
        wire.decode_request(b'{"v":1,"n":"%b"' % half)


# -- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b" \t \n", b"\n\n\n"])
def test_blank_lines_are_passed_over(blank: bytes) -> None:
    line = b'{"v":1,"id":"1","n":"x"}\n'
    block = blank + line + blank + line
    assert [wire.decode_request(found).n for found in wire.lines(block)] == ["x", "x"]
    assert list(wire.lines(blank)) == []


def test_an_empty_block() -> None:
    assert wire.decode_requests(b"") == []


PIECES = st.sampled_from(
    [
        b'{"v":1,"id":"1","n":"x"}',
        b'{"v":1,"n":"y","m":[1,{"a":"b"}]}',
        b'{"v":1,\n"n":"z"}',
        b'{"n":"x"}{"n":"y"}',
        b'{"n":"x"} {"n":"y"}',
        b'{"v":2,"n":"x"}',
        b'{"n":"x","m":undefined}',
        b'{"n":"\xff"}',
        b'{"n":"\xc3\xa9"}',
        b"[]",
        b"x",
        b"",
        b"\r",
        b'{"n":"x"}\r',
    ]
)


def _same(one: Request, other: Request) -> bool:
    return [bytes(x) if isinstance(x, msgspec.Raw) else x for x in msgspec.structs.astuple(one)] == [
        bytes(x) if isinstance(x, msgspec.Raw) else x for x in msgspec.structs.astuple(other)
    ]


@given(pieces=st.lists(PIECES, max_size=4), ended=st.booleans())
def test_a_block_means_what_its_lines_mean(pieces: list[bytes], ended: bool) -> None:
    """However lines came to lie in blocks, the same calls are made: one line is one message."""
    block = b"\n".join(pieces) + (b"\n" if ended else b"")
    try:
        together = wire.decode_requests(block)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadRequest):
        return
    apart = [wire.decode_request(line) for line in wire.lines(block)]
    assert len(together) == len(apart)
    assert all(map(_same, together, apart))


@pytest.mark.parametrize("before", [b"", b'{"v":1,"n":"x"}\n', b"\n", b'{"v":1,\n"n":"x"}\n'])
def test_two_messages_on_a_line_are_not_json(before: bytes) -> None:
    assert _refused_alike(before + b'{"v":1,"n":"x"} {"v":1,"n":"y"}')
    assert _refused_alike(before + b'{"v":1,"n":"x"}{"v":1,"n":"y"}')


def test_a_block_of_good_lines_is_taken_at_once() -> None:
    block = b'{"v":1,"id":"1","n":"x"}\n' * 1000
    assert len(wire.decode_requests(block)) == 1000
