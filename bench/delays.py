"""How late delayed jobs come, and what others feel when very many are due at once. See README.md here."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import machine
import servers
from fairness import Pinger
from kqs import Client
from table import table
from tenants import Runs, environment

BATCH = 1000
#: Seconds over which the jobs are due, and from when on.
SPREAD, FROM = 10.0, 5.0
#: Of the jobs, as many are run by workers: one for each of these.
OF_WORKERS = 5
#: Seconds from the insert until the jobs are due that find no server.
DOWN = 8.0

CONFIG = """
[pools.default]
processes = 2
[handlers.delayed]
python = "tenantjobs:delayed"
"""


def spread(client: Client, jobs: int, type: str) -> None:
    """Insert jobs that become due one after the other; their data is their delay."""
    begun = time.monotonic()
    for first in range(0, jobs, BATCH):
        passed = time.monotonic() - begun
        delays = [FROM + number * SPREAD / jobs - passed for number in range(first, min(first + BATCH, jobs))]
        client.insert_many([{"type": type, "delay": delay, "data": delay} for delay in delays])


def of_reserve(url: str, jobs: int) -> list[float]:
    """Seconds from a job's time to the answer of the ``reserve`` that has it."""
    taken: list[tuple[float, list[dict[str, Any]]]] = []
    with Client(url) as client, Client(url) as other, ThreadPoolExecutor(1) as settler:
        spread(client, jobs, "reserved")
        count = 0
        while count < jobs:
            leases = client.call("reserve", {"types": ["reserved"], "max": BATCH, "wait": 30})["jobs"]
            taken.append((time.time(), leases))
            count += len(leases)
            ends = [{"receipt": lease["receipt"], "outcome": "ok"} for lease in leases]
            settler.submit(other.call, "settle", ends)
    return [
        now - dt.datetime.fromisoformat(lease["inserted_at"]).timestamp() - lease["data"]
        for now, leases in taken
        for lease in leases
    ]


def of_handler(url: str, jobs: int, ran: str) -> list[float]:
    """Seconds from a job's time to the run of its handler."""
    runs = Runs(ran)
    with Client(url) as client:
        spread(client, jobs, "delayed")
        runs.wait("D", jobs)
    return [at - due for _who, due, at in runs.spans]


def lateness(jobs: int, folder: str) -> list[list[str]]:
    """Rows of the first table."""
    ran, config = f"{folder}/ran", f"{folder}/kqs.toml"
    open(ran, "wb").close()
    with open(config, "w", encoding="utf-8") as file:
        file.write(CONFIG)
    rows = []
    data = f"{folder}/lateness"
    with servers.kqs_on(data, "--config", config, env=environment(BENCH_RAN=ran)) as server:
        url = f"kqs://127.0.0.1:{server.port}"
        few = jobs // OF_WORKERS
        for name, count, late in (
            ("at the reserve", jobs, of_reserve(url, jobs)),
            ("at the handler", few, of_handler(url, few, ran)),
        ):
            rows.append([f"{count:,} over {SPREAD:g} s, {name}", *shown(late), f"{min(late) * 1000:.1f} ms"])
    return rows


def shown(seconds: Sequence[float]) -> list[str]:
    cuts = statistics.quantiles(seconds, n=100)
    return [f"{value * 1000:.1f} ms" for value in (cuts[49], cuts[98], max(seconds))]


def downtime(jobs: int, folder: str) -> list[str]:
    """The row of the second table."""
    data = f"{folder}/downtime"
    with servers.kqs_on(data) as server, Client(f"kqs://127.0.0.1:{server.port}") as client:
        due = time.monotonic() + DOWN
        for _ in range(jobs // BATCH):
            job = {"type": "down", "delay": due - time.monotonic()}
            client.insert_many([job] * BATCH)
    time.sleep(max(0.0, due - time.monotonic()))
    with servers.kqs_on(data) as server:
        begun = time.perf_counter()
        pinger = Pinger(server.port)
        stop, told = socket.socketpair()
        waited: list[float] = []
        waiting: list[int] = []

        def watch() -> None:
            with Client(f"kqs://127.0.0.1:{server.port}") as client:
                while left := counts(client)["delayed"]:
                    waiting.append(left)
                    time.sleep(0.01)
                waited.append(time.perf_counter() - begun)
                assert counts(client)["ready"] == jobs // BATCH * BATCH
            told.send(b"x")

        thread = threading.Thread(target=watch)
        thread.start()
        pinger.until(stop)
        thread.join()
    first = f"{max(waiting, default=0):,}"
    return [f"{jobs:,}", first, f"{waited[0]:.2f} s", f"{len(pinger.took)}", *shown(pinger.took)]


def counts(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.call("stats", {"type": "down"})["jobs"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs that are due one by one [100000]")
    parser.add_argument("--down", type=int, default=200_000, help="jobs that are due at once [200000]")
    parser.add_argument("--dir", default=None, help="where the server keeps its data [the temporary one]")
    given = parser.parse_args()
    os.environ.setdefault("BENCH_RAN", os.devnull)
    sys.path.insert(0, servers.HERE)
    busy = machine.load()
    with tempfile.TemporaryDirectory(prefix="bench-delays-", dir=given.dir) as folder:
        print(f"machine: {machine.describe(folder)}; {busy}")
        rows = lateness(given.jobs, folder)
        print("\nhow late a delayed job comes\n")
        print(table(("jobs due", "p50", "p99", "max", "earliest"), rows))
        row = downtime(given.down, folder)
    print("\na ping every 10 ms while jobs are released that were due when the server was down\n")
    print(table(("jobs due", "seen waiting", "released in", "pings", "p50", "p99", "max"), [row]))


if __name__ == "__main__":
    main()
