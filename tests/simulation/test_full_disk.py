"""Scenes on a full disk that chance plays too seldom, in the simulated world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from kqs.core.job import DefaultsTable
from kqs.service.app import Service
from kqs.settings.config import Config, JournalConfig, ServerConfig
from kqs.settings.handlers import Handlers
from kqs.testing.clock import EPOCH
from kqs.testing.disk import SimDisk
from kqs.testing.simulation.loop import Timeline, VirtualLoop
from kqs.testing.simulation.machine import Payloads, ServerLoop, SimHost
from kqs.testing.simulation.network import Network
from kqs.testing.simulation.peer import Peer, Sent

CONFIG = Config(ServerConfig(data="/data"), journal=JournalConfig(segment_size=4096, payload_window=1024))
LARGE = {"type": "a", "data": "x" * 500}


def _play(seed: int, scene: Callable[[Peer, SimDisk], Coroutine[Any, Any, None]]) -> None:
    """Run a server, and the scene on a connection to it; the scene's last call must be ``quit``."""
    timeline = Timeline(Random(seed))
    network = Network(Random(seed), lambda name, data: None, 1 << 16)
    problems: list[str] = []
    outside = VirtualLoop(timeline, problems.append)  # type: ignore[abstract]
    loop = ServerLoop(timeline, problems.append, network)  # type: ignore[abstract]
    disk = SimDisk(seed)
    playing: list[asyncio.Task[None]] = []

    def started() -> None:
        peer = Peer.connect(network, outside, lambda life=0: Sent(1, timeline.now, 0))
        assert peer is not None
        playing.append(outside.create_task(scene(peer, disk)))

    wall = EPOCH * 1000
    host = SimHost(loop, disk, lambda: wall, Payloads(), Random(seed), 0.0, started)
    served = loop.create_task(Service(CONFIG, Handlers([], DefaultsTable(), [], {}), host=host).run())
    try:
        timeline.run(lambda: timeline.seconds() > 60 or (served.done() and playing[0].done()))
        playing[0].result()
        assert served.result() == 0
    finally:
        for ended in (loop, outside):
            ended.die()
            ended.clear()
    assert problems == []


async def _fill(peer: Peer, disk: SimDisk) -> None:
    """Fill the disk to the last byte, then insert until that is refused."""
    free, total = disk.free("/data")
    disk.capacity = total - free
    while (error := (await peer.call("insert", LARGE)).error) is None:
        pass
    assert error.code == "disk_full", error.message


@pytest.mark.parametrize("seed", range(10))
def test_a_settlement_that_waits_for_space_is_answered_before_the_server_quits(seed: int) -> None:
    async def scene(peer: Peer, disk: SimDisk) -> None:
        await _fill(peer, disk)
        jobs = (await peer.call("reserve", {"max": 5})).value["jobs"]  # leases take of the space, too
        assert len(jobs) == 5
        settlements = [{"receipt": job["receipt"], "outcome": "ok"} for job in jobs]
        settled, _quit = peer.make([("settle", settlements), ("quit", {})])
        assert (await settled).value == {"settled": 5, "refused": []}

    _play(seed, scene)


@pytest.mark.parametrize("seed", range(5))
def test_the_space_for_manifests_is_not_spent_on_segments(seed: int) -> None:
    """The ballast, given up for a manifest, is larger than these segments."""

    async def scene(peer: Peer, disk: SimDisk) -> None:
        await _fill(peer, disk)
        for _ in range(20):
            await asyncio.sleep(1)  # time to try to make space again
            answer = await peer.call("insert", LARGE)
            assert answer.error is not None and answer.error.code == "disk_full"
        await peer.call("quit")

    _play(seed, scene)
