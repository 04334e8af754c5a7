"""Who waits is woken by what other programs do, and by nothing else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import pytest

from kqs.engines.beanstalk import lookout
from kqs.engines.beanstalk.protocol import RESERVE, bury, kick_job, put, use, watch
from tests.support import PATIENCE

from .relay import Relay
from .support import Begin, Make, Other, listen, rings, settle, take, until

pytestmark = pytest.mark.service("beanstalkd")


async def test_a_job_is_seen_though_as_many_are_ready_as_before(
    begin: Begin, make: Make, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "_AGAIN", 10 * PATIENCE)
    server = begin()
    stranger = await other(server)
    await stranger.send([use(b"kq-a"), put(0, 0, 60, b"1"), watch(b"kq-a")])
    engine = await make(server.address)
    await rings(listen(engine, "a"))
    woken = listen(engine, "b")
    await stranger.send([RESERVE, use(b"kq-b"), put(0, 0, 60, b"2")])
    await rings(woken)


async def test_delayed_kicked_and_paused_jobs_are_seen(begin: Begin, make: Make, other: Other) -> None:
    server = begin()
    engine, stranger = await make(server.address), await other(server)
    delayed = listen(engine, "t")
    _using, one = await stranger.send([use(b"kq-t"), put(0, 1, 60, b"1")])
    await rings(delayed)
    kicked = listen(engine, "t")
    await stranger.send([watch(b"kq-t"), RESERVE, bury(one.number, 0)])
    kicked.clear()
    await stranger.send([kick_job(one.number)])
    await rings(kicked)
    [lease] = await take(engine, "t")
    await settle(engine, [lease])
    await stranger.send([b"pause-tube kq-t 2\r\n", put(0, 0, 60, b"2")])
    assert await engine.reserve(("t",), 1, holder="worker") == []
    went_on = listen(engine, "t")
    while not await engine.reserve(("t",), 1, holder="worker"):
        went_on.clear()
        await rings(went_on)


async def test_only_those_are_woken_whose_jobs_are_ready(begin: Begin, make: Make, other: Other) -> None:
    server = begin()
    engine, stranger = await make(server.address), await other(server)
    rung: list[Sequence[str]] = []
    engine.on_ready(rung.append)
    await stranger.send([use(b"kq-a"), put(0, 0, 60, b"1"), use(b"kq-b"), put(0, 60, 60, b"2")])
    await until(lambda: len(rung) >= 3)
    assert rung == [["a"]] * len(rung)


async def test_a_stopped_server_hides_no_other(begin: Begin, make: Make, other: Other) -> None:
    stopped, server = begin(), begin()
    engine, stranger = await make(stopped.address, server.address, silence=300), await other(server)
    stopped.send(signal.SIGSTOP)
    woken = listen(engine, "t")
    await stranger.send([use(b"kq-t"), put(0, 0, 60, b"1")])
    await rings(woken)


async def test_what_comes_while_somebody_asks_is_not_missed(begin: Begin, make: Make, other: Other) -> None:
    """The server that was asked first gets a job while the next one does not answer."""
    slow, server = begin(), begin()
    stranger = await other(server)
    async with Relay(slow.address) as relay:
        engine = await make(relay.address, server.address)
        await engine.reserve(("t",), 1, holder="worker")
        await engine.reserve(("t",), 1, holder="worker")
        engine._pool._next = 0
        relay.passing.clear()
        asked = asyncio.create_task(engine.reserve(("t",), 1, holder="worker"))
        await rings(relay.held)
        woken = listen(engine, "t")
        await stranger.send([use(b"kq-t"), put(0, 0, 60, b"1")])
        await rings(woken)
        assert not asked.done()
        assert len(await asked) == 1


async def test_what_a_slow_server_gives_too_late_goes_back(begin: Begin, make: Make, other: Other) -> None:
    server = begin()
    stranger = await other(server)
    async with Relay(server.address) as relay:
        engine = await make(relay.address)
        await engine.reserve(("t",), 1, holder="worker")
        await stranger.send([use(b"kq-t"), put(0, 0, 60, b"1")])
        relay.passing.clear()
        assert await engine.reserve(("t",), 1, holder="worker") == []
        relay.passing.set()
        [lease] = await take(engine, "t")
        assert lease.attempt == 1
