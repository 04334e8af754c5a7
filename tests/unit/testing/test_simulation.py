"""The simulated world keeps the promises of the real one: of asyncio, of a thread, of TCP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from kqs.testing.executor import DelayedExecutor
from kqs.testing.simulation.loop import Stuck, Timeline, VirtualLoop
from kqs.testing.simulation.network import Network


def _loop(seed: int = 0) -> VirtualLoop:
    return VirtualLoop(Timeline(Random(seed)), pytest.fail)  # type: ignore[abstract]


def _until(loop: VirtualLoop, over: Callable[[], bool]) -> None:
    loop.timeline.run(over)


def test_callbacks_go_in_order_and_time_jumps_to_the_next_timer() -> None:
    loop = _loop()
    events: list[object] = []
    loop.call_later(5, lambda: events.append(loop.time()))
    loop.call_later(2, lambda: events.append(loop.time()))
    loop.call_later(3, events.append, "cancelled").cancel()
    for number in range(5):
        loop.call_soon(events.append, number)
    _until(loop, lambda: len(events) == 7)
    assert events == [0, 1, 2, 3, 4, 2.0, 5.0]


def test_timers_of_one_moment_go_in_an_order_the_seed_draws() -> None:
    orders = set()
    for seed in range(20):
        loop, events = _loop(seed), list[int]()
        for number in range(3):
            loop.call_later(1, events.append, number)
        _until(loop, lambda events=events: len(events) == 3)
        orders.add(tuple(events))
    assert len(orders) == 6


def test_a_dead_loop_runs_nothing_and_its_coroutines_are_closed() -> None:
    loop = _loop()
    other = VirtualLoop(loop.timeline, pytest.fail)  # type: ignore[abstract]
    events: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(1)
            events.append("never")
        finally:
            events.append("closed")
            await asyncio.sleep(1)

    loop.create_task(work())
    other.call_later(0.5, loop.die)
    other.call_later(3, events.append, "end")
    _until(loop, lambda: "end" in events)
    assert events == ["end"]
    loop.clear()
    assert events == ["end", "closed"]


def test_what_can_never_end_is_told() -> None:
    loop = _loop()
    with pytest.raises(Stuck, match="nothing is left"):
        _until(loop, lambda: False)

    def again() -> None:
        loop.call_soon(again)

    again()
    with pytest.raises(Stuck, match="endless"):
        _until(loop, lambda: False)


def test_delayed_work_goes_one_by_one_while_time_passes() -> None:
    loop = _loop()
    executor = DelayedExecutor(loop, lambda: 1.0)
    events: list[object] = []

    def work(name: str) -> Callable[[], None]:
        return lambda: events.append(("work", name, loop.time()))

    def done(_result: Any, error: BaseException | None) -> None:
        events.append(("done", error, loop.time()))

    executor.submit(work("a"), done)
    executor.submit(work("b"), done)
    _until(loop, lambda: len(events) == 3)
    assert events == [("work", "a", 1.0), ("done", None, 2.0), ("work", "b", 3.0)]
    executor.submit(work("c"), done)
    executor.close()
    assert events[3:] == [("work", "c", 3.0)]
    executor.submit(work("too late"), done)
    _until(loop, lambda: len(events) == 6)
    assert events[4:] == [("done", None, 3.0), ("done", None, 3.0)]


class _End(asyncio.Protocol):
    def __init__(self) -> None:
        self.got = b""
        self.events: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return True

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, reason: Exception | None) -> None:
        self.events.append("lost" if reason is None else "reset")


def _connected(seed: int, buffer: int = 1 << 16) -> tuple[VirtualLoop, VirtualLoop, Network, _End, _End]:
    timeline = Timeline(Random(seed))
    ours = VirtualLoop(timeline, pytest.fail)  # type: ignore[abstract]
    theirs = VirtualLoop(timeline, pytest.fail)  # type: ignore[abstract]
    network = Network(Random(seed), lambda name, data: None, buffer)
    client, server = _End(), _End()
    assert not network.connect(ours, client)
    network.listen(theirs, "address", lambda: server)
    assert network.connect(ours, client)
    _until(ours, lambda: hasattr(server, "transport"))
    return ours, theirs, network, client, server


def _rest(loop: VirtualLoop) -> None:
    """Let everything happen that is on its way."""
    with pytest.raises(Stuck, match="nothing is left"):
        _until(loop, lambda: False)


@pytest.mark.parametrize("seed", range(20))
def test_bytes_arrive_whole_and_in_order_also_after_a_half_close(seed: int) -> None:
    loop, _theirs, _network, client, server = _connected(seed)
    sent = b"".join(b"%d," % number for number in range(200))
    client.transport.write(sent[:300])
    client.transport.write(sent[300:])
    client.transport.write_eof()
    _until(loop, lambda: server.events == ["eof"])
    assert server.got == sent
    server.transport.write(b"the answer")
    server.transport.close()
    _rest(loop)
    assert (client.got, client.events, server.events) == (b"the answer", ["eof"], ["eof", "lost"])


def test_a_reader_that_stalls_makes_its_writer_pause() -> None:
    loop, _theirs, _network, client, server = _connected(1, buffer=100)
    client.transport.pause_reading()
    server.transport.write(b"x" * 101)
    _rest(loop)
    assert (client.got, server.events) == (b"", ["pause"])
    client.transport.resume_reading()
    _rest(loop)
    assert (client.got, server.events) == (b"x" * 101, ["pause", "resume"])


@pytest.mark.parametrize("seed", range(10))
def test_a_process_that_dies_resets_its_connections_after_some_of_what_it_sent(seed: int) -> None:
    loop, theirs, network, client, server = _connected(seed)
    server.transport.write(b"last words")
    theirs.die()
    network.died(theirs)
    _rest(loop)
    assert client.events == ["reset"]
    assert client.got in (b"", b"last words")
    assert server.events == []
