"""Who is woken when a job is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from time import sleep
from typing import Any, cast

import pytest

from kqs.ports import Engine, Lease
from kqs.service.dispatch import Dispatch

TYPES = frozenset({"t"})


class OneJob:
    """An engine with a job that becomes ready when a test says so."""

    def __init__(self) -> None:
        self.ready = False
        self.wake: Callable[[Collection[str]], None] = lambda types: None

    def on_ready(self, wake: Callable[[Collection[str]], None]) -> None:
        self.wake = wake

    async def reserve(self, types: frozenset[str], limit: int, **_more: Any) -> list[Lease]:
        if not self.ready:
            return []
        self.ready = False
        return cast("list[Lease]", ["the lease"])

    def insert(self) -> None:
        self.ready = True
        self.wake(TYPES)


async def parked(dispatch: Dispatch, asker: str, wait: float = 60.0) -> asyncio.Task[list[Lease]]:
    """A reserve that waits."""
    before = dispatch.waiting
    reserve = dispatch.reserve(TYPES, 1, wait, asker=asker, holder=asker, local=False)
    task = asyncio.create_task(reserve)
    while dispatch.waiting == before:
        await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("how", ["gone", "late"])
async def test_a_waiter_that_is_leaving_takes_no_wake_up_from_the_next(how: str) -> None:
    """In one turn of the loop the first waiter is told that its wait is over, and a job comes."""
    engine = OneJob()
    dispatch = Dispatch(cast(Engine, engine))
    leaving = await parked(dispatch, "first", wait=0.01 if how == "late" else 60.0)
    staying = await parked(dispatch, "second")
    if how == "gone":
        dispatch.dismiss("first")
        engine.insert()
    else:
        # Timers that are due together fire in one turn, in the order of their times.
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, engine.insert)
        loop.call_soon(sleep, 0.03)
    async with asyncio.timeout(10):
        assert await staying == ["the lease"]
        assert await leaving == []
