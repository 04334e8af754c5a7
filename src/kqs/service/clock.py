"""The system's time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wall() -> int:
    """The time of the clock on the wall as it is set now, microseconds since 1970 UTC."""
    return time.time_ns() // 1000


class SystemClock:
    """Wall-clock time that is anchored once, when the process starts, and then runs on the monotonic clock.

    A wall clock that is set forward or back while the server runs neither makes a delay early nor expires
    all leases at once. Times shown are off by the same step until the next start (docs/guarantees.md).

    Args:
        wall: nanoseconds since 1970 UTC.
        monotonic: nanoseconds that never run backwards.
    """

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._monotonic = monotonic
        self._anchor = wall() - monotonic()

    def now(self) -> int:
        return (self._anchor + self._monotonic()) // 1000
