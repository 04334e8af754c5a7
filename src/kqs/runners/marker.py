"""Small pages that a worker process and its supervisor share.

The supervisor must know, of a worker that died without a word, which of its leases were running: those may be
at fault, the others are released at no cost. Memory both sides map costs the worker nothing and survives it.
Every cell has one writer; a receipt is never used twice, so that a stale one is recognised.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

#: Bytes of a cell: a receipt, padded.
CELL = 128
#: Bytes for what a worker holds; what does not fit is left out.
HELD = 1 << 18
_EMPTY = bytes(CELL)
_LENGTH = struct.Struct("=I")


class Held(NamedTuple):
    """One lease of a worker, begun or not."""

    receipt: str
    id: str
    type: str


_held = msgspec.json.Decoder(list[Held])


class Marker:
    """The shared pages of one worker.

    Args:
        slots: attempts the worker runs at once.
        fd: of the file behind it, or None to make a new one.
    """

    def __init__(self, slots: int = 1, fd: int | None = None) -> None:
        self._slots = slots
        self._waiting = 2 * slots * CELL
        self._blocking = self._waiting + CELL
        self._held = self._blocking + CELL
        size = self._held + _LENGTH.size + HELD
        if fd is None:
            with tempfile.TemporaryFile() as file:
                os.ftruncate(file.fileno(), size)
                self.fd = os.dup(file.fileno())
        else:
            self.fd = fd
        self._page = mmap.mmap(self.fd, size)

    # -- what the worker says -------------------------------------------------------------------

    def set(self, slot: int, receipt: str) -> None:
        """This attempt runs now in a slot; ``""``: none does."""
        self._write(slot * CELL, receipt)

    def wait(self, receipt: str) -> None:
        """This lease is held until nothing else runs; ``""``: none is."""
        self._write(self._waiting, receipt)

    def block(self, receipt: str) -> None:
        """This attempt keeps all others of the worker from going on; ``""``: none does."""
        self._write(self._blocking, receipt)

    def hold(self, leases: Iterable[Held]) -> None:
        """These are all leases the worker has; some may have been settled already."""
        parts: list[bytes] = []
        room = HELD - 2
        for lease in leases:
            part = msgspec.json.encode(lease)
            room -= len(part) + 1
            if room < 0:
                break
            parts.append(part)
        text = b"[" + b",".join(parts) + b"]"
        at = self._held
        self._page[at : at + _LENGTH.size] = _LENGTH.pack(
            0
        )  # a worker that dies here holds nothing, not rubbish
        self._page[at + _LENGTH.size : at + _LENGTH.size + len(text)] = text
        self._page[at : at + _LENGTH.size] = _LENGTH.pack(len(text))

    # -- what the supervisor says ---------------------------------------------------------------

    def cancel(self, receipt: str) -> None:
        """Ask the worker to stop this attempt, if it runs."""
        for slot in range(self._slots):
            if self._read(slot * CELL) == receipt:
                self._write((self._slots + slot) * CELL, receipt)

    def clear(self) -> None:
        """Forget all: for the next process."""
        self._page[:] = bytes(len(self._page))

    # -- asking ---------------------------------------------------------------------------------

    def running(self) -> list[str]:
        """The receipts of the attempts that run."""
        cells = self._page[: self._slots * CELL]
        return [self._read(at) for at in range(0, len(cells), CELL) if cells[at]]

    def waiting(self) -> str:
        """The receipt given to :meth:`wait`, or ``""``."""
        return self._read(self._waiting)

    def blocking(self) -> str:
        """The receipt given to :meth:`block`, or ``""``."""
        return self._read(self._blocking)

    def held(self) -> list[Held]:
        """What was given to :meth:`hold`."""
        start = self._held + _LENGTH.size
        (length,) = _LENGTH.unpack(self._page[self._held : start])
        try:
            return _held.decode(self._page[start : start + length]) if length else []
        except msgspec.MsgspecError:
            return []  # read while it was being written

    def cancelled(self, slot: int, receipt: str) -> bool:
        """Whether the supervisor wants this attempt to stop."""
        return self._read((self._slots + slot) * CELL) == receipt

    def close(self) -> None:
        self._page.close()
        os.close(self.fd)

    def _write(self, at: int, receipt: str) -> None:
        self._page[at : at + CELL] = receipt.encode().ljust(CELL, b"\0") if receipt else _EMPTY

    def _read(self, at: int) -> str:
        return self._page[at : at + CELL].rstrip(b"\0").decode("ascii", "replace")
