"""DATA and ARG on the command line: JSON, or a JavaScript literal as the seed's examples have it."""

from __future__ import annotations

from typing import Any

import json5
import msgspec


def parse(text: str) -> Any:
    """The value of ``{"a":1}``, ``{a:1}``, ``'text'`` ..

    Args:
        text: JSON or JSON5 (which has JavaScript's unquoted keys, single quotes, trailing commas).

    Raises:
        ValueError: neither; the message says where.
    """
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        pass
    try:
        return json5.loads(text, allow_duplicate_keys=True)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"neither JSON nor a JavaScript literal: {error}") from None
