"""How long to wait before connecting again."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Capped exponential waits with full jitter, so that clients of a restarted server do not return at once.

    Args:
        random: draws from [0, 1).
        base, cap: first and longest wait, seconds.
    """

    def __init__(self, random: Callable[[], float], base: float = 0.05, cap: float = 2.0) -> None:
        self._random = random
        self._base = base
        self._cap = cap
        self._tries = 0

    def next(self) -> float:
        """Seconds to wait now."""
        wait = min(self._cap, self._base * 2.0 ** min(self._tries, 32))
        self._tries += 1
        return wait * (0.5 + 0.5 * self._random())

    def reset(self) -> None:
        """It worked."""
        self._tries = 0
