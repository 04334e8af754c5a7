"""Jobs through the beanstalkd engine, from insert to done, beside raw commands on the same beanstalkd.

Both use the same client on a uvloop. Raw: ``put``, ``reserve`` and ``delete`` in batches, pipelined, on two
connections. The engine: journaled and synced here, fed into the tube, leased, settled. See README.md here.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from random import SystemRandom

import uvloop

import machine
from kqs.core.job import NO_OPTIONS, NewJob
from kqs.core.outcome import Settlement
from kqs.engines.beanstalk import BeanstalkEngine
from kqs.engines.beanstalk.client import connect
from kqs.engines.beanstalk.protocol import RESERVE, delete, put, use, watch
from kqs.errors import EngineAway
from kqs.journal.disk import RealDisk, ThreadExecutor
from kqs.journal.log import Journal
from kqs.journal.scan import Apply
from kqs.service.clock import SystemClock
from kqs.testing.beanstalkd import Beanstalkd
from table import table

JOBS = 50_000
BATCH = 500
ROUNDS = 5
PAYLOAD = b'"%s"' % (b"x" * 98)
TARGET = 0.5
FLAGS = (
    ("-f 0 (synced at every write)", ["-f", "0"]),
    ("-f 50 (synced now and then; default)", ["-f", "50"]),
)


async def raw(server: Beanstalkd) -> float:
    """Jobs a second."""
    address = server.address
    producer, consumer = [await connect(address.host, address.port, 5.0) for _ in range(2)]
    await producer.ask(use(b"raw"))
    await consumer.ask(watch(b"raw"))

    async def produce() -> None:
        for _ in range(0, JOBS, BATCH):
            await producer.send([put(10000, 0, 60, PAYLOAD)] * BATCH)

    async def consume() -> None:
        done = 0
        while done < JOBS:
            replies = await consumer.send([RESERVE] * BATCH)
            numbers = [reply.number for reply in replies if reply.word == b"RESERVED"]
            if numbers:
                await consumer.send([delete(number) for number in numbers])
                done += len(numbers)
            else:
                await asyncio.sleep(0.001)

    began = time.perf_counter()
    await asyncio.gather(produce(), consume())
    took = time.perf_counter() - began
    producer.close()
    consumer.close()
    return JOBS / took


async def through_the_engine(server: Beanstalkd) -> float:
    """Jobs a second."""
    folder = tempfile.mkdtemp(prefix="kqs-bench-", dir=".")
    random = SystemRandom()
    executor = ThreadExecutor(asyncio.get_running_loop())
    clock = SystemClock()

    def open_journal(apply: Apply) -> Journal:
        return Journal.open(RealDisk(), executor, folder, apply, now=clock.now())

    engine = await BeanstalkEngine.open(
        open_journal, clock, [server.address], random=random.random, nonce=random.getrandbits
    )
    ready = asyncio.Event()
    engine.on_ready(lambda types: ready.set())

    async def produce() -> None:
        for _ in range(0, JOBS, BATCH):
            await engine.put([NewJob("bench", PAYLOAD, False, 2, 0, 60_000, NO_OPTIONS)] * BATCH)

    async def consume() -> None:
        done = 0
        while done < JOBS:
            ready.clear()
            try:
                leases = await engine.reserve(("bench",), BATCH, holder="bench")
            except EngineAway:
                continue
            if leases:
                await engine.settle([Settlement(lease.receipt, "ok") for lease in leases])
                done += len(leases)
            else:
                await ready.wait()

    began = time.perf_counter()
    await asyncio.gather(produce(), consume())
    took = time.perf_counter() - began
    await engine.close()
    shutil.rmtree(folder)
    return JOBS / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds: int = parser.parse_args().rounds
    print(machine.describe("."))
    print(machine.load())
    rows = []
    for title, flags in (
        ("-f 0 (synced at every write)", ["-f", "0"]),
        ("-f 50, its default (synced at most every 50 ms)", ["-f", "50"]),
    ):
        rates: dict[str, list[float]] = {"raw": [], "engine": []}
        ways: dict[str, Callable[[Beanstalkd], object]] = {"raw": raw, "engine": through_the_engine}
        for _ in range(rounds):
            for name, way in ways.items():
                server = Beanstalkd(flags)
                server.start()
                try:
                    rates[name].append(uvloop.run(way(server)))  # type: ignore[arg-type]
                finally:
                    server.discard()
        medians = {name: statistics.median(found) for name, found in rates.items()}
        ratio = medians["engine"] / medians["raw"]
        rows.append([title, f"{medians['raw']:,.0f}", f"{medians['engine']:,.0f}", f"{ratio:.2f} x"])
    print(table(["beanstalkd's binlog", "raw, jobs/s", "engine, jobs/s", f"ratio (goal {TARGET} x)"], rows))


if __name__ == "__main__":
    main()
