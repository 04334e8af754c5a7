"""A worker's end of its connection: the same wire and calls as any remote worker's.

Blocking and locked: a handler's threads may renew while the main thread waits for nothing, and settlements of
very short jobs are gathered for a moment, so that a call settles many.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection
from time import monotonic, sleep
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ..core import wire
from ..core.outcome import Settlement
from ..core.wire import LineReader, Reply
from ..errors import ConnectionFailed

#: Settlements wait this long for company, seconds.
GATHER = 0.002
#: Most settlements that wait.
MAX_GATHERED = 1000
#: A reply may hold 10,000 payloads.
MAX_REPLY = 1 << 31


class Leased(Struct, gc=False):
    """One job as ``reserve`` answers it."""

    receipt: str
    id: str
    type: str
    attempt: int
    ttr: float
    prio: str
    inserted_at: str
    data: Raw | UnsetType = UNSET
    data64: bytes | UnsetType = UNSET
    result: bool = False
    deaths: int = 0

    @property
    def payload(self) -> bytes:
        """The payload as it was inserted."""
        return bytes(self.data) if self.data is not UNSET else self.data64 or b""


class Reserved(Struct):
    """The answer to a ``reserve``."""

    jobs: list[Leased]


class _Renewed(Struct):
    renewed: list[str]
    cancelled: list[str] = []


_reserved = msgspec.json.Decoder(Reserved)
_renewed = msgspec.json.Decoder(_Renewed)


def reserve_argument(
    limit: int, wait: float, types: Collection[str] | None, worker: str | None = None
) -> bytes:
    """The argument of a ``reserve``.

    Args:
        limit: most jobs.
        wait: seconds the server may wait for the first.
        types: job types, or None for all that the connection is for.
        worker: the name to show, or None where the connection has one.
    """
    argument: dict[str, Any] = {"max": limit, "wait": wait}
    if worker is not None:
        argument["worker"] = worker
    return msgspec.json.encode(argument if types is None else {**argument, "types": sorted(types)})


def progress_argument(receipt: str, fraction: float | None, message: str) -> bytes:
    """The argument of a ``renew`` that tells how far a job is."""
    progress = {"message": message} if fraction is None else {"fraction": fraction, "message": message}
    return msgspec.json.encode({"receipts": [receipt], "progress": progress})


def renew_argument(receipts: list[str]) -> bytes:
    """The argument of a ``renew``."""
    return msgspec.json.encode({"receipts": receipts})


def leases_of(value: bytes) -> list[Leased]:
    """The jobs in the answer to a ``reserve``."""
    return _reserved.decode(value).jobs


def renewed_of(value: bytes) -> set[str]:
    """The receipts, in the answer to a ``renew``, that are still current and whose jobs are still wanted."""
    answer = _renewed.decode(value)
    return set(answer.renewed).difference(answer.cancelled)


class Link:
    """Calls of one worker.

    Args:
        sock: connected to the server.
        types: job types to ask for, or None for all that the connection is for.
    """

    def __init__(self, sock: socket.socket, types: Collection[str] | None = None) -> None:
        self._socket = sock
        self._types = types
        self._reader = LineReader(MAX_REPLY)
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._calls = 0
        self._kept: dict[str, Reply] = {}
        self._ignored: set[str] = set()
        self._unsent: list[Settlement] = []
        self._unsent_since = 0.0
        self._some = threading.Event()
        threading.Thread(target=self._flush_late, name="kqs-settle", daemon=True).start()

    # -- leases ---------------------------------------------------------------------------------

    def ask(self, limit: int, wait: float) -> str:
        """Send a ``reserve``; :meth:`leases` takes its reply.

        Args:
            limit: most jobs.
            wait: seconds the server may wait for the first.
        """
        return self._send("reserve", reserve_argument(limit, wait, self._types))

    def leases(self, call: str) -> list[Leased]:
        """The jobs a ``reserve`` got; waits for its reply."""
        return leases_of(self._reply(call))

    def renew(self, receipts: list[str]) -> set[str]:
        """Start the ttr of leases anew; returns the receipts still current, their jobs not cancelled."""
        return renewed_of(self._reply(self._send("renew", renew_argument(receipts))))

    def progress(self, receipt: str, fraction: float | None, message: str) -> None:
        """Tell how far a job is, without waiting; its lease starts anew."""
        self._send("renew", progress_argument(receipt, fraction, message), ignore=True)

    # -- settlements ----------------------------------------------------------------------------

    def settle(self, settlement: Settlement) -> None:
        """Settle soon: at the latest :data:`GATHER` seconds later, or at the next :meth:`flush`."""
        with self._sending:
            if not self._unsent:
                self._unsent_since = monotonic()
                self._some.set()
            self._unsent.append(settlement)
            if monotonic() - self._unsent_since >= GATHER or len(self._unsent) >= MAX_GATHERED:
                self._flush()

    def flush(self) -> None:
        """Send what :meth:`settle` gathered."""
        with self._sending:
            self._flush()

    def _flush(self) -> None:
        if self._unsent:
            gathered, self._unsent = self._unsent, []
            self._some.clear()
            self._write("settle", msgspec.json.encode(gathered), ignore=True)

    def _flush_late(self) -> None:
        """The other half of gathering: a long job must not hold up the settlements of those before it."""
        try:
            while True:
                self._some.wait()
                sleep(GATHER)
                self.flush()
        except OSError:
            return  # the main thread meets the same error

    # -- the wire -------------------------------------------------------------------------------

    def _send(self, name: str, argument: bytes, *, ignore: bool = False) -> str:
        with self._sending:
            self._flush()
            return self._write(name, argument, ignore=ignore)

    def _write(self, name: str, argument: bytes, *, ignore: bool) -> str:
        self._calls += 1
        call = str(self._calls)
        if ignore:
            self._ignored.add(call)
        self._socket.sendall(wire.encode_request(call, name, argument))
        return call

    def _reply(self, call: str) -> bytes:
        """The value of a call's reply; replies to others are kept for them."""
        with self._receiving:
            while (reply := self._kept.pop(call, None)) is None:
                self._receive()
        reply.check()
        return bytes(reply.m)

    def _receive(self) -> None:
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionFailed("the server is gone", sent=True)
        for reply in wire.decode_replies(self._reader.feed(data)):
            call = str(reply.id)
            if call in self._ignored:
                self._ignored.discard(call)
            else:
                self._kept[call] = reply
