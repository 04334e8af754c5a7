"""Job types as names of tubes, and back; and the form of a body.

A tube's name has at most 200 bytes of letters, digits and ``-+/;.$_()``. A type's tube is ``kq-`` and the
type, every other byte (and ``_``) written as ``_`` and two hex digits. A type too long for that is cut, and
ends with ``_-`` and its SHA-256: no two types share a tube.

A body is a line of JSON behind the five bytes ``KQS1 ``, and then the payload. What has no such line was put
by somebody else: it is the payload, of the type its tube is named for.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct

from ...core.job import NO_OPTIONS, JobOptions, NewJob

PREFIX: Final = b"kq-"
MAX_TUBE: Final = 200
#: Bytes a body's first line takes at most: ids, a type, a retry policy, a payload in the bulk store.
HEADER: Final = 2048
#: kqueue's numbers of the priorities, urgent first.
PRIORITIES: Final = (8000, 9000, 10000, 11000, 12000)
_MAGIC: Final = b"KQS1 "
_OTHER: Final = re.compile(rb"[^A-Za-z0-9\-+/;.$()]")
_ESCAPE: Final = re.compile(rb"_([0-9a-f]{2})")
_DIGEST: Final = 64


class Header(Struct, omit_defaults=True):
    """What stands before a payload.

    Attributes:
        id: the job's.
        at: when it was accepted, microseconds since 1970.
        ttr: milliseconds a lease lasts.
        binary: whether the payload is bytes rather than JSON.
        type: the job's, where the tube does not tell.
        options: the rare settings.
    """

    id: str
    at: int
    ttr: int
    binary: bool = False
    type: str | None = None
    options: JobOptions = NO_OPTIONS


class Body(Struct):
    """A job as a tube has it. ``header`` is None for one that somebody else put."""

    header: Header | None
    type: str
    data: bytes
    binary: bool


_decode = msgspec.json.Decoder(Header).decode


@lru_cache(10_000)
def tube_of(type: str) -> bytes:
    """The tube of a job type."""
    text = _OTHER.sub(lambda found: b"_%02x" % found[0][0], type.encode())
    if len(PREFIX) + len(text) <= MAX_TUBE:
        return PREFIX + text
    digest = sha256(type.encode()).hexdigest().encode()
    return PREFIX + text[: MAX_TUBE - len(PREFIX) - 2 - _DIGEST] + b"_-" + digest


def cut(tube: bytes) -> bool:
    """Whether a tube's name is cut, so that only its jobs tell their type."""
    return b"_-" in tube


@lru_cache(10_000)
def type_of(tube: bytes) -> str | None:
    """The type a tube is for; None when it is not a job type's, or only its jobs tell."""
    if not tube.startswith(PREFIX) or cut(tube):
        return None
    text = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), tube[len(PREFIX) :])
    try:
        type = text.decode()
    except UnicodeDecodeError:
        return None
    return type if tube_of(type) == tube else None


def encode(id: str, job: NewJob, accepted: int) -> bytes:
    """A job's body."""
    type = None if type_of(tube_of(job.type)) == job.type else job.type
    header = Header(id, accepted, job.ttr, job.binary, type, job.options)
    return b"%b%b\n%b" % (_MAGIC, msgspec.json.encode(header), job.data)


def decode(body: bytes, tube: bytes) -> Body:
    """What a body holds.

    Args:
        body: as it was put, by anybody.
        tube: where it lay.
    """
    type = type_of(tube) or tube.decode("utf-8", "replace")
    line, _, data = body.partition(b"\n")
    if line.startswith(_MAGIC):
        try:
            header = _decode(line[len(_MAGIC) :])
        except msgspec.MsgspecError:
            pass
        else:
            return Body(header, header.type or type, data, header.binary)
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Body(None, type, body, True)
    return Body(None, type, body, False)


def priority_class(priority: int) -> int:
    """The priority (0 urgent .. 4 bulk) a number is taken for: those between belong to the one before."""
    return max(0, bisect_right(PRIORITIES, priority) - 1)
