"""A long backlog: memory a job, insert rate as it grows, and the time a restart with it takes.

    python bench/backlog.py [--jobs 10000000] [--dir DIR]

Jobs of 100 bytes are inserted in calls of 1,000 over one connection. After every tenth of them the same
sample is inserted in turn into this server and into a new one without a backlog; the ratio is the median of
these pairs. Resident memory is the server process's, as its ``stats`` tell it.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from typing import Any

import machine
import servers
from kqs.client import Client

BATCH = 1000
WINDOW = 8
SAMPLE = 200  # batches
PAIRS = 3
PAYLOAD = '{"x":"' + "a" * 92 + '"}'


def insert(port: int, calls: int) -> float:
    """Insert ``calls`` batches, a few on their way at once; returns jobs per second."""
    job = '{"type":"bench","data":' + PAYLOAD + "}"
    line = ('{"v":1,"id":"1","n":"insert","m":[' + ",".join([job] * BATCH) + "]}\n").encode()
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        sent = answered = 0
        while answered < calls:
            while sent < calls and sent - answered < WINDOW:
                connection.sendall(line)
                sent += 1
            data = connection.recv(1 << 20)
            if not data or b'"_isError__"' in data:
                raise SystemExit(f"refused after {answered * BATCH} jobs: {data[:300]!r}")
            answered += data.count(b"\n")
    return calls * BATCH / (time.perf_counter() - began)


def stats(port: int) -> dict[str, Any]:
    with Client(f"kqs://127.0.0.1:{port}", timeout=60) as client:
        return client.stats()


def first_job(port: int) -> None:
    """Reserve one job."""
    with Client(f"kqs://127.0.0.1:{port}", timeout=60) as client:
        assert client.call("reserve", {"wait": 30})["jobs"]


def compare(port: int, folder: str | None) -> tuple[float, float]:
    """Insert rates of the server with the backlog and of a new one, one after the other, medians of pairs."""
    long: list[float] = []
    empty: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-empty-", dir=folder) as data, servers.kqs_on(data) as new:
        insert(new.port, 20)  # warm
        for _ in range(PAIRS):
            long.append(insert(port, SAMPLE))
            empty.append(insert(new.port, SAMPLE))
    return statistics.median(long), statistics.median(
        mine / other for mine, other in zip(long, empty, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10_000_000)
    parser.add_argument("--dir", default=None, help="where the data goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-backlog-", dir=arguments.dir) as data:
        print(machine.describe(data))
        fill = max(0, arguments.jobs // 10 // BATCH - PAIRS * SAMPLE)
        print(f"{'jobs':>12} {'inserts/s':>10} {'of an empty':>12} {'resident MB':>12} {'estimated MB':>12}")
        with servers.kqs_on(data) as server:
            for _ in range(10):
                insert(server.port, fill)
                rate, ratio = compare(server.port, arguments.dir)
                now = stats(server.port)
                print(
                    f"{now['jobs']['ready']:>12,} {rate:>10,.0f} {ratio:>12.2f} "
                    f"{now['process']['rss_bytes'] / 1e6:>12.0f} {now['memory']['bytes'] / 1e6:>12.0f}",
                    flush=True,
                )
            entries = now["journal"]["last_seq"]
        began = time.perf_counter()
        with servers.kqs_on(data) as server:
            first_job(server.port)
            took = time.perf_counter() - began
            resident = stats(server.port)["process"]["rss_bytes"] / 1e6
        size = sum(entry.stat().st_size for entry in os.scandir(f"{data}/journal"))
        print(
            f"restart: first job leased after {took:.1f} s ({entries / took:,.0f} entries/s, start of "
            f"the process included), {resident:.0f} MB resident; {size / 1e6:,.0f} MB in the journal folder"
        )


if __name__ == "__main__":
    main()
