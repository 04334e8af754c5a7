"""Which replies a byte stream must get: docs/reference/wire.md once more, by Python's own JSON reader."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

#: How deep a value may be nested that every reader of JSON can bear.
DEPTH = 150
_FOREIGN = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH|PRI) |\x16\x03[\x00-\x04]")
_BRACKET = re.compile(rb"[\[\]{}]")
_HALF = re.compile(r"[\ud800-\udfff]")
ANY = object()
UNREADABLE = object()


class Expected(NamedTuple):
    """A reply.

    Attributes:
        id: the id it has, None for none, ``ANY`` when that is not known.
        must: whether it must come; else it may.
        jobs: how many jobs its call may insert.
    """

    id: Any
    must: bool
    jobs: int = 0


class _Number(str):
    """A number as it was written."""


def expected_replies(stream: bytes, limit: int) -> list[Expected]:
    """What is answered when the stream is sent, then closed on the sending side, and the replies are read.

    Args:
        stream: all that is sent.
        limit: longest line, bytes.
    """
    if _FOREIGN.match(stream):
        return []
    replies: list[Expected] = []
    must = True
    lines = stream.split(b"\n")
    for number, line in enumerate(lines):
        if len(line) > limit:
            return [*replies, Expected(None, must)]
        if not line.strip():
            continue
        call, certain = _read(line)
        if call is UNREADABLE and certain:
            # It is told once, then the connection ends; a line behind it that is too long may be told before.
            too_long = any(len(later) > limit for later in lines[number:])
            return [*replies, Expected(None, must), *([Expected(None, False)] if too_long else [])]
        replies.append(Expected(_id(call) if certain else ANY, must, _jobs(call, line)))
        must = must and certain
    return replies


def _read(line: bytes) -> tuple[Any, bool]:
    """The line's JSON or ``UNREADABLE``; and whether every reader must see it so."""
    if b'"m":undefined' in line:
        return UNREADABLE, False  # JavaScript's way to give no argument, or no JSON
    try:
        value = json.loads(line.decode(), parse_int=_Number, parse_float=_Number, parse_constant=_refuse)
    except RecursionError:
        return UNREADABLE, False
    except ValueError:
        value = UNREADABLE
    return value, _depth(line) < DEPTH


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _depth(line: bytes) -> int:
    """How deep it is nested, about: brackets in strings count too."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(line):
        depth = depth + 1 if bracket in b"[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _id(call: Any) -> Any:
    """The id of the reply to a line that is JSON."""
    if not isinstance(call, dict):
        return None
    id = call.get("id")
    if isinstance(id, _Number):
        return str(id)
    if isinstance(id, str):
        return ANY if _HALF.search(id) or "\ufffd" in id else id
    return None


def _jobs(call: Any, line: bytes) -> int:
    if call is UNREADABLE:
        return line.count(b"type")
    if not isinstance(call, dict) or call.get("n") != "insert":
        return 0
    argument = call.get("m")
    return len(argument) if isinstance(argument, list) else 1
