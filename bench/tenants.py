"""How long a small tenant waits beside the backlog of a big one: KQS, and queues on Redis. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import machine
import servers
from kqs import Client
from table import table

#: The job's time, seconds: slept, so that the work itself takes no processor from anybody.
JOB = 0.0015
SLOW = 10 * JOB
#: Jobs of the small tenant, how often they are run alone, and what their wait may be of their time alone.
FEW = 100
ALONE = 5
TARGET = 3.0
#: Jobs in an insert call.
BATCH = 1000
WORKERS = 2
#: When two insert all the time: for how long, from when on it counts, how often; and jobs a second of each.
LASTS, WARM, EVERY = 15.0, 3.0, 0.1
RATES = {"A": 4000, "B": 1000}

CONFIG = """
[scheduler]
order = "{order}"
[pools.default]
processes = {workers}
[handlers.work]
python = "tenantjobs:kqs"
"""

Insert = Callable[[str, int, float], None]
Hold = Callable[[], contextlib.AbstractContextManager[object]]


class Runs:
    """What the jobs wrote down.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        from tenantjobs import RECORD

        self._record = RECORD
        self._file = open(path, "rb")  # noqa: SIM115
        self._rest = b""
        self.ended: dict[str, list[float]] = {who: [] for who in "ABWD"}
        self.spans: list[tuple[str, float, float]] = []

    def look(self) -> None:
        """Read what is new."""
        data = self._rest + self._file.read()
        whole = len(data) - len(data) % self._record.size
        self._rest = data[whole:]
        for who, begun, ended in self._record.iter_unpack(data[:whole]):
            self.ended[who.decode()].append(ended)
            self.spans.append((who.decode(), begun, ended))

    def wait(self, who: str, count: int, patience: float = 600) -> float:
        """When the last of so many jobs ended; waits until it has."""
        until = time.monotonic() + patience
        while len(self.ended[who]) < count:
            if time.monotonic() > until:
                raise SystemExit(f"{len(self.ended[who])} of {count} jobs of {who} ran in {patience:g} s")
            time.sleep(0.005)
            self.look()
        return max(self.ended[who][:count])


@dataclass
class System:
    """What is measured.

    Attributes:
        name: as shown.
        workers: how its workers are run, as shown.
        start: given a directory and a file for the runs; runs it, and gives what inserts, and what keeps its
            workers from working.
        share: of A's jobs that it gets, so that it ends in minutes.
    """

    name: str
    workers: str
    start: Callable[[str, str], contextlib.AbstractContextManager[tuple[Insert, Hold]]]
    share: float = 1.0


def kqs(order: str) -> System:
    @contextlib.contextmanager
    def start(directory: str, ran: str) -> Iterator[tuple[Insert, Hold]]:
        config = f"{directory}/kqs.toml"
        with open(config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(order=order, workers=WORKERS))
        with servers.kqs_on(
            f"{directory}/data", "--config", config, env=environment(BENCH_RAN=ran)
        ) as server:
            url = f"kqs://127.0.0.1:{server.port}"
            local = threading.local()  # a connection for each tenant

            def insert(who: str, count: int, seconds: float) -> None:
                if not hasattr(local, "client"):
                    local.client = Client(url)
                job = {"type": "work", "fair": who, "data": {"who": who, "seconds": seconds}}
                for first in range(0, count, BATCH):
                    local.client.insert_many([job] * min(BATCH, count - first))

            yield insert, contextlib.nullcontext  # A's jobs are in before many of them ran

    return System(f"KQS, {order}", f"{WORKERS} processes", start)


def peer(name: str, shown: str, workers: str, share: float, *argv: str) -> Callable[[str], System]:
    """A job queue on Redis.

    Args:
        name: as ``redispeers.py`` knows it.
        shown, workers, share: see :class:`System`.
        argv: its workers' command; ``{url}`` is that of Redis.
    """

    def of(venv: str) -> System:
        @contextlib.contextmanager
        def start(directory: str, ran: str) -> Iterator[tuple[Insert, Hold]]:
            programs = f"{venv}/bin"
            with servers.redis(directory) as port:
                env = environment(BENCH_RAN=ran, BENCH_PEER=name, BENCH_REDIS=f"redis://127.0.0.1:{port}")
                words = (word.format(url=env["BENCH_REDIS"]) for word in argv[1:])
                feeder = [f"{programs}/python", f"{servers.HERE}/redispeers.py"]
                with (
                    servers.family([f"{programs}/{argv[0]}", *words], env) as hold,
                    subprocess.Popen(
                        feeder, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                    ) as process,
                ):
                    if process.stdout.readline() != "ready\n":
                        raise SystemExit(f"{shown} did not start")

                    def insert(who: str, count: int, seconds: float) -> None:
                        process.stdin.write(f"{who} {count} {seconds}\n")
                        process.stdin.flush()
                        if process.stdout.readline() != "inserted\n":
                            raise SystemExit(f"{shown} did not insert")

                    yield insert, hold
                    process.stdin.close()

        return System(shown, workers, start, share)

    return of


PEERS = {
    "rq": peer("rq", "RQ", "2 processes", 0.03, "rq", "worker-pool", "-n", "2", "-q", "-u", "{url}"),
    "dramatiq": peer(
        "dramatiq", "dramatiq", "2 processes of 8 threads", 0.2, "dramatiq", "redispeers", "-p", "2"
    ),
    "huey": peer(
        "huey",
        "Huey",
        "2 processes",
        0.2,
        "huey_consumer",
        "redispeers.huey",
        "-w",
        "2",
        "-k",
        "process",
        "-q",
    ),
    "saq": peer(
        "saq", "SAQ", "2 processes, asyncio", 0.2, "saq", "redispeers.settings", "--workers", "2", "-q"
    ),
}


def environment(**more: str) -> dict[str, str]:
    """This one, with the files here importable and more in it."""
    path = os.pathsep.join(part for part in (servers.HERE, os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, **more}


@contextlib.contextmanager
def started(system: System, directory: str | None) -> Iterator[tuple[Insert, Hold, Runs]]:
    """A system with workers at work, what inserts and what holds them back, and the runs of its jobs."""
    with tempfile.TemporaryDirectory(prefix="bench-tenants-", dir=directory) as folder:
        ran = f"{folder}/ran"
        os.environ["BENCH_RAN"] = ran  # for the record's form
        open(ran, "wb").close()
        runs = Runs(ran)
        with system.start(folder, ran) as (insert, hold):
            insert("W", 50, JOB)
            runs.wait("W", 50, 60)
            yield insert, hold, runs


def beside(system: System, directory: str | None, jobs: int, seconds: float) -> list[str]:
    """The small tenant alone, then beside the backlog of the big one; a row of the table."""
    with started(system, directory) as (insert, hold, runs):
        alone = []
        for number in range(1, ALONE + 1):
            begun = time.monotonic()
            insert("B", FEW, JOB)
            alone.append(runs.wait("B", number * FEW) - begun)
        share = WORKERS * statistics.median(alone)
        with hold():
            insert("A", jobs, seconds)
        runs.look()
        waiting = jobs - len(runs.ended["A"])
        begun = time.monotonic()
        insert("B", FEW, JOB)
        took = runs.wait("B", (ALONE + 1) * FEW) - begun
        backlog = runs.wait("A", jobs) - begun
    ratio = took / share
    print(f"{system.name}: {took:.3f} s beside {backlog:.1f} s", file=sys.stderr)
    return [
        system.name,
        system.workers,
        f"{waiting:,} of {seconds * 1000:g} ms",
        f"{share * 1000:.0f} ms",
        f"{took:.2f} s" if took > 1 else f"{took * 1000:.0f} ms",
        f"{ratio:.1f} x",
        "yes" if ratio <= TARGET else "NO",
        f"{backlog:.1f} s",
        f"{took / backlog:.1%}",
    ]


def always(system: System, directory: str | None, seconds: float) -> list[str]:
    """Two tenants insert all the time, more than is worked off; a row of the table."""
    lengths = {"A": seconds, "B": JOB}
    with started(system, directory) as (insert, _hold, runs):
        begun = time.monotonic()

        def go_on(who: str) -> None:
            done = 0
            while (now := time.monotonic() - begun) < LASTS:
                due = int((now + 1) * RATES[who] * JOB / lengths[who])
                insert(who, due - done, lengths[who])
                done = due
                time.sleep(EVERY)

        threads = [threading.Thread(target=go_on, args=(who,)) for who in lengths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        runs.look()
    window = (begun + WARM, begun + LASTS)
    spans = [span for span in runs.spans if window[0] <= span[1] and span[2] <= window[1]]
    worked = {who: sum(end - start for owner, start, end in spans if owner == who) for who in lengths}
    counts = {who: sum(owner == who for owner, _start, _end in spans) for who in lengths}
    both = sum(worked.values())
    rates = [f"{RATES[who] * JOB / lengths[who]:,.0f} of {lengths[who] * 1000:g} ms" for who in lengths]
    return [
        system.name,
        *rates,
        *(f"{counts[who] / (window[1] - window[0]):,.0f}" for who in lengths),
        *(f"{worked[who] / both:.1%}" for who in lengths),
        f"{both / (window[1] - window[0]) / WORKERS:.0%}",
    ]


def versions(venv: str | None) -> str:
    """Of the peers."""
    if venv is None:
        return ""
    names = ("rq", "dramatiq", "huey", "saq", "redis")
    code = f"from importlib.metadata import version as v\nprint(*(n + ' ' + v(n) for n in {names}), sep=', ')"
    argv = [f"{venv}/bin/python", "-c", code]
    said = subprocess.run(argv, capture_output=True, text=True, check=True)
    server = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True)
    return f"; Redis {server.stdout.split('v=')[1].split()[0]}, {said.stdout.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="the big tenant's jobs [100000]")
    parser.add_argument("--peers", metavar="VENV", help="compare with what is in there; see README.md")
    parser.add_argument("--only", nargs="+", choices=["kqs", "slow", "always", *PEERS], help="some [all]")
    parser.add_argument("--dir", default=None, help="where the servers keep their data [the temporary one]")
    given = parser.parse_args()
    sys.path.insert(0, servers.HERE)
    busy = machine.load()
    wanted = given.only or ["kqs", "slow", "always", *(PEERS if given.peers else ())]
    os.environ.setdefault("BENCH_RAN", os.devnull)
    print(f"machine: {machine.describe(given.dir or tempfile.gettempdir())}; {busy}{versions(given.peers)}")
    orders = [kqs("fair"), kqs("fifo")]
    rows = []
    if "kqs" in wanted:
        rows += [beside(system, given.dir, given.jobs, JOB) for system in orders]
    if "slow" in wanted:
        rows += [beside(system, given.dir, given.jobs // 20, SLOW) for system in orders]
    for name in PEERS:
        if name in wanted:
            system = PEERS[name](given.peers)
            rows.append(beside(system, given.dir, int(given.jobs * system.share), JOB))
    if rows:
        print(
            f"\ntenant A has a backlog; then tenant B inserts {FEW} jobs of {JOB * 1000:g} ms\n"
            f"on its share: B's {FEW} jobs with half of the workers' time: {WORKERS} x what they take alone "
            f"(median of {ALONE})\nA's backlog: jobs that wait when B inserts; backlog: from then until A's "
            "last is done\n"
        )
        head = ("system", "workers", "A's backlog", "B on its share", "B beside A", "is", f"<= {TARGET:g} x")
        print(table((*head, "backlog", "B of it"), rows, 2))
    if "always" in wanted:
        rows = [always(system, given.dir, seconds) for seconds in (JOB, SLOW) for system in orders]
        print(f"\nboth insert all the time, jobs a second, for {LASTS:g} s:\n")
        head = ("system", "A inserts", "B inserts", "A's done/s", "B's done/s", "A's worker time", "B's")
        print(table((*head, "workers at work"), rows))


if __name__ == "__main__":
    main()
