"""Commands that fail, servers without memory, networks that are cut or silent."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

import pytest

from kqs.engines.beanstalk import BeanstalkEngine
from kqs.engines.beanstalk.client import Connection
from kqs.engines.beanstalk.pool import Address
from kqs.engines.beanstalk.protocol import RESERVE, bury, figure, put, stats_tube, use, watch
from kqs.errors import ConfigError
from kqs.ports import Selection
from kqs.testing.engines.harness import new_job
from tests.support import PATIENCE

from .relay import Relay, swap
from .support import Begin, Make, Other, settle, take, until

pytestmark = pytest.mark.service("beanstalkd")


async def test_a_server_without_memory_loses_nothing(begin: Begin, make: Make) -> None:
    server = begin("-z", "60000000")
    engine = await make(server.address)
    assert server.process is not None
    with open(f"/proc/{server.process.pid}/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (used + 4_000_000, resource.RLIM_INFINITY))
    large = b'"%s"' % (b"x" * 50_000_000)
    ids = (await engine.put([new_job("t", large), new_job("t")])).ids
    await until(lambda: "OUT_OF_MEMORY" in engine.feed.stats().get("away", ""))
    assert [lease.id for lease in await take(engine, "t")] == ids[1:]
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert [(lease.id, lease.data) for lease in await take(engine, "t")] == [(ids[0], large)]


#: A command beanstalkd does not know is answered with one line, as one that failed is.
_FAILS = swap(b"UNKNOWN_COMMAND\r\n", b"OUT_OF_MEMORY\r\n")


async def test_what_was_put_into_another_tube_is_taken_back(begin: Begin, make: Make, other: Other) -> None:
    server = begin()
    stranger = await other(server)
    async with Relay(server.address) as relay:
        engine = await make(relay.address)
        await engine.put([new_job("wrong")])
        [first] = await take(engine, "wrong")
        relay.up, relay.down = swap(b"use kq-t\r\n", b"nonsense\r\n"), _FAILS
        [id] = (await engine.put([new_job("t")])).ids
        await until(lambda: "OUT_OF_MEMORY to use" in engine.feed.stats().get("away", ""))
        assert await engine.reserve(("wrong",), 1, holder="worker") == []
        aside = await stranger.ask(stats_tube(b"default"))
        assert figure(aside.body, b"cmd-delete") >= 1
        relay.up = bytes
        assert [lease.id for lease in await take(engine, "t")] == [id]
        assert await settle(engine, [first]) == 0
        aside = await stranger.ask(stats_tube(b"default"))
        assert figure(aside.body, b"current-jobs-ready") == 0


async def test_a_tube_that_could_not_be_watched_is_watched_later(begin: Begin, make: Make) -> None:
    async with Relay(begin().address) as relay:
        engine = await make(relay.address)
        relay.up, relay.down = swap(b"watch kq-t\r\n", b"nonsense\r\n"), _FAILS
        [id] = (await engine.put([new_job("t")])).ids
        await engine.feed.drained()
        assert await engine.reserve(("t",), 1, holder="worker") == []
        relay.up = bytes
        assert [lease.id for lease in await take(engine, "t")] == [id]


async def test_jobs_of_a_tube_that_could_not_be_ignored_are_not_taken(
    begin: Begin, make: Make, other: Other
) -> None:
    server = begin()
    stranger = await other(server)
    await stranger.send([put(7, 0, 60, b"not ours")])
    async with Relay(server.address) as relay:
        engine = await make(relay.address)
        relay.up, relay.down = swap(b"ignore default\r\n", b"nonsense\r\n"), _FAILS
        [id] = (await engine.put([new_job("t")])).ids
        assert [lease.id for lease in await take(engine, "t")] == [id]
        assert await engine.reserve(("t",), 1, holder="worker") == []
        relay.up = bytes
        assert await engine.reserve(("t",), 1, holder="worker") == []
        left = await stranger.ask(b"peek-ready\r\n")
        assert left.body == b"not ours"


@pytest.mark.parametrize("verb", ["delete", "kick", "bury"])
async def test_no_job_of_another_tube_is_changed(begin: Begin, make: Make, other: Other, verb: str) -> None:
    """The tube can't be used, so what is done would be done in the one that was used before."""
    server = begin()
    stranger = await other(server)
    for tube in (b"kq-mine", b"kq-others"):
        await stranger.send([use(tube), watch(tube), put(0, 0, 60, b"1"), RESERVE])
        await stranger.send([bury(number, 0) for number in (1, 2)])
        await stranger.send([put(0, 0, 60, b"2")])
    before = await stranger.ask(stats_tube(b"kq-others"))
    async with Relay(server.address) as relay:
        engine = await make(relay.address)
        assert await engine._pool.servers[0].connection.ask(use(b"kq-others"))
        relay.up, relay.down = swap(b"use kq-mine\r\n", b"nonsense\r\n"), _FAILS
        assert await engine.control(verb, Selection(type="mine")) == 0
        after = await stranger.ask(stats_tube(b"kq-others"))
    figures = [b"current-jobs-" + state for state in (b"ready", b"buried")] + [b"cmd-delete"]
    assert [figure(after.body, name) for name in figures] == [figure(before.body, name) for name in figures]


def cut_in(word: bytes) -> Callable[[bytes], bytes | None]:
    """Passes on what comes before the middle of a word, and then nothing."""
    over = False

    def meddle(data: bytes) -> bytes | None:
        nonlocal over
        if over:
            return None
        place = data.find(word)
        if place < 0:
            return data
        over = True
        return data[: place + len(word) // 2]

    return meddle


async def test_a_put_whose_reply_is_cut_runs_once(begin: Begin, make: Make, other: Other) -> None:
    server = begin()
    stranger = await other(server)
    async with Relay(server.address) as relay:
        engine = await make(relay.address, silence=1)
        relay.down = cut_in(b"INSERTED")
        [id] = (await engine.put([new_job("t")])).ids
        await until(lambda: not engine._pool.servers[0].up)
        relay.down = bytes
        async with asyncio.timeout(PATIENCE):
            await engine.feed.drained()
        assert figure((await stranger.ask(stats_tube(b"kq-t"))).body, b"total-jobs") == 2
        leases = await take(engine, "t", limit=1)
        assert [lease.id for lease in leases] == [id]
        assert await settle(engine, leases) == 0
        assert await engine.reserve(("t",), 10, holder="worker") == []
        async with asyncio.timeout(PATIENCE):
            while figure((await stranger.ask(stats_tube(b"kq-t"))).body, b"cmd-delete") < 2:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("word", [b"RESERVED", b"reserves: ", b"DELETED", b"RELEASED"])
async def test_a_job_outlives_a_cut_in_any_reply(begin: Begin, make: Make, word: bytes) -> None:
    async with Relay(begin().address) as relay:
        engine = await make(relay.address, silence=1)
        ids = (await engine.put([new_job("t", b'"%d"' % number) for number in range(5)])).ids
        await engine.feed.drained()
        relay.down = cut_in(word)
        leases = await engine.reserve(("t",), 5, holder="worker")
        if leases:
            outcome = "again" if word == b"RELEASED" else "ok"
            assert await settle(engine, leases, outcome) == 5  # nobody knows, so none is told it was done
        await until(lambda: not all(connection.open for connection in connections(engine)))
        relay.down = bytes
        if word == b"DELETED":
            assert await engine.reserve(("t",), 5, holder="worker") == []
        else:
            again = await take(engine, "t", count=5)
            assert sorted(lease.id for lease in again) == sorted(ids)
            assert await settle(engine, again) == 0
        assert len(engine._leases) == 0


def connections(engine: BeanstalkEngine) -> list[Connection]:
    [server] = engine._pool.servers
    return [server.connection, *server._takers.values()]


async def test_a_network_that_says_nothing_is_given_up(begin: Begin, make: Make) -> None:
    """Half-open: the server is well, and what was asked of it may have been done or not."""
    async with Relay(begin().address) as relay:
        engine = await make(relay.address, silence=0.4, timeout=0.5)
        await engine.put([new_job("t"), new_job("t")])
        leases = await take(engine, "t", count=2)
        relay.passing.clear()
        async with asyncio.timeout(PATIENCE):
            assert await settle(engine, leases[:1]) == 1
            assert await engine.renew([leases[1].receipt]) == ["lost"]
        relay.cut()
        relay.passing.set()
        again = await take(engine, "t")
        assert leases[1].id in {lease.id for lease in again}


async def test_what_is_no_beanstalkd_is_down(make: Make) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"OUT_OF_MEMORY\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        with pytest.raises(ConfigError, match="does not say who it is, but OUT_OF_MEMORY"):
            await make(Address(*server.sockets[0].getsockname()[:2]))
