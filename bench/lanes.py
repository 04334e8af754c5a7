"""What a job costs the server: one lane, 10,000 job types or 100,000 fairness keys. See README.md here."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import machine
import servers
from kqs import Client
from table import table

BATCH = 1000
STEPS = ("insert", "reserve", "settle", "all")
TARGET = 1.2


@dataclass(frozen=True)
class Case:
    """Whose jobs they are.

    Attributes:
        name: as shown.
        lanes: how many there are.
        member: makes what names the lane of job number n; all of a length.
        sample: makes it for the jobs that are measured.
        types: job types to reserve; empty for all.
    """

    name: str
    lanes: int
    member: Callable[[int], dict[str, str]]
    sample: Callable[[int], dict[str, str]] | None = None
    types: list[str] = field(default_factory=list)


def _type(number: int) -> dict[str, str]:
    return {"type": f"type-{number:06}"}


def _key(number: int) -> dict[str, str]:
    return {"type": "type-000000", "fair": f"tenant-{number:06}"}


TYPES, KEYS, SOME = 10_000, 100_000, 10
CASES = {
    "types": (
        Case("1 type", 1, lambda n: _type(0)),
        Case(f"{TYPES:,} types", TYPES, lambda n: _type(n % TYPES)),
    ),
    "keys": (
        Case("1 key", 1, lambda n: _key(0)),
        Case(f"{KEYS:,} keys", KEYS, lambda n: _key(n % KEYS)),
    ),
    "some": (
        Case(
            f"{SOME + 1} types, a worker of {SOME}",
            SOME + 1,
            lambda n: _type(min(n % TYPES, SOME)),
            lambda n: _type(n % SOME),
            [f"type-{number:06}" for number in range(SOME)],
        ),
        Case(
            f"{TYPES:,} types, a worker of {SOME}",
            TYPES,
            lambda n: _type(n % TYPES),
            lambda n: _type(n % SOME),
            [f"type-{number:06}" for number in range(SOME)],
        ),
    ),
}


def cpu(pid: int) -> float:
    """Processor time of a process so far, all threads that live, seconds, to the nanosecond."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as text:
            total += int(text.read().split()[0])
    return total / 1e9


class Side:
    """One server, and the jobs of a case in it."""

    def __init__(self, case: Case, server: servers.Running, backlog: int) -> None:
        self._case = case
        self._pid = server.process.pid
        self._client = Client(f"kqs://127.0.0.1:{server.port}", timeout=120)
        self._number = 0
        for _ in range(backlog // BATCH):
            self._client.insert_many(self._jobs(case.member))

    def _jobs(self, member: Callable[[int], dict[str, str]]) -> list[dict[str, Any]]:
        first, self._number = self._number, self._number + BATCH
        return [{**member(number), "data": {"n": 1}} for number in range(first, first + BATCH)]

    def measure(self, count: int) -> dict[str, tuple[float, float]]:
        """Run so many jobs through the server; by step, its processor's and all time, us a job."""
        spent = dict.fromkeys(STEPS, (0.0, 0.0))
        argument: dict[str, Any] = {"max": BATCH}
        if self._case.types:
            argument["types"] = self._case.types

        def take(step: str, call: Callable[[], Any]) -> Any:
            before = cpu(self._pid), time.perf_counter()
            answer = call()
            used = (cpu(self._pid) - before[0], time.perf_counter() - before[1])
            for name in (step, "all"):
                spent[name] = (spent[name][0] + used[0], spent[name][1] + used[1])
            return answer

        for _ in range(count // BATCH):
            jobs = self._jobs(self._case.sample or self._case.member)
            take("insert", lambda jobs=jobs: self._client.insert_many(jobs))
            leases = take("reserve", lambda: self._client.call("reserve", argument))["jobs"]
            assert len(leases) == BATCH, len(leases)
            ends = [{"receipt": lease["receipt"], "outcome": "ok", "took": 0.001} for lease in leases]
            done = take("settle", lambda ends=ends: self._client.call("settle", ends))
            assert done["settled"] == BATCH
        return {step: (cpu_ * 1e6 / count, time_ * 1e6 / count) for step, (cpu_, time_) in spent.items()}


def compare(pair: tuple[Case, Case], given: argparse.Namespace) -> list[list[str]]:
    """Both sides of a case in turn; rows of the table."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-lanes-", dir=given.dir) as folder,
        servers.kqs_on(f"{folder}/few") as one,
        servers.kqs_on(f"{folder}/many") as other,
    ):
        sides = [Side(case, server, given.backlog) for case, server in zip(pair, (one, other), strict=True)]
        for side in sides:
            side.measure(given.jobs)  # warm
        found = []
        for number in range(given.pairs):
            order = (0, 1) if number % 2 == 0 else (1, 0)
            round_ = {at: sides[at].measure(given.jobs) for at in order}
            found.append((round_[0], round_[1]))
    rows = []
    for step in STEPS:
        few, many = ([measured[side][step] for measured in found] for side in (0, 1))
        ratios = [statistics.median(b[at] / a[at] for a, b in zip(few, many, strict=True)) for at in (0, 1)]
        rows.append(
            [
                f"{pair[1].name} : {pair[0].name}",
                step,
                *(f"{statistics.median(one[0] for one in side):.1f}" for side in (few, many)),
                f"{ratios[0]:.2f} x",
                *(f"{statistics.median(one[1] for one in side):.1f}" for side in (few, many)),
                f"{ratios[1]:.2f} x",
                "" if step != "all" else "yes" if ratios[0] <= TARGET else "NO",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="measurements of each side, in turn [9]")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs in one of them [20000]")
    parser.add_argument("--backlog", type=int, default=200_000, help="jobs that wait meanwhile [200000]")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="some only [all]")
    parser.add_argument("--dir", default=None, help="where the servers keep their data [the temporary one]")
    given = parser.parse_args()
    busy = machine.load()
    print(f"machine: {machine.describe(given.dir or tempfile.gettempdir())}; {busy}")
    print(
        f"{given.backlog:,} jobs wait, of all lanes; {given.jobs:,} more are inserted, reserved and settled "
        f"in batches of {BATCH:,};\nmedians of {given.pairs} pairs, microseconds a job: processor time of "
        "the server process, and time as the client sees it\n"
    )
    rows = [row for name in given.cases for row in compare(CASES[name], given)]
    head = ("many : few lanes", "step", "CPU, few", "many", "is", "time, few", "many", "is")
    print(table((*head, f"CPU <= {TARGET:g} x"), rows, 2))


if __name__ == "__main__":
    main()
