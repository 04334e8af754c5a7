"""An App for ``--app shop:app``."""

from __future__ import annotations

import asyncio
import contextvars
import os
from dataclasses import dataclass

from kqs import Again, App, Fail, Job

app = App()


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


@app.job("add", ttr=60, prio="high", max_attempts=5)
def add(a: int, b: int = 10) -> int:
    say("add", a + b)
    return a + b


@dataclass
class Item:
    name: str
    price: float


@app.job("order")
def order(items: list[Item], job: Job, note: str | None = None) -> None:
    say("order", job.id, sum(item.price for item in items), type(items[0]).__name__, note)


@app.job("raw")
def raw(data: bytes) -> None:
    say("raw", len(data), data[:4])


@app.job("anything")
def anything(**data: object) -> None:
    say("anything", sorted(data.items()))


@app.job
async def later(seconds: float, job: Job) -> None:
    await asyncio.sleep(seconds)
    say("later", job.id, job.attempt, id(asyncio.get_running_loop()))


@app.job("async.fail", retry={"backoff": "fixed", "base": 0, "jitter": 0})
async def async_fail(job: Job) -> None:
    await asyncio.sleep(0)
    if job.attempt == 1:
        raise Again("once more")
    if job.attempt == 2:
        raise RuntimeError("in a coroutine")
    raise Fail("enough")


_seen = contextvars.ContextVar("seen", default="nothing")


@app.job("context")
async def context(job: Job) -> None:
    say("context", job.id, _seen.get())
    _seen.set(job.id)


@app.job("task.left")
async def task_left(job: Job) -> None:
    """Leave a task behind that would go on for ever."""

    async def forever() -> None:
        while True:
            await asyncio.sleep(3600)

    asyncio.create_task(forever())  # noqa: RUF006 - dropped on purpose
    say("task.left", job.id)
