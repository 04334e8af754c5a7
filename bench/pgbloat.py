"""How large PostgreSQL's tables get under steady load, while another session holds a transaction open.

python bench/pgbloat.py                                  # 30 minutes; the second third with the transaction
python bench/pgbloat.py --minutes 12 --rate 500
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from psycopg import AsyncConnection

import machine
from kqs.core.job import NO_OPTIONS, NewJob
from kqs.core.outcome import Settlement
from kqs.engines.postgres import PostgresEngine, migrate
from kqs.engines.postgres import open as open_engine
from kqs.settings.engines import PostgresConfig
from kqs.testing.postgres import PostgresServer

#: Seconds between two batches of inserts.
BEAT = 0.1
SIZES = (
    "SELECT pg_table_size('kqs.job'), pg_indexes_size('kqs.job'), pg_total_relation_size('kqs.done'),"
    " n_dead_tup, n_live_tup, vacuum_count + autovacuum_count"
    " FROM pg_stat_user_tables WHERE schemaname = 'kqs' AND relname = 'job'"
)
HEAD = """\
                 jobs   late  insert to done, ms       job, MiB            dead     live             done
 minute        done/s  beats   median      p99     table   indexes       rows     rows  vacuums       MiB"""


class _Clock:
    def now(self) -> int:
        return time.time_ns() // 1000


@dataclass
class Run:
    """One run: what was inserted when, and how long each job took since the last look."""

    rate: int
    over: asyncio.Event = field(default_factory=asyncio.Event)
    inserted: dict[str, float] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)
    late: int = 0

    async def insert(self, engine: PostgresEngine) -> None:
        job = NewJob("mail", b'"' + b"x" * 98 + b'"', False, 2, 0, 30_000, NO_OPTIONS)
        batch = [job] * round(self.rate * BEAT)
        at = time.monotonic()
        while not self.over.is_set():
            at += BEAT
            if (pause := at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            else:
                self.late += 1
            begun = time.monotonic()
            for id in (await engine.put(batch)).ids:
                self.inserted.setdefault(id, begun)

    async def work(self, engine: PostgresEngine) -> None:
        while not self.over.is_set():
            leases = await engine.reserve((), 500, holder="w")
            if not leases:
                await asyncio.sleep(0.01)
                continue
            assert await engine.settle([Settlement(lease.receipt, "ok") for lease in leases]) == []
            now = time.monotonic()
            self.took += [now - self.inserted.pop(lease.id, now) for lease in leases]

    async def tick(self, engine: PostgresEngine) -> None:
        while not self.over.is_set():
            await engine.tick()
            await asyncio.sleep(0.02)


async def look(connection: AsyncConnection, run: Run, seconds: float, begun: float, held: bool) -> None:
    """A line of the table: what is there now, and what was done since the last one."""
    cursor = await connection.execute(SIZES)
    row = await cursor.fetchone()
    assert row is not None
    table, indexes, done, dead, live, vacuums = row
    took, run.took = sorted(run.took), []
    late, run.late = run.late, 0
    median = statistics.median(took) * 1000 if took else 0
    high = took[len(took) * 99 // 100] * 1000 if took else 0
    columns = [
        f"{(time.monotonic() - begun) / 60:7.1f}",
        f"{'held' if held else '':4}",
        f"{len(took) / seconds:8,.0f}",
        f"{late:5}",
        f"{median:7.1f}",
        f"{high:7.1f}",
        f"{table / 2**20:8.1f}",
        f"{indexes / 2**20:8.1f}",
        f"{dead:9,}",
        f"{live:7,}",
        f"{vacuums:7}",
        f"{done / 2**20:8.1f}",
    ]
    print("  ".join(columns), flush=True)


async def measure(server: PostgresServer, args: argparse.Namespace) -> None:
    async with await AsyncConnection.connect(server.url, autocommit=True) as connection:
        await migrate(connection)
        config = PostgresConfig(url=server.url)
        engine = await open_engine(config, _Clock(), random=random.random, nonce=random.getrandbits)
        run = Run(args.rate)
        tasks = [asyncio.ensure_future(run.insert(engine)), asyncio.ensure_future(run.tick(engine))]
        tasks += [asyncio.ensure_future(run.work(engine)) for _ in range(2)]
        print(HEAD)
        begun = at = time.monotonic()
        third = args.minutes * 20
        holder = await AsyncConnection.connect(server.url)
        held = False
        while at < begun + args.minutes * 60:
            at += args.every
            await asyncio.wait(tasks, timeout=at - time.monotonic())
            await look(connection, run, args.every, begun, held)
            for task in tasks:
                with suppress(asyncio.InvalidStateError):
                    task.result()  # one that failed ends the run
            wanted = begun + third <= at < begun + 2 * third
            if wanted and not held:
                await holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                await holder.execute("SELECT count(*) FROM kqs.cluster")
            elif held and not wanted:
                await holder.rollback()
            held = wanted
        run.over.set()
        await asyncio.gather(*tasks)
        await holder.close()
        await engine.close()


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=int, default=2000, help="jobs inserted a second")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two lines")
    args = parser.parse_args()
    print(machine.describe("."))
    print(machine.load())
    print(
        f"{args.rate:,} jobs a second, {args.minutes:g} minutes; held: another session's transaction is open"
    )
    server = PostgresServer()
    server.start()
    try:
        asyncio.run(measure(server, args))
    finally:
        server.close()


if __name__ == "__main__":
    main()
