"""New jobs as rows of a binary COPY."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from ..core.job import NO_OPTIONS, NewJob
from ..core.lifecycle import State
from ..errors import BadRequest

_HEAD: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TAIL: Final = b"\xff\xff"
_fixed = struct.Struct("!hiqiqiqiqiqihihi?").pack
_length = struct.Struct("!i").pack
_NULL: Final = _length(-1)
_FALSE: Final = b"\0\0\0\1\0"
_TRUE: Final = b"\0\0\0\1\1"


def copy_into(at: str) -> str:
    """The statement that takes rows.

    Args:
        at: what stands before the name of a table.
    """
    return (
        f"COPY {at}job (id, inserted, due, overdue, ttr, prio, state, is_binary, type, fair, data, options,"
        " unique_key, unique_queued) FROM STDIN (FORMAT binary)"
    )


def copied(rows: Iterable[bytes]) -> bytes:
    """What the statement is given: encoded rows, and what stands around them."""
    return b"".join((_HEAD, *rows, _TAIL))


def refuse_nul(job: NewJob, index: int | None = None) -> None:
    """Refuse a job with a NUL character where PostgreSQL can hold none.

    Args:
        job: a valid one.
        index: position in a batch, named in the error.

    Raises:
        BadRequest: it names the field.
    """
    options = job.options
    names = {
        "type": job.type,
        "fair": options.fair,
        "key": options.key,
        "unique": None if options.unique is None else options.unique.key,
    }
    for field, name in names.items():
        if name is not None and "\0" in name:
            raise BadRequest(f"PostgreSQL can't hold a NUL character in {field}", field=field, index=index)


def encode(job: NewJob, number: int, now: int) -> bytes:
    """A job as a row of the COPY.

    Args:
        job: one that :func:`refuse_nul` let pass.
        number: its number.
        now: when it was accepted, microseconds since 1970.
    """
    options = job.options
    overdue = now + options.expires if options.expires else 0
    state = State.DELAYED if job.delay else State.READY
    fixed = _fixed(
        14,
        8,
        number,
        8,
        now,
        8,
        now + job.delay,
        8,
        overdue,
        8,
        job.ttr,
        2,
        job.prio,
        2,
        int(state),
        1,
        job.binary,
    )
    type_ = job.type.encode()
    fair = b"" if options.fair is None else options.fair.encode()
    if options is NO_OPTIONS:
        tail = _NULL + _NULL + _FALSE
    else:
        text = msgspec.json.encode(options)
        tail = _length(len(text)) + text
        if (unique := options.unique) is None:
            tail += _NULL + _FALSE
        else:
            key = unique.key.encode()
            tail += _length(len(key)) + key + (_TRUE if unique.scope == "queued" else _FALSE)
    data = job.data
    return b"".join(
        (fixed, _length(len(type_)), type_, _length(len(fair)), fair, _length(len(data)), data, tail)
    )
