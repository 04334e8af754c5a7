"""Time that passes when the test says so."""

from __future__ import annotations

#: 2026-01-01 00:00:00 UTC, in microseconds.
EPOCH = 1_767_225_600_000_000


class VirtualClock:
    """A :class:`~kqs.ports.Clock` that stands still until it is told to move.

    Args:
        start: microseconds since 1970 UTC.
    """

    def __init__(self, start: int = EPOCH) -> None:
        self._now = start

    def now(self) -> int:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass. A process never sees time run backwards, so ``seconds`` must not be negative."""
        if seconds < 0:
            raise ValueError(f"time cannot pass by {seconds} s; use jump() between two runs")
        self._now += round(seconds * 1_000_000)

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as may happen between two runs of a server."""
        self._now += round(seconds * 1_000_000)
