"""beanstalkds, engines on them, and programs beside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from random import Random

import pytest

from kqs.engines.beanstalk import BeanstalkEngine
from kqs.engines.beanstalk.client import Connection, connect
from kqs.engines.beanstalk.pool import Address
from kqs.journal.log import Journal
from kqs.journal.scan import Apply
from kqs.service.clock import SystemClock
from kqs.testing.beanstalkd import Beanstalkd
from kqs.testing.disk import SimDisk
from kqs.testing.executor import InlineExecutor
from tests.support import PATIENCE

from .support import Begin, Make


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts beanstalkds."""
    begun: list[Beanstalkd] = []

    def begin(*flags: str, binlog: bool = True) -> Beanstalkd:
        server = Beanstalkd(flags, binlog=binlog)
        begun.append(server)
        server.start()
        return server

    yield begin
    for server in begun:
        server.discard()


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Opens engines on servers at these addresses."""
    engines: list[BeanstalkEngine] = []
    random = Random(0)

    async def make(*addresses: Address, **settings: float) -> BeanstalkEngine:
        disk, clock, loop = SimDisk(len(engines)), SystemClock(), asyncio.get_running_loop()
        disk.makedirs("/data")

        def open_journal(apply: Apply) -> Journal:
            return Journal.open(
                disk, InlineExecutor(loop), "/data", apply, now=clock.now(), random=random.randbytes
            )

        engine = await BeanstalkEngine.open(
            open_journal,
            clock,
            addresses,
            random=random.random,
            nonce=random.getrandbits,
            **settings,
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        await engine.close()


@pytest.fixture
async def other(begin: Begin) -> AsyncIterator[Callable[[Beanstalkd], Awaitable[Connection]]]:
    """Connections of a program that is not KQS."""
    made: list[Connection] = []

    async def other(server: Beanstalkd) -> Connection:
        made.append(await connect(server.address.host, server.address.port, PATIENCE))
        return made[-1]

    yield other
    for connection in made:
        connection.close()
