"""Hostile byte streams: valid calls, and what is made of them by somebody who knows JSON and the wire."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

BOM = b"\xef\xbb\xbf"
#: What is put into lines: pieces of JSON, of JavaScript, of other protocols, and what is in none of them.
TOKENS = [
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b" ",
        b"\t",
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\0",
        BOM,
    ),
    *(b"NaN", b"-Infinity", b"undefined", b'"m":undefined', b"null", b"true", b"1e999", b"-0", b"01", b"0x1"),
    *(
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xe2\x82",
        b"\\u0000",
        b"\\ud800",
        b"\\udc00\\ud800",
        b"\\x41",
    ),
    *(
        b'"id":1,',
        b'"id":{},',
        b'"v":2,',
        b'"n":"insert",',
        b'"b":"YQ==",',
        b'"__proto__":{},',
        b"//",
        b"/**/",
    ),
    *(
        b"\xe2\x80\xa8",
        "\N{SNOWMAN}".encode(),
        "\N{PILE OF POO}".encode(),
        b"\x1b[2J",
        b"\x7f",
        b"\x0b",
        b"\x0c",
    ),
]
#: Values in the place of a member's own, as JSON text.
VALUES = [
    *("null", "true", "false", "0", "-1", "1.0", "1.5", "1e999", "-1e-999", "9" * 400, "1" + "0" * 5000),
    *("18446744073709551616", "9007199254740993", "0.1e1", '""', '"\\u0000"', '"\\ud83d"', '"x"', "[]", "{}"),
    *("[null]", '{"a":{"b":[1,2,{}]}}', "[" * 50 + "]" * 50, '"%s"' % ("x" * 300), "[" + "{}," * 999 + "{}]"),
]
#: The same, and no JSON, or none that can be read.
NO_VALUES = [
    *("NaN", "Infinity", "undefined", "'x'", "01", "+1", ".5", "1.", "tru", '"\x01"'),
    *("[" * 900 + "]" * 900, '{"a":' * 9000 + "1" + "}" * 9000),
]
KEYS = [
    "id",
    "v",
    "n",
    "m",
    "b",
    "type",
    "data",
    "data64",
    "auth",
    "__proto__",
    "",
    "\0",
    "\N{SNOWMAN}",
    "k" * 300,
]


class Call(NamedTuple):
    """A call as somebody with good intentions makes it.

    Attributes:
        id: of the call.
        line: without its newline.
        value: what it is answered with; ``...`` when that depends.
    """

    id: str
    line: bytes
    value: Any


def _text(random: Random) -> str:
    return "".join(
        random.choice('abc \N{SNOWMAN}\\"\n\t\0\N{PILE OF POO}1') for _ in range(random.randrange(12))
    )


def _value(random: Random, depth: int = 3) -> Any:
    kind = random.randrange(7 if depth else 4)
    if kind < 4:
        return [None, random.randrange(-5, 1 << 40), random.random() < 0.5, _text(random)][kind]
    if kind < 6:
        return [_value(random, depth - 1) for _ in range(random.randrange(4))]
    return {_text(random): _value(random, depth - 1) for _ in range(random.randrange(4))}


def _job(random: Random) -> dict[str, Any]:
    job: dict[str, Any] = {"type": f"fuzz-{random.randrange(5)}", "data": _value(random)}
    if random.random() < 0.1:
        del job["data"]
        job["data64"] = base64.b64encode(random.randbytes(random.choice((0, 10, 5000)))).decode()
    more = {
        "prio": random.choice(("urgent", "high", "normal", "low", "bulk")),
        "delay": random.choice((0, 0.5, 1e6)),
        "ttr": random.choice((0.1, 30)),
        "key": f"key {random.randrange(200)}",
        "max_attempts": random.randrange(3),
        "retry": {"backoff": "fixed", "base": 1},
    }
    return job | {name: value for name, value in more.items() if random.random() < 0.2}


def _arguments(random: Random) -> dict[str, Callable[[], Any]]:
    receipts = [f"{random.randrange(99)}-1-{random.getrandbits(60):x}" for _ in range(3)]
    return {
        "ping": lambda: ...,
        "echo": lambda: _value(random),
        "insert": lambda: _job(random),
        "batch": lambda: [_job(random) for _ in range(random.randrange(1, 20))],
        "reserve": lambda: {
            "max": random.randrange(1, 4),
            "wait": random.choice((0, 0.01)),
            "types": ["fuzz-1"],
        },
        "settle": lambda: [{"receipt": receipt, "outcome": "ok"} for receipt in receipts],
        "renew": lambda: {"receipts": receipts},
        "job": lambda: {"id": f"{random.getrandbits(32):08x}-1", "data": True},
        "jobs": lambda: {"limit": 3, "state": random.choice(("ready", "delayed", "buried", "done"))},
        "stats": lambda: {"type": "fuzz-1"},
        "health": lambda: {},
        "auth": lambda: {"token": "x"},
        "no such call": lambda: None,
    }


def call(random: Random, id: str) -> Call:
    """Any valid call but ``quit``."""
    if random.random() < 0.05:
        blob = base64.b64encode(random.randbytes(random.randrange(1, 300)))
        line = b'{"v":1,"b":%d,"id":"%b","n":"echo","b":"%b"}' % (len(blob), id.encode(), blob)
        return Call(id, line, ...)
    arguments = _arguments(random)
    name = random.choice([*arguments, "insert", "insert", "ping", "echo"])
    argument = arguments[name]()
    envelope = {"v": 1, "id": id, "n": "insert" if name == "batch" else name}
    if argument is not ...:
        envelope["m"] = argument
    line = json.dumps(envelope, ensure_ascii=random.random() < 0.5, separators=(",", ":")).encode()
    return Call(id, line, {"ping": "pong", "echo": argument}.get(name, ...))


# -- what is done to a line ---------------------------------------------------------------------


def _place(random: Random, line: bytes) -> tuple[int, int]:
    """A range of the line, mostly short."""
    start = random.randrange(len(line) + 1)
    return start, min(len(line), start + random.choice((0, 1, 1, 2, 5, 20, 100)))


def flip_bits(random: Random, line: bytes) -> bytes:
    data = bytearray(line)
    for _ in range(random.choice((1, 1, 2, 8))):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def cut_off(random: Random, line: bytes) -> bytes:
    at = random.randrange(len(line) + 1)
    return line[:at] if random.random() < 0.5 else line[at:]


def remove(random: Random, line: bytes) -> bytes:
    start, end = _place(random, line)
    return line[:start] + line[end:]


def double(random: Random, line: bytes) -> bytes:
    start, end = _place(random, line)
    return line[:end] + line[start:end] * random.choice((1, 1, 2, 50)) + line[end:]


def put_in(random: Random, line: bytes) -> bytes:
    at = random.randrange(len(line) + 1)
    return line[:at] + random.choice(TOKENS) * random.choice((1, 1, 1, 30)) + line[at:]


def noise(random: Random, line: bytes) -> bytes:
    start, end = _place(random, line)
    return line[:start] + random.randbytes(random.choice((1, 4, 40))) + line[end:]


def splice(random: Random, line: bytes) -> bytes:
    other = call(random, "spliced").line
    return line[: random.randrange(len(line) + 1)] + other[random.randrange(len(other) + 1) :]


def swap_value(random: Random, line: bytes) -> bytes:
    """One member's value replaced, however deep it lies; the rest stays well formed."""

    def change(members: Members, at: int) -> Members:
        return [*members[:at], (members[at][0], _Raw(random)), *members[at + 1 :]]

    return _rewrite(random, line, change)


def repeat_key(random: Random, line: bytes) -> bytes:
    """A member comes twice, with another value."""
    return _rewrite(random, line, lambda members, at: [*members, (members[at][0], _Raw(random))])


def add_key(random: Random, line: bytes) -> bytes:
    def change(members: Members, at: int) -> Members:
        return [*members[:at], (random.choice(KEYS), _Raw(random)), *members[at:]]

    return _rewrite(random, line, change)


def drop_key(random: Random, line: bytes) -> bytes:
    return _rewrite(random, line, lambda members, at: members[:at] + members[at + 1 :])


def spread(random: Random, line: bytes) -> bytes:
    """Blanks where JSON allows them, and escapes where it allows those."""
    blank = random.choice((b" ", b"\t", b"\r", b" \r\t "))
    line = line.replace(b",", blank + b"," + blank).replace(b'"id"', b'"\\u0069d"')
    return blank + line + blank


def grow(random: Random, line: bytes) -> bytes:
    """Larger than a line may be, or just not."""
    size = random.choice((1000, 30_000, 65_000, 66_000, 200_000))
    return line.replace(b'"n"', b'"x":"%b","n"' % (b"x" * size), 1)


def replace(random: Random, line: bytes) -> bytes:
    """Any JSON but a call."""
    return random.choice(VALUES).encode()


class _Raw(str):
    """JSON text, well formed or not, for the place of a value."""

    def __new__(cls, random: Random) -> _Raw:
        return super().__new__(cls, random.choice(VALUES if random.random() < 0.9 else NO_VALUES))


Members = list[tuple[str, Any]]


def _rewrite(random: Random, line: bytes, change: Callable[[Members, int], Members]) -> bytes:
    """Change the members of some object of the line; one that cannot be read any more is left as it is."""
    try:
        tree = json.loads(line, object_pairs_hook=_Object)
        objects = [found for found in _objects(tree) if found.members]
        if objects:
            chosen = random.choice(objects)
            chosen.members = change(chosen.members, random.randrange(len(chosen.members)))
        return _dump(tree).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return line


class _Object:
    """An object whose keys may come twice."""

    def __init__(self, members: Members) -> None:
        self.members = members


def _objects(tree: Any) -> list[_Object]:
    if isinstance(tree, _Object):
        return [tree, *(found for _key, value in tree.members for found in _objects(value))]
    if isinstance(tree, list):
        return [found for value in tree for found in _objects(value)]
    return []


def _dump(tree: Any) -> str:
    if isinstance(tree, _Object):
        members = ",".join(f"{json.dumps(key)}:{_dump(value)}" for key, value in tree.members)
        return f"{{{members}}}"
    if isinstance(tree, list):
        return f"[{','.join(map(_dump, tree))}]"
    return str(tree) if isinstance(tree, _Raw) else json.dumps(tree)


CHANGES: list[Callable[[Random, bytes], bytes]] = [
    *(flip_bits, cut_off, remove, double, put_in, put_in, noise, splice),
    *(swap_value, swap_value, repeat_key, add_key, drop_key, spread, grow, replace),
]


def hostile(random: Random, line: bytes) -> bytes:
    """The line with one to three things done to it."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        line = random.choice(CHANGES)(random, line)
    return line
