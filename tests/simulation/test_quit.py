"""A server that quits answers what it has taken, however long that waits for the disk."""

from __future__ import annotations

from random import Random

import pytest

from kqs.core.job import JobDefaults
from kqs.service.app import Service
from kqs.service.config import Config, JournalConfig, ServerConfig
from kqs.service.handlers import Handlers
from kqs.testing.clock import EPOCH
from kqs.testing.disk import SimDisk
from kqs.testing.simulation.loop import Timeline, VirtualLoop
from kqs.testing.simulation.machine import Payloads, ServerLoop, SimHost
from kqs.testing.simulation.network import Network
from kqs.testing.simulation.peer import Peer, Sent

CONFIG = Config(ServerConfig(data="/data"), journal=JournalConfig(segment_size=4096, payload_window=1024))


@pytest.mark.parametrize("seed", range(10))
def test_a_settlement_that_waits_for_space_is_answered_before_the_end(seed: int) -> None:
    timeline = Timeline(Random(seed))
    network = Network(Random(seed), lambda name, data: None, 1 << 16)
    outside = VirtualLoop(timeline, pytest.fail)  # type: ignore[abstract]
    loop = ServerLoop(timeline, pytest.fail, network)  # type: ignore[abstract]
    disk = SimDisk(seed)

    async def settle_and_quit() -> None:
        peer = Peer.connect(network, outside, lambda life=0: Sent(1, timeline.now, 0))
        assert peer is not None
        await peer.call("insert", {"type": "a"})
        [job] = (await peer.call("reserve")).value["jobs"]
        free, total = disk.free("/data")
        disk.capacity = total - free
        answer = await peer.call("insert", {"type": "a", "data": "x" * 500})
        while answer.error is None:
            answer = await peer.call("insert", {"type": "a", "data": "x" * 500})
        assert answer.error.code == "disk_full"
        settled, _quit = peer.make(
            [("settle", [{"receipt": job["receipt"], "outcome": "ok"}]), ("quit", None)]
        )
        assert (await settled).value == {"settled": 1, "refused": []}

    def started() -> None:
        asking.append(outside.create_task(settle_and_quit()))

    asking: list[object] = []
    wall = EPOCH * 1000
    host = SimHost(loop, disk, lambda: wall, Payloads(), Random(seed), 0.0, started)
    task = loop.create_task(Service(CONFIG, Handlers([], {}, JobDefaults()), host=host).run())
    timeline.run(task.done)
    assert task.result() == 0
    [asked] = asking
    timeline.run(asked.done)  # type: ignore[attr-defined]
    asked.result()  # type: ignore[attr-defined]
