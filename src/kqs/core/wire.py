"""The qrpc v1 wire, sans I/O: bytes in, requests or replies out.

One message is one line of JSON. The format is that of the npm package ``qrpc`` 1.1.6 (its
``lib/qrpc-message.js`` is the only specification there is); docs/reference/wire.md describes it.

Two properties shape this module:

* a request's ``m`` and ``id`` stay raw bytes (``msgspec.Raw``), so that a job's data reaches the journal
  and an id reaches the reply without being decoded and encoded again;
* a whole block of lines is decoded by one call. Only when that fails is the block taken line by line, to
  find the bad one and to say what is wrong with it.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from ..errors import BadRequest, CallError, ProtocolError, TooLarge, from_wire

#: Longest line taken, in bytes: 10 MiB of binary is 13.4 MiB of base64.
MAX_LINE = 16 * 1024 * 1024

_UNDEFINED = b'"m":undefined'
#: Read in its place: as long, and a number no encoder writes so, to be known again in the call's ``m``.
_STAND_IN = b'"m":-0.00e-00'
#: An escape that is one half of a surrogate pair, without the other.
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_REPLACED = rb"\ufffd"
_FOREIGN = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH|PRI) |\x16\x03[\x00-\x04]", re.ASCII
)


class BadLine(BadRequest):
    """A line that is no JSON at all: it is answered once and the connection closed."""


class Request(Struct, gc=False):
    """One call as it came, envelope checked, argument untouched.

    Attributes:
        n: the call's name.
        id: raw JSON of the caller's id; empty when it gave none.
        m: raw JSON of the argument; empty when there is none.
        b: base64 text of a binary argument, or None.
        v: protocol version, always 1.
    """

    n: str
    id: Raw = Raw(b"")
    m: Raw = Raw(b"")
    b: str | int | None = None
    v: int = 1


class Reply(Struct, gc=False):
    """One reply line as a client gets it.

    Attributes:
        id: the id of the call it answers.
        e: raw JSON of the error, empty or ``null`` when there is none.
        s: ``ok`` (more to come), ``end`` or absent (the last one), ``err`` (a server error, the last one).
        m: raw JSON of the value, empty when there is none.
        b: base64 text of a binary value, or None.
    """

    id: str | int | float | None = None
    e: Raw = Raw(b"")
    s: str | None = None
    m: Raw = Raw(b"")
    b: str | int | None = None

    @property
    def last(self) -> bool:
        """Whether no further reply to this call follows."""
        return self.s != "ok"

    def check(self) -> None:
        """Raises the call's error (CallError) if the reply is one."""
        if self.e and bytes(self.e) != b"null":
            raise from_wire(_read("e", self.e))

    def value(self) -> Any:
        """The decoded value (``bytes`` for a binary one); raises the call's error if it is one.

        Raises:
            CallError: the server refused the call.
            ProtocolError: the value cannot be read: not base64, or a number out of range.
        """
        self.check()
        if isinstance(self.b, str):
            try:
                return b64decode(self.b, validate=True)
            except ValueError as error:
                raise ProtocolError(f"reply's b is not base64: {error}") from None
        return _read("m", self.m) if self.m else None


def _read(name: str, raw: Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(f"reply's {name} cannot be read: {error}") from None


_encode = msgspec.json.Encoder().encode
#: The bytes of a raw value, in half the time ``bytes()`` takes.
copy_raw: Final[Callable[[Raw], bytes]] = _encode

_requests = msgspec.json.Decoder(Request)
_replies = msgspec.json.Decoder(Reply)


def looks_foreign(start: bytes) -> bool:
    """Whether a connection's first bytes are HTTP or a TLS handshake: such a peer is cut off unanswered.

    Args:
        start: what came first, at least 8 bytes or a whole line.
    """
    return _FOREIGN.match(start) is not None


class LineReader:
    """Cuts a byte stream into blocks of whole lines.

    Feeding costs O(bytes) however the stream is cut, in time and in memory: the unfinished tail is one
    growing buffer, copied once when its newline comes.

    Attributes:
        max_line: longest line taken, bytes.
        broken: a line was over the limit; the stream can't be read on, and what follows is dropped.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self.max_line = max_line
        self._tail = bytearray()
        self.broken = False

    @property
    def pending(self) -> int:
        """Bytes of the unfinished line held here."""
        return len(self._tail)

    def feed(self, data: bytes) -> bytes:
        """Take bytes; return all lines finished by them, newlines included (``b""`` when none is).

        Raises:
            TooLarge: a line is over the limit, and none before it is left to return (see ``broken``).
        """
        if self.broken:
            raise self.too_long()
        tail = self._tail
        cut = data.rfind(b"\n") + 1
        if cut == 0:
            tail += data
            block = b""
        elif tail:
            tail += memoryview(data)[:cut]
            block = bytes(tail)
            tail.clear()
            tail += memoryview(data)[cut:]
        elif cut == len(data):
            block = data
        else:
            block = data[:cut]
            tail += memoryview(data)[cut:]
        if len(block) > self.max_line or len(tail) > self.max_line:
            block = self._short_lines(block)
        return block

    def _short_lines(self, block: bytes) -> bytes:
        """The lines before the first one that is over the limit."""
        start = 0
        while start < len(block):
            end = block.index(b"\n", start)
            if end - start > self.max_line:
                break
            start = end + 1
        self.broken = start < len(block) or len(self._tail) > self.max_line
        if self.broken:
            self._tail.clear()
            if start == 0:
                raise self.too_long()
        return block[:start]

    def finish(self) -> bytes:
        """What is left when the stream ends: a last line without its newline, or ``b""``."""
        rest = bytes(self._tail)
        self._tail.clear()
        return rest

    def too_long(self) -> TooLarge:
        return TooLarge(f"line is longer than {self.max_line} bytes; send less per call", limit=self.max_line)


def check_text(block: bytes) -> None:
    """Refuse what is not UTF-8: msgspec does not look into raw values, and nothing else may pass.

    Raises:
        UnicodeDecodeError: it is not.
    """
    if not block.isascii():
        str(block, "utf-8")


def decode_requests(block: bytes) -> list[Request]:
    """All requests of a block of lines, at once.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadRequest: some line is unusual or bad;
            take the lines one by one with :func:`decode_request` to learn which.
    """
    check_text(block)
    requests = _requests.decode_lines(block)
    if block and len(requests) != block.count(b"\n") + (not block.endswith(b"\n")):
        # To msgspec a newline is as good as a space: here a line is one message, however blocks are cut.
        raise BadRequest("a line that is blank, or not one message")
    for request in requests:
        if request.v != 1:
            raise BadRequest("v")
    return requests


def decode_request(line: bytes) -> Request:
    """One request from one line.

    Raises:
        BadLine: not JSON, invalid UTF-8, nested too deep.
        BadRequest: JSON, but not a qrpc v1 call; :func:`salvage_id` may still find whom to answer.
    """
    try:
        check_text(line)
        try:
            request = _requests.decode(line)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            javascript = _decode_javascript(line)
            if javascript is None:
                raise
            request = javascript
    except UnicodeDecodeError as error:
        raise BadLine(f"line is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise BadLine("line is nested too deep") from None
    except msgspec.ValidationError as error:
        _check_json(line)
        raise BadRequest(f"not a qrpc v1 call: {error}") from None
    except msgspec.DecodeError as error:
        raise BadLine(f"line is not JSON: {error}") from None
    if request.v != 1:
        raise BadRequest(f"version {request.v} is not spoken here, only 1", field="v")
    return request


def _mended(line: bytes) -> tuple[bytes, int]:
    """The line as long as it was and readable, and how many halves of surrogate pairs were replaced in it."""
    return _HALF.subn(lambda _match: _REPLACED, line.replace(_UNDEFINED, _STAND_IN, 1))


def _decode_javascript(line: bytes) -> Request | None:
    """A call that JavaScript may write and JSON readers refuse, or None when the line is no such call.

    The literal ``"m":undefined`` of a client without an argument is taken as that; inside the argument it is
    not JSON. Half a surrogate pair, from a text cut inside a character, is JSON by its grammar: the call is
    refused, but the connection has done nothing wrong.

    Raises:
        BadRequest, msgspec.ValidationError: JSON, but not a call that can be taken.
    """
    mended, halves = _mended(line)
    try:
        request = _requests.decode(mended)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return None
    stand_in = _STAND_IN.removeprefix(b'"m":')
    if _UNDEFINED in line:
        if bytes(request.m) != stand_in:
            return None
        request.m = Raw(b"")
    if halves:
        raise BadRequest("a string has half a surrogate pair (\\ud800 .. \\udfff), which is no character")
    return request


def _check_json(line: bytes) -> None:
    """Of a line that is no call: is it JSON at least?

    Raises:
        BadLine: it is not.
    """
    try:
        msgspec.json.decode(line)
    except msgspec.ValidationError:
        pass  # a number out of range
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine(f"line is not JSON: {error}") from None


class _IdOnly(Struct):
    id: Raw = Raw(b"")


def salvage_id(line: bytes) -> bytes:
    """The ``"id":..,`` part for the error reply to a bad call; empty when it has no usable id."""
    try:
        id_part = reply_id(msgspec.json.decode(_mended(line)[0], type=_IdOnly).id)
    except (msgspec.MsgspecError, BadRequest, RecursionError):
        return b""
    return b"" if _REPLACED in id_part else id_part


def request_blob(request: Request) -> bytes | None:
    """The binary argument of a request, or None when it has none.

    Raises:
        BadRequest: ``b`` is not base64.
    """
    if request.b is None:
        return None
    if isinstance(request.b, int):
        raise BadRequest("b gives a length but no binary follows as the last field", field="b")
    try:
        return b64decode(request.b, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"b is not base64: {error}", field="b") from None


def reply_id(raw: Raw) -> bytes:
    """The reply's ``"id":..,`` part for a request's raw id: numbers come back as strings, none as nothing.

    Raises:
        BadRequest: the id is neither a string nor a number.
    """
    text = copy_raw(raw)
    first = text[:1]
    if first == b'"':
        return b'"id":' + text + b","
    if text in (b"", b"null"):
        return b""
    if first in b"-0123456789":
        return b'"id":"' + text + b'",'
    raise BadRequest("id must be a string or a number", field="id")


def string_ids(ids: Iterable[str]) -> list[bytes]:
    """:func:`reply_id` for ids known to be strings."""
    return [b'"id":%b,' % _encode(id) for id in ids]


def encode_reply(id_part: bytes, value: bytes) -> bytes:
    """The last (and mostly only) reply: ``value`` is the JSON of ``m``."""
    return b'{"v":1,%b"e":null,"s":"end","m":%b}\n' % (id_part, value)


def encode_empty_reply(id_part: bytes) -> bytes:
    """A last reply without a value, JavaScript's ``undefined``; its ``e`` makes npm's client call back."""
    return b'{"v":1,%b"e":null,"s":"end"}\n' % id_part


def encode_blob_reply(id_part: bytes, blob: bytes) -> bytes:
    """A last reply whose value is binary."""
    text = b64encode(blob)
    return b'{"v":1,"b":%d,%b"e":null,"s":"end","b":"%b"}\n' % (len(text), id_part, text)


def encode_part(id_part: bytes, value: bytes) -> bytes:
    """One of several replies to one call; :func:`encode_end` closes the series."""
    return b'{"v":1,%b"s":"ok","m":%b}\n' % (id_part, value)


def encode_end(id_part: bytes) -> bytes:
    """The end of a series of replies: without ``e`` and ``m``, so that npm's client calls nobody back."""
    return b'{"v":1,%b"s":"end"}\n' % id_part


def encode_error(id_part: bytes, error: CallError) -> bytes:
    """An error reply, in the form npm's client turns into an ``Error``."""
    body = msgspec.json.encode({"_isError__": True, **error.to_wire()})
    return b'{"v":1,%b"e":%b,"s":"end"}\n' % (id_part, body)


def encode_request(id: str, name: str, argument: bytes = b"", blob: bytes | None = None) -> bytes:
    """A call as a client sends it.

    Args:
        id: the caller's tag for the replies.
        name: the call's name.
        argument: JSON of ``m``; ``b""`` for none.
        blob: binary argument, sent base64 as the last field.
    """
    head = b'"id":%b,"n":%b' % (msgspec.json.encode(id), msgspec.json.encode(name))
    if argument:
        head += b',"m":' + argument
    if blob is None:
        return b'{"v":1,%b}\n' % head
    text = b64encode(blob)
    return b'{"v":1,"b":%d,%b,"b":"%b"}\n' % (len(text), head, text)


def decode_replies(block: bytes) -> list[Reply]:
    """All replies of a block of lines.

    Raises:
        ProtocolError: a line is not a qrpc v1 reply.
    """
    try:
        return _replies.decode_lines(block)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the server's reply is not qrpc v1: {error}") from None


def lines(block: bytes) -> Iterator[bytes]:
    """The lines of a block that are not blank."""
    for line in block.split(b"\n"):
        if line and not line.isspace():
            yield line
