"""A machine for one life of a server: the ports it stands on, simulated."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any

from ...core.job import BulkRef
from ...errors import DiskFull, Internal, NotFound
from ...ports import BulkStore, Clock, Disk, Executor
from ...service.clock import SystemClock
from ...service.server import Server
from ..executor import DelayedExecutor
from .loop import Timeline, VirtualLoop
from .network import Listener, Network

#: Seconds a step of the journal's thread or of the bulk store takes: now and then a long one.
_DELAYS = (0.0, 0.0005, 0.0005, 0.001, 0.001, 0.002, 0.02)


class ServerLoop(VirtualLoop):
    """A server's loop: what listens on it is reached through the network."""

    def __init__(self, timeline: Timeline, report: Callable[[str], None], network: Network) -> None:
        super().__init__(timeline, report)
        self._network = network

    async def create_server(  # type: ignore[override]
        self, accept: Callable[[], Any], host: str, port: int, *, backlog: int
    ) -> Listener:
        return self._network.listen(self, (host, port), accept)

    async def create_unix_server(  # type: ignore[override]
        self, accept: Callable[[], Any], path: str, *, backlog: int
    ) -> Listener:
        return Listener(self._network, path, accept, self)


class Payloads:
    """A bulk store's content, which outlives servers: name to (payload, when it was stored)."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[bytes, int]] = {}


class PayloadStore:
    """A bulk store over :class:`Payloads`; see :class:`kqs.ports.BulkStore`.

    Args:
        payloads: what is stored.
        clock: says when.
        random: of delays, and of what fails.
        failing: share of puts that fail, 0..1.
    """

    def __init__(self, payloads: Payloads, clock: Clock, random: Random, failing: float) -> None:
        self._stored = payloads.stored
        self._clock = clock
        self._random = random
        self._failing = failing

    async def put(self, data: bytes) -> BulkRef:
        name = self._random.randbytes(16).hex()
        await self._pass()
        if self._random.random() < self._failing:
            raise self._random.choice([DiskFull("the disk is full"), Internal("the bulk store failed")])
        self._stored[name] = (data, self._clock.now())
        await self._pass()
        return BulkRef(name, hashlib.sha256(data).hexdigest(), len(data))

    async def get(self, ref: BulkRef) -> bytes:
        await self._pass()
        if ref.name not in self._stored:
            raise NotFound(f"the payload {ref.name} is not in the bulk store")
        return self._stored[ref.name][0]

    async def delete(self, refs: Sequence[BulkRef]) -> None:
        await self._pass()
        for ref in refs:
            self._stored.pop(ref.name, None)

    async def collect(self, wanted: Collection[str], grace: float) -> int:
        await self._pass()
        before = self._clock.now() - grace * 1_000_000
        gone = [name for name, (_data, at) in self._stored.items() if name not in wanted and at < before]
        for name in gone:
            del self._stored[name]
        return len(gone)

    async def close(self) -> None:
        pass

    async def _pass(self) -> None:
        await asyncio.sleep(self._random.choice(_DELAYS))


class SimHost:
    """See :class:`kqs.service.host.Host`.

    Args:
        loop: the server's.
        disk: as this life sees it.
        wall: nanoseconds since 1970, of a clock that people set.
        payloads: the bulk store's content.
        random: of everything that is left to chance on this machine.
        failing: share of puts into the bulk store that fail, 0..1.
        started: called when the server has started.
    """

    def __init__(
        self,
        loop: ServerLoop,
        disk: Disk,
        wall: Callable[[], int],
        payloads: Payloads,
        random: Random,
        failing: float,
        started: Callable[[], None],
    ) -> None:
        self.disk = disk
        self.random = random
        self.clock: Clock = SystemClock(wall, lambda: loop.timeline.now)
        self.wall: Callable[[], int] = lambda: wall() // 1000
        self.monotonic = loop.timeline.seconds
        self._loop = loop
        self._payloads = payloads
        self._failing = failing
        self._started = started

    def claim(self, data: str) -> None:
        self.disk.makedirs(data)
        self.disk.sync_dir("/")

    def executor(self) -> Executor:
        return DelayedExecutor(self._loop, lambda: self.random.choice(_DELAYS))

    def store(self, data: str) -> BulkStore:
        return PayloadStore(self._payloads, self.clock, self.random, self._failing)

    async def listen(self, server: Server, address: str, data: str, tls: object) -> None:
        await server.listen("127.0.0.1", 14151, f"{data}/kqs.sock")

    def connections(self, wanted: int) -> int:
        return wanted

    def started(self) -> None:
        self._started()

    def process(self) -> dict[str, Any]:
        return {"pid": 1, "rss_bytes": 0, "uptime": self.monotonic()}
