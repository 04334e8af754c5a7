"""How the npm package ``qrpc`` 1.1.6 reads a line, as far as our lines depend on it.

Written from its behaviour: a line that starts with exactly ``{"v":1,"b":LEN`` is taken apart from its end,
LEN characters of base64 before the last two; nothing else may follow. All other lines are plain JSON. It
calls back for a reply that has ``e`` or ``m``, and for the last one if that has either.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from typing import Any

_FRAMED = re.compile(rb'\{"v":1,"b":(\d+)')
_BLOB_STARTS = b',"b":"'


def decode(line: bytes) -> dict[str, Any]:
    """The members of a line; ``b`` as bytes, absent where it is empty: npm's client does not see that one."""
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    line = line[:-1]
    framed = _FRAMED.match(line)
    if framed is None:
        members = json.loads(line)
        assert "b" not in members, "binary that is not framed"
        return dict(members)
    start = len(line) - 2 - int(framed[1])
    head, blob, end = line[:start], line[start:-2], line[-2:]
    assert head.endswith(_BLOB_STARTS), "LEN does not lead to the blob"
    assert end == b'"}'
    members = dict(json.loads(head.removesuffix(_BLOB_STARTS) + b"}"))
    del members["b"]
    return {**members, "b": b64decode(blob, validate=True)} if blob else members


def callbacks(lines: list[bytes]) -> list[tuple[Any, Any]]:
    """(error, value) of every callback the replies to one call lead to."""
    called = []
    over = False
    for line in lines:
        assert not over, "a reply after the last one"
        members = decode(line)
        value = members["b"] if "b" in members else members.get("m")
        if members["s"] == "ok":
            called.append((members.get("e"), value))
            continue
        over = True
        if "e" in members or "m" in members or "b" in members:
            called.append((members.get("e"), value))
    assert over, "no last reply"
    return called
