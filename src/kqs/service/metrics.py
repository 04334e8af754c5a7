"""Counts and histograms of calls, cheap enough for the hot path."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

#: Upper bounds of the histogram's buckets, seconds: 1-2-5 steps from 10 microseconds to 100 s.
BOUNDS: Final = (*(step * 10.0**power for power in range(-5, 2) for step in (1, 2, 5)), 100.0)


class Histogram:
    """Durations in fixed buckets; quantiles are read off the buckets' upper bounds."""

    __slots__ = ("counts", "maximum", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self.maximum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count a duration, ``times`` times over."""
        self.counts[bisect_left(BOUNDS, seconds)] += times
        self.total += seconds * times
        if seconds > self.maximum:
            self.maximum = seconds

    def quantile(self, share: float) -> float:
        """The bound below which ``share`` of the durations lie, at most the maximum seen; 0 when empty."""
        rank = share * sum(self.counts)
        seen = 0
        for bound, count in zip((*BOUNDS, self.maximum), self.counts, strict=True):
            seen += count
            if count and seen >= rank:
                return min(bound, self.maximum)
        return 0.0

    def shown(self) -> dict[str, Any]:
        count = sum(self.counts)
        return {
            "count": count,
            "mean": self.total / count if count else 0.0,
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "max": self.maximum,
            "buckets": {
                f"{bound:g}": n for bound, n in zip((*BOUNDS, float("inf")), self.counts, strict=True) if n
            },
        }


class CallMetrics:
    """One call's figures.

    Attributes:
        latency: seconds from the arrival of its bytes until it began.
        duration: seconds from there until its reply was handed to the socket.
    """

    __slots__ = ("calls", "duration", "errors", "latency")

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.latency = Histogram()
        self.duration = Histogram()

    def shown(self) -> dict[str, Any]:
        return {
            "count": self.calls,
            "errors": self.errors,
            "latency": self.latency.shown(),
            "duration": self.duration.shown(),
        }


class Metrics:
    """All calls' figures, and errors by code."""

    def __init__(self) -> None:
        self.calls: dict[str, CallMetrics] = {}
        self.errors: dict[str, int] = {}

    def done(self, call: str, latency: float, duration: float, times: int = 1) -> None:
        """Calls were answered.

        Args:
            call: its name.
            latency, duration: seconds, see :class:`CallMetrics`.
            times: how many calls share these figures.
        """
        figures = self.calls.get(call)
        if figures is None:
            figures = self.calls[call] = CallMetrics()
        figures.calls += times
        figures.latency.observe(latency, times)
        figures.duration.observe(duration, times)

    def failed(self, call: str, code: str, times: int = 1) -> None:
        """Calls (counted by :meth:`done` as well) were answered with an error."""
        if call:
            self.calls.setdefault(call, CallMetrics()).errors += times
        self.errors[code] = self.errors.get(code, 0) + times

    def shown(self) -> dict[str, Any]:
        return {name: figures.shown() for name, figures in sorted(self.calls.items())}
