"""The system's time."""

from __future__ import annotations

import time


class SystemClock:
    """Wall-clock time that is anchored once, when the process starts, and then runs on the monotonic clock.

    A wall clock that is set forward or back while the server runs neither makes a delay early nor expires
    all leases at once. Times shown are off by the same step until the next start (docs/guarantees.md).
    """

    def __init__(self) -> None:
        self._anchor = time.time_ns() - time.monotonic_ns()

    def now(self) -> int:
        return (self._anchor + time.monotonic_ns()) // 1000
