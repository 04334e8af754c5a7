"""How much a remote worker does before it ends by itself: so many jobs, or all that are ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

#: With ``--burst``, nothing is ready when a reserve got nothing in so many seconds.
BURST_WAIT = 0.5


class Limits:
    """Run limits.

    Args:
        stop: called, once or more, with the reason when a limit is reached.
        jobs: attempts to make at most; 0 for no limit.
        burst: the pools that must find nothing ready, for the end; None to wait for work for ever.
    """

    def __init__(
        self, stop: Callable[[str], None], *, jobs: int = 0, burst: Collection[str] | None = None
    ) -> None:
        self._stop = stop
        self._jobs = jobs
        self._free = jobs
        self._finished = 0
        self._burst = None if burst is None else frozenset(burst)
        self._nothing: set[str] = set()
        self._activity = 0
        self._changed = asyncio.Event()
        self.stopping = False

    # -- so many jobs ---------------------------------------------------------------------------

    async def take(self, wanted: int, gone: asyncio.Event) -> int:
        """Of so many jobs, those that may be leased: waits for the first; 0 when nobody is there any more."""
        while not gone.is_set() and not self.stopping:
            if not self._jobs:
                return wanted
            if self._free:
                allowed = min(wanted, self._free)
                self._free -= allowed
                return allowed
            self._changed.clear()
            waits = [asyncio.ensure_future(event.wait()) for event in (self._changed, gone)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        return 0

    def give_back(self, count: int) -> None:
        """So many of them were not leased, or not begun."""
        if self._jobs and count:
            self._free += count
            self._changed.set()

    def finished(self) -> None:
        """An attempt ended."""
        self.took()
        self._finished += 1
        if self._jobs and self._finished >= self._jobs:
            self._stop(f"{self._finished} jobs done")

    # -- all that are ready ---------------------------------------------------------------------

    def wait(self, seconds: float) -> float:
        """How long a reserve may wait."""
        return seconds if self._burst is None else min(seconds, BURST_WAIT)

    def quiet(self) -> int:
        """Stands for the present, in which nothing is held."""
        return self._activity

    def took(self) -> None:
        """There was work, which may have made more of it."""
        self._activity += 1
        self._nothing.clear()

    def found_nothing(self, pool: str, since: int) -> None:
        """A reserve of a pool got nothing.

        Args:
            pool: its name.
            since: :meth:`quiet` when the reserve was sent.
        """
        if self._burst is None or since != self._activity:
            return
        self._nothing.add(pool)
        if self._nothing >= self._burst:
            self._stop("no job is ready")

    # -- the end --------------------------------------------------------------------------------

    def end(self) -> None:
        """Lease nothing more."""
        self.stopping = True
        self._changed.set()
