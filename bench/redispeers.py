"""Job queues on Redis, for ``tenants.py``: their workers import this file, and it inserts their jobs.

``BENCH_PEER`` names the one, ``BENCH_REDIS`` the server's URL. As a program it inserts ``COUNT`` jobs of
``WHO``, of ``SECONDS`` each, for every line ``WHO COUNT SECONDS`` on stdin, and answers when they are in.
One queue for everybody, as each of them has it by default.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from tenantjobs import awork, work

PEER, URL = os.environ["BENCH_PEER"], os.environ["BENCH_REDIS"]
#: Jobs in a call, of those that take many.
BATCH = 1000

insert: Callable[[str, int, float], Any]

if PEER == "rq":
    from redis import Redis
    from rq import Queue

    queue = Queue("default", connection=Redis.from_url(URL))

    def insert(who: str, count: int, seconds: float) -> None:
        for first in range(0, count, BATCH):
            some = min(BATCH, count - first)
            queue.enqueue_many([Queue.prepare_data(work, (who, seconds)) for _ in range(some)])

elif PEER == "dramatiq":
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    dramatiq.set_broker(RedisBroker(url=URL))
    actor = dramatiq.actor(work)

    def insert(who: str, count: int, seconds: float) -> None:
        for _ in range(count):
            actor.send(who, seconds)

elif PEER == "huey":
    from huey import RedisHuey

    huey = RedisHuey("tenants", url=URL)
    task = huey.task()(work)

    def insert(who: str, count: int, seconds: float) -> None:
        for _ in range(count):
            task(who, seconds)

elif PEER == "saq":
    from saq import Queue as SaqQueue

    async def saq_work(_context: Any, *, who: str, seconds: float) -> None:
        await awork(who, seconds)

    saq_queue = SaqQueue.from_url(URL)
    settings = {"queue": saq_queue, "functions": [saq_work]}

    async def insert(who: str, count: int, seconds: float) -> None:
        for _ in range(count):
            await saq_queue.enqueue("saq_work", who=who, seconds=seconds)


async def serve() -> None:
    """Insert what stdin says."""
    print("ready", flush=True)
    for line in sys.stdin:
        who, count, seconds = line.split()
        done = insert(who, int(count), float(seconds))
        if done is not None:
            await done
        print("inserted", flush=True)


if __name__ == "__main__":
    asyncio.run(serve())
