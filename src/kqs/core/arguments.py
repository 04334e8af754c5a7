"""Arguments of calls: decoded into their Structs, and what is wrong with them said by field."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

import msgspec
from msgspec import Struct

from ..errors import BadRequest, CallError, UnknownField

_AT = re.compile(r" - at `\$([^`]*)`$")
_MEMBER = re.compile(r"[^.\[\]]*[^.\[\]\d][^.\[\]]*")
_UNKNOWN = re.compile(r"unknown field `(.*)`$", re.DOTALL)
_MISSING = re.compile(r"missing required field `([^`]*)`")


def _struct_at(struct: type[Struct], path: list[str]) -> type[Struct]:
    """The Struct that a member of a Struct holds, down a path of names."""
    for name in path:
        for field in msgspec.structs.fields(struct):
            if field.name == name:
                for part in (field.type, *get_args(field.type)):
                    if isinstance(part, type) and issubclass(part, Struct):
                        struct = part
    return struct


def explain(
    raw: bytes,
    error: Exception,
    struct: type[Struct],
    *,
    index: int | None = None,
    what: str = "argument",
) -> CallError:
    """The typed error for an argument that msgspec refused.

    Args:
        raw: the JSON that was refused.
        error: what msgspec raised.
        struct: the type it should have been.
        index: position in a batch.
        what: what to call it in the message.
    """
    if isinstance(error, RecursionError):
        return BadRequest(f"{what} is nested too deep", index=index)
    text = str(error)
    at = _AT.search(text)
    path = _MEMBER.findall(at[1]) if at else []
    text = _AT.sub("", text)
    if unknown := _UNKNOWN.search(text):
        name = unknown[1]
        known = [field.name for field in msgspec.structs.fields(_struct_at(struct, path))]
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
        where = ".".join((what, *path))
        return UnknownField(
            f"{where} has an unknown field {name!r}{hint}", field=".".join((*path, name)), index=index
        )
    if missing := _MISSING.search(text):
        field = ".".join((*path, missing[1]))
        return BadRequest(f"{what} needs {field!r}", field=field, index=index)
    if not text.startswith("JSON"):
        text = text[:1].lower() + text[1:]
    field = ".".join(path)
    return BadRequest(f"{field or what}: {text}", field=field or None, index=index)


def decode_argument(raw: bytes, struct: type[Any], what: str) -> Any:
    """Decode a call's argument into its Struct; an absent one counts as ``{}``.

    Raises:
        BadRequest, UnknownField: naming the field.
    """
    try:
        return msgspec.json.decode(raw or b"{}", type=struct)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise explain(raw, error, struct, what=what) from None
