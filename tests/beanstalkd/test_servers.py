"""Servers of the pool that are stopped, and others that begin anew at the same address."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter

import pytest

from kqs.engines.beanstalk.client import connect
from kqs.engines.beanstalk.protocol import STATS, figure, put, use
from kqs.errors import ConfigError
from kqs.testing.engines.harness import new_job
from tests.support import PATIENCE

from .support import Begin, Make, Other, settle, take, until

pytestmark = pytest.mark.service("beanstalkd")


async def test_a_stopped_server_holds_nobody_up(begin: Begin, make: Make) -> None:
    """Long before it is given up."""
    stopped, other = begin(), begin()
    engine = await make(stopped.address, other.address, silence=300)
    await engine.put([new_job("t") for _ in range(10)])
    await engine.feed.drained()
    assert len(await take(engine, "t", count=10)) == 10  # there are connections to take jobs on
    stopped.send(signal.SIGSTOP)
    began = time.monotonic()
    ids = [id for _ in range(50) for id in (await engine.put([new_job("t"), new_job("u")])).ids]
    await until(lambda: engine.feed.waiting <= 50)
    first = await take(engine, "t", "u", limit=100, count=10)
    await engine.put([new_job("late") for _ in range(20)])
    late = await take(engine, "late", count=20)
    assert await settle(engine, late + first) == 0
    assert (await engine.stats())["jobs"]["done"] == len(late + first)
    assert time.monotonic() - began < 30
    stopped.send(signal.SIGCONT)
    rest = await take(engine, "t", "u", limit=100, count=len(ids) - len(first))
    assert Counter(lease.id for lease in first + rest) == Counter(ids)
    async with asyncio.timeout(PATIENCE):
        await engine.feed.drained()
    stats = [await server.stats() for server in engine._pool.servers]
    assert sum(figure(body, b"cmd-put") for body in stats) == 10 + 100 + 20  # none was put twice


async def test_a_silent_server_is_given_up_and_its_jobs_go_elsewhere(begin: Begin, make: Make) -> None:
    stopped, other = begin(), begin()
    engine = await make(stopped.address, other.address, silence=0.4, timeout=0.5)
    await engine.put([new_job("t") for _ in range(10)])
    await engine.feed.drained()
    held = await take(engine, "t", count=10)
    lost: list[str] = []
    engine.on_revoked(lambda leases: lost.extend(lease.receipt for lease in leases))
    stopped.send(signal.SIGSTOP)
    ids = (await engine.put([new_job("t") for _ in range(20)])).ids
    async with asyncio.timeout(PATIENCE):
        await engine.feed.drained()
    await until(lambda: not engine._pool.shown()[0]["up"])
    assert [server["up"] for server in engine._pool.shown()] == [False, True]
    assert {lease.id for lease in await take(engine, "t", limit=50, count=20)} >= set(ids)
    assert await settle(engine, held) == 5  # half of them were there
    stopped.send(signal.SIGCONT)
    await until(lambda: engine._pool.shown()[0]["up"])


async def test_a_start_waits_for_no_stopped_server(begin: Begin, make: Make) -> None:
    stopped, other = begin(), begin()
    stopped.send(signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE):
        engine = await make(stopped.address, other.address, timeout=0.3)
    assert [server["up"] for server in engine._pool.shown()] == [False, True]
    await engine.put([new_job("t")])
    assert len(await take(engine, "t")) == 1
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ConfigError, match=r"none is up: .* did not answer in 0\.3 s"):
            await make(stopped.address, timeout=0.3)


async def test_a_machine_that_stood_still_makes_no_server_silent(begin: Begin) -> None:
    """This process and the server are stopped together, and go on together."""
    server = begin()
    connection = await connect(server.address.host, server.address.port, PATIENCE, silence=0.2)
    server.send(signal.SIGSTOP)
    asked = connection.send([STATS])
    await asyncio.sleep(0)
    time.sleep(0.5)
    server.send(signal.SIGCONT)
    await asked
    connection.close()


async def test_nothing_known_of_a_server_counts_for_the_next_one_there(
    begin: Begin, make: Make, other: Other
) -> None:
    """beanstalkd numbers its jobs from 1 in every process, so numbers tell nothing of what is gone."""
    server = begin(binlog=False)
    engine = await make(server.address, unsafe=True)
    ids = []
    for _ in range(2):
        stranger = await other(server)
        await stranger.send([use(b"kq-t"), put(0, 0, 60, b'"first"'), put(0, 0, 60, b'"second"')])
        first, second = await take(engine, "t", count=2)
        assert [(lease.data, lease.attempt, lease.deaths) for lease in (first, second)] == [
            (b'"first"', 1, 0),
            (b'"second"', 1, 0),
        ]
        await engine.rescue([second.receipt], died=True)
        assert await settle(engine, [first]) == 0
        ids += [first.id, second.id]
        server.kill()
        await until(lambda: not engine._pool.servers[0].up)
        server.start()
        await until(lambda: engine._pool.servers[0].up)
    assert len(set(ids)) == 4


async def test_a_lease_ends_with_the_process_it_is_in(begin: Begin, make: Make, other: Other) -> None:
    server = begin(binlog=False)
    engine = await make(server.address, unsafe=True)
    await (await other(server)).send([use(b"kq-t"), put(0, 0, 60, b"1")])
    [lease] = await take(engine, "t")
    server.kill()
    server.start()
    await until(lambda: engine._pool.servers[0].up)
    await (await other(server)).send([use(b"kq-t"), put(0, 0, 60, b"2")])
    [next_] = await take(engine, "t")
    assert await settle(engine, [lease]) == 1
    assert await settle(engine, [next_]) == 0


async def test_a_server_that_comes_back_without_its_binlog_is_not_used(begin: Begin, make: Make) -> None:
    server, other = begin(), begin()
    engine = await make(server.address, other.address)
    server.kill()
    await until(lambda: not engine._pool.servers[0].up)
    flags, server._flags = server._flags, []
    server.start()
    await until(lambda: "no binlog" in engine._pool.servers[0].reason)
    await engine.put([new_job("t") for _ in range(10)])
    assert len(await take(engine, "t", count=10)) == 10
    server.kill()
    server._flags = flags
    server.start()
    await until(lambda: engine._pool.servers[0].up)
