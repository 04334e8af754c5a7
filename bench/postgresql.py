"""Insert to done through the PostgreSQL engine, beside the plainest queue on PostgreSQL, and procrastinate.

Batches of 1,000 in, 500 out at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from psycopg import AsyncConnection

import machine
from kqs.core.job import NO_OPTIONS, NewJob
from kqs.core.outcome import Settlement
from kqs.engines.postgres import PostgresEngine, migrate
from kqs.engines.postgres import open as open_engine
from kqs.settings.engines import PostgresConfig
from kqs.testing.postgres import PostgresServer

JOBS = 150_000
ROUNDS = 3
HERE = Path(__file__).parent


class _Clock:
    def now(self) -> int:
        return time.time_ns() // 1000


async def _insert(engine: PostgresEngine, batches: list[int]) -> None:
    job = NewJob("mail", b'"' + b"x" * 98 + b'"', False, 2, 0, 30_000, NO_OPTIONS)
    while batches:
        batches.pop()
        await engine.put([job] * 1000)


async def _work(engine: PostgresEngine, done: list[int]) -> None:
    while sum(done) < JOBS:
        leases = await engine.reserve((), 500, holder="w")
        if not leases:
            await asyncio.sleep(0.005)
            continue
        assert await engine.settle([Settlement(lease.receipt, "ok") for lease in leases]) == []
        done.append(len(leases))


async def _engine(server: PostgresServer) -> float:
    """Seconds of KQS's engine: insert, lease, ack."""
    async with await AsyncConnection.connect(server.url, autocommit=True) as connection:
        await migrate(connection)
    config = PostgresConfig(url=server.url)
    engine = await open_engine(config, _Clock(), random=random.random, nonce=random.getrandbits)
    begin = time.perf_counter()
    batches = list(range(JOBS // 1000))
    done: list[int] = []
    inserts = [_insert(engine, batches) for _ in range(4)]
    await asyncio.gather(*inserts, *(_work(engine, done) for _ in range(4)))
    took = time.perf_counter() - begin
    await engine.close()
    return took


_TAKE = """
DELETE FROM raw WHERE id IN (SELECT id FROM raw ORDER BY id LIMIT 500 FOR UPDATE SKIP LOCKED)
    RETURNING id, data
"""


async def _raw(server: PostgresServer) -> float:
    """Seconds of COPY in, and 500 rows at a time deleted as they are taken: no leases, no retries."""
    async with await AsyncConnection.connect(server.url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE raw (id bigserial PRIMARY KEY, data bytea NOT NULL)")
    batches, done = list(range(JOBS // 1000)), list[int]()

    async def insert() -> None:
        async with await AsyncConnection.connect(server.url, autocommit=True) as connection:
            while batches:
                batches.pop()
                async with connection.cursor() as cursor, cursor.copy("COPY raw (data) FROM STDIN") as into:
                    await into.write((b"x" * 100 + b"\n") * 1000)

    async def work() -> None:
        async with await AsyncConnection.connect(server.url, autocommit=True) as connection:
            while sum(done) < JOBS:
                cursor = await connection.execute(_TAKE.encode(), binary=True)
                if rows := await cursor.fetchall():
                    done.append(len(rows))
                else:
                    await asyncio.sleep(0.005)

    begin = time.perf_counter()
    await asyncio.gather(*(insert() for _ in range(4)), *(work() for _ in range(4)))
    return time.perf_counter() - begin


async def _procrastinate(server: PostgresServer, venv: str) -> float:
    """Seconds of procrastinate for a thirtieth of the jobs, times thirty."""
    program = [f"{venv}/bin/python", f"{HERE}/procrastinatejobs.py", server.url, str(JOBS // 30)]
    ran = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    out, _none = await ran.communicate()
    if ran.returncode:
        raise SystemExit("procrastinate failed")
    return float(out) * 30


async def once(run: Callable[[PostgresServer], Awaitable[float]]) -> float:
    """Jobs a second, on a PostgreSQL of its own."""
    server = PostgresServer()
    server.start()
    try:
        return JOBS / await run(server)
    finally:
        server.close()


def main() -> None:
    """All of them in turn, several times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", metavar="VENV", help="compare with procrastinate in there; see README.md")
    venv = parser.parse_args().peers
    systems: dict[str, Callable[[PostgresServer], Awaitable[float]]] = {
        "KQS, leases and acks": _engine,
        "raw COPY and DELETE .. SKIP LOCKED": _raw,
    }
    if venv:
        systems["procrastinate, 100 at once"] = lambda server: _procrastinate(server, venv)
    print(machine.describe("."))
    print(machine.load())
    print(f"{JOBS:,} jobs of 100 bytes, insert to done, every commit synced; {ROUNDS} rounds, medians:")
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(ROUNDS):
        for name, run in systems.items():
            rates[name].append(asyncio.run(once(run)))
    own = statistics.median(next(iter(rates.values())))
    for name, runs in rates.items():
        median = statistics.median(runs)
        each = ", ".join(f"{rate:,.0f}" for rate in runs)
        print(f"{name:36} {median:>9,.0f} jobs/s  KQS is {own / median:.2f} x  ({each})")


if __name__ == "__main__":
    main()
