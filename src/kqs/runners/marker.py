"""One small shared page a worker: the receipt of the attempt that runs now.

The server must know, of a worker that died without a word, which of its leases was running: that one may be
at fault, the others are released at no cost. A page both sides map costs the worker nothing and survives it.
"""

from __future__ import annotations

import mmap
import os
import tempfile

SIZE = 128


class Marker:
    """The shared page.

    Args:
        fd: of the file behind it, or None to make a new one.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            with tempfile.TemporaryFile() as file:
                os.ftruncate(file.fileno(), SIZE)
                self.fd = os.dup(file.fileno())
        else:
            self.fd = fd
        self._page = mmap.mmap(self.fd, SIZE)

    def set(self, receipt: str) -> None:
        """This attempt runs now; ``""``: none does."""
        self._page[:SIZE] = receipt.encode().ljust(SIZE, b"\0")

    def get(self) -> str:
        """The receipt of the attempt that runs, or ``""``."""
        return self._page[:SIZE].rstrip(b"\0").decode("ascii", "replace")

    def close(self) -> None:
        self._page.close()
        os.close(self.fd)
