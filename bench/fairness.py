"""How long a ping takes while another connection has 100,000 calls under way. See README.md here."""

from __future__ import annotations

import argparse
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import loadgen
import machine
import servers
from subjects import kqs_calls
from table import table

CALLS = 100_000
EVERY = 0.01
TARGET = 0.05
PING = b'{"v":1,"id":"p","n":"ping"}\n'


def pings(count: int) -> bytes:
    return b"".join(b'{"v":1,"id":"%08d","n":"ping"}\n' % number for number in range(count))


def echoes(count: int) -> bytes:
    line = b'{"v":1,"id":"%08d","n":"echo","m":{"text":"%b"}}\n'
    return b"".join(line % (number, b"-" * 89) for number in range(count))


BURSTS = {
    "insert": lambda count: kqs_calls(10**7, count, 1),
    "echo": echoes,
    "ping": pings,
}


def burst(port: int, kind: str) -> None:
    """The other connection, in a process of its own: everything at once, again for every line on stdin."""
    load = loadgen.Load(BURSTS[kind](CALLS), CALLS, CALLS)
    print("made", flush=True)
    for _ in sys.stdin:
        print(loadgen.run(port, [load], lambda replies: replies.count(b'"e":null')), flush=True)


class Pinger:
    """Pings on a connection of its own every 10 ms, whether or not the one before is answered.

    Times count from when a ping was due, so that a late one is not taken for a quick one.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._due: list[float] = []
        self.took: list[float] = []

    def until(self, stop: object) -> None:
        """Ping until ``stop`` (anything select takes) is readable and every ping is answered.

        Args:
            stop: None for a second of pings.
        """
        watched = [self._socket] if stop is None else [self._socket, stop]
        end = time.perf_counter() + 1 if stop is None else None
        due = time.perf_counter()
        while True:
            now = time.perf_counter()
            if end is not None and now >= end and not self._due:
                return
            if (end is None or now < end) and now >= due:
                self._due.append(due)
                self._socket.sendall(PING)
                due += EVERY
            readable, _, _ = select.select(watched, [], [], max(0.0, due - time.perf_counter()))
            if self._socket in readable:
                now = time.perf_counter()
                for _ in range(self._socket.recv(65536).count(b"\n")):
                    self.took.append(now - self._due.pop(0))
            if stop in readable:
                end = 0.0


def measure(kind: str, rounds: int, directory: str) -> tuple[list[float], list[float]]:
    """Pings during bursts.

    Returns:
        Seconds each ping took, and seconds each burst took.
    """
    lasted: list[float] = []
    with servers.kqs(directory) as server:
        pinger = Pinger(server.port)
        if kind == "nothing":
            for _ in range(rounds):
                pinger.until(None)
            return pinger.took, [1.0]
        argv = [sys.executable, __file__, "--burst", kind, "--port", str(server.port)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            other.stdout.readline()
            for _ in range(rounds):
                other.stdin.write("go\n")
                other.stdin.flush()
                pinger.until(other.stdout)
                lasted.append(float(other.stdout.readline()))
            other.stdin.close()
    return pinger.took, lasted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="bursts of each kind [5]")
    parser.add_argument("--dir", default=None, help="where the server keeps its data [the temporary one]")
    parser.add_argument("--kinds", nargs="+", choices=["nothing", *BURSTS], help="beside what [all]")
    parser.add_argument("--burst", choices=BURSTS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.burst:
        burst(given.port, given.burst)
        return
    busy = machine.load()
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.dir) as directory:
        for kind in given.kinds or ("nothing", *BURSTS):
            took, lasted = measure(kind, given.rounds, directory)
            cuts = statistics.quantiles(took, n=100)
            rows.append(
                [
                    kind if kind == "nothing" else f"{CALLS:,} x {kind}",
                    f"{statistics.median(lasted):.2f} s",
                    f"{len(took)}",
                    *(f"{seconds * 1000:.1f} ms" for seconds in (cuts[49], cuts[98], max(took))),
                    "yes" if cuts[98] < TARGET else "NO",
                ]
            )
        print(f"machine: {machine.describe(directory)}; {busy}")
    print(
        f"a ping every {EVERY * 1000:.0f} ms beside bursts on one other connection, {given.rounds} of each\n"
    )
    print(table(("beside", "burst", "pings", "p50", "p99", "max", f"p99 < {TARGET * 1000:.0f} ms"), rows))


if __name__ == "__main__":
    main()
