"""What is done with the engine and seen of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from kqs.core.outcome import OutcomeName, Settlement
from kqs.engines.beanstalk import BeanstalkEngine
from kqs.engines.beanstalk.client import Connection
from kqs.ports import Lease
from kqs.testing.beanstalkd import Beanstalkd
from tests.support import PATIENCE

Make = Callable[..., Awaitable[BeanstalkEngine]]
Begin = Callable[..., Beanstalkd]
Other = Callable[[Beanstalkd], Awaitable[Connection]]


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not check():
            await asyncio.sleep(0.01)


async def take(engine: BeanstalkEngine, *types: str, limit: int = 10, count: int = 1) -> list[Lease]:
    """So many jobs of these types, asking again and again."""
    leases: list[Lease] = []
    async with asyncio.timeout(PATIENCE):
        while len(leases) < count:
            leases += await engine.reserve(types, limit, holder="worker")
            await asyncio.sleep(0.005)
    return leases


async def settle(engine: BeanstalkEngine, leases: Sequence[Lease], outcome: OutcomeName = "ok") -> int:
    """End leases; returns how many were refused."""
    return len(await engine.settle([Settlement(lease.receipt, outcome) for lease in leases]))


def listen(engine: BeanstalkEngine, *wanted: str) -> asyncio.Event:
    """An event that is set when somebody who waits for these types is woken."""
    woken = asyncio.Event()
    engine.on_ready(lambda types: woken.set() if not types or set(wanted) & set(types) else None)
    return woken


async def rings(woken: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE):
        await woken.wait()
