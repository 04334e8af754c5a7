"""One connection's conversation, sans I/O: calls to bytes, bytes to replies; both clients are its shells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..core import wire
from ..core.wire import LineReader, Reply

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
#: Longest reply taken, bytes: a ``reserve`` may answer many payloads.
MAX_REPLY = 1 << 30


class Session:
    """Tags calls with ids and sorts replies.

    Replies to calls that were given up (timed out) are dropped when they come.
    """

    def __init__(self) -> None:
        self._reader = LineReader(MAX_REPLY)
        self._count = 0
        self._open: set[str] = set()

    def call(self, name: str, argument: bytes = b"", blob: bytes | None = None) -> tuple[str, bytes]:
        """A call's id and the bytes to send.

        Args:
            name: the call.
            argument: JSON of its argument; ``b""`` for none.
            blob: binary part, or None.
        """
        self._count += 1
        number, id = self._count, ""
        while number:
            number, digit = divmod(number, 36)
            id = _DIGITS[digit] + id
        self._open.add(id)
        return id, wire.encode_request(id, name, argument, blob)

    def forget(self, id: str) -> None:
        """Give up on a call."""
        self._open.discard(id)

    def feed(self, data: bytes) -> list[tuple[str, Reply]]:
        """Take bytes; return the replies finished by them, with the ids of their calls, in order.

        A reply without an id answers the connection as a whole; its id is ``""``.

        Raises:
            ProtocolError: the peer does not speak qrpc v1; TooLarge: a reply without an end.
        """
        block = self._reader.feed(data)
        if not block:
            return []
        found = []
        for reply in wire.decode_replies(block):
            if reply.id is None:
                found.append(("", reply))
                continue
            id = str(reply.id)
            if id in self._open:
                if reply.last:
                    self._open.discard(id)
                found.append((id, reply))
        return found


NO_ARGUMENT: Any = msgspec.UNSET


def encode_argument(argument: Any) -> bytes:
    """JSON of an argument; ``b""`` for none.

    Raises:
        TypeError: it holds something JSON does not have.
    """
    return b"" if argument is NO_ARGUMENT else msgspec.json.encode(argument)


def insert_call(type: str, data: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], bytes | None]:
    """The argument and binary part of an ``insert`` of one job: bytes travel as the binary part."""
    job: dict[str, Any] = {"type": type, **options}
    if isinstance(data, bytes | bytearray | memoryview):
        return job, bytes(data)
    if data is not None:
        job["data"] = data
    return job, None


def batch_argument(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The argument of an ``insert`` of many jobs: bytes in ``data`` become ``data64``."""
    batch = []
    for job in jobs:
        job = dict(job)
        if isinstance(job.get("data"), bytes | bytearray | memoryview):
            job["data64"] = bytes(job.pop("data"))  # msgspec writes bytes as base64
        batch.append(job)
    return batch


def lost_message(where: object, name: str) -> str:
    """What to tell the caller of a call whose connection ended before its reply."""
    if name == "insert":
        return f"{where}: connection lost before the reply to insert; whether the job was accepted is unknown"
    return f"{where}: connection lost before the reply to {name}; whether it was done is unknown"
