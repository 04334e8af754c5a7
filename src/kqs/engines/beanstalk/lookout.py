"""Sees what others do to the servers' jobs, so that who waits for one is woken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final

from ...errors import EngineAway
from ...ports import Revoked
from .leases import Leases
from .look import Tubes
from .pool import Pool, Server
from .protocol import figure
from .wakes import Wakes

#: Seconds between two looks at a server's figures.
_LOOK: Final = 0.05
#: Seconds after which its tubes are looked at although no figure changed: one that somebody else had
#: paused runs on without a sign.
_AGAIN: Final = 1.0
#: Looking at the tubes takes one part in so many of the time, at most.
_SHARE: Final = 20
#: One of these figures changes when a job becomes ready; the first is how many are.
_SIGNS: Final = (
    *(b"current-jobs-ready", b"current-jobs-reserved", b"current-jobs-delayed", b"current-jobs-buried"),
    *(b"cmd-put", b"cmd-release", b"cmd-kick", b"job-timeouts", b"current-connections"),
)


class Lookout:
    """See the module. Each server is looked at for itself, so that one that is stopped hides no other.

    Args:
        pool: the servers.
        tubes: what is in them.
        leases: those that are out: they end with their connections.
        wakes: rung for what may be ready.
        paused: tells which types nobody is woken for.
        revoked: told of leases that ended.
    """

    def __init__(
        self,
        pool: Pool,
        tubes: Tubes,
        leases: Leases,
        wakes: Wakes,
        paused: Callable[[], Collection[str]],
        revoked: Callable[[Sequence[Revoked]], None],
    ) -> None:
        self._tubes = tubes
        self._leases = leases
        self._wakes = wakes
        self._paused = paused
        self._revoked = revoked
        self.tasks = [asyncio.create_task(self._watch(server)) for server in pool.servers]

    async def _watch(self, server: Server) -> None:
        time = asyncio.get_running_loop().time
        before: list[int] = []
        rest, again = 0.0, 0.0
        while True:
            await asyncio.sleep(_LOOK)
            self._end_lost()
            try:
                stats = await server.stats()
                signs = [figure(stats, sign) for sign in _SIGNS]
                began = time()
                if began < rest or (signs == before and began < again):
                    continue
                before, again = signs, began + _AGAIN
                if signs[0]:
                    await self._ring(server)
                    rest = time() + _SHARE * (time() - began)
            except EngineAway:
                before = []

    async def _ring(self, server: Server) -> None:
        types = await self._tubes.ready_on(server)
        if types is None:
            self._wakes.ring(())
        elif found := types - set(self._paused()):
            self._wakes.ring(sorted(found))

    def _end_lost(self) -> None:
        """beanstalkd has the jobs of a lost connection ready again."""
        if lost := self._leases.lost():
            for lease in lost:
                self._leases.remove(lease)
            self._revoked([Revoked(lease.receipt, lease.holder) for lease in lost])

    async def close(self) -> None:
        """Look no more."""
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
