"""What a command or an HTTP target says, as a job's result or as the text beside its last error."""

from __future__ import annotations

import msgspec

from ..core.outcome import Attempted, Reason
from .python import MAX_RESULT

#: Bytes of what was said that are kept beside an error: the last ones of a command, the first of a response.
KEEP = 8 * 1024


def text(output: bytes) -> str | None:
    """Output as a person reads it, or None when there is nothing to read."""
    return output.decode("utf-8", "replace").strip() or None


def too_large(limit: int) -> Attempted:
    """The end of an attempt whose result is wanted and does not fit."""
    return Attempted("fail", None, Reason(f"the result is larger than {limit} bytes", "result"))


def with_result(output: bytes) -> Attempted:
    """The end of a successful attempt whose output is wanted.

    JSON is kept as the value it stands for, anything else as a text; no output is null. What is neither,
    because it is not UTF-8, is no result: the job fails, rather than keep something else than was said.
    """
    try:
        result = _as_json(output) if output else b"null"
    except UnicodeDecodeError as error:
        return Attempted("fail", None, Reason(f"the result is not UTF-8 (at byte {error.start})", "result"))
    return Attempted("ok", result=result) if len(result) <= MAX_RESULT else too_large(MAX_RESULT)


def _as_json(output: bytes) -> bytes:
    """On one line, as the wire needs it."""
    try:
        return msgspec.json.encode(msgspec.json.decode(output))
    except (ValueError, RecursionError):  # of msgspec, and of UTF-8 inside a JSON text
        return msgspec.json.encode(output.decode())
