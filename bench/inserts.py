"""Inserts per second, on disk before the reply, beside beanstalkd. What the figures mean: README.md here."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache

import loadgen
import machine
from servers import NullServer
from subjects import CASES, SINGLES, SUBJECTS, Case, Subject
from table import table

#: A load generator that is not this much faster than the server has measured itself.
MARGIN = 1.5


@dataclass
class Figures:
    """One server in one case, a value for every round.

    Attributes:
        rates: jobs accepted a second.
        cpu: processor time of the server for one job, microseconds.
        ceilings: what the load generator reached against the null server, jobs a second.
    """

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)


Results = dict[tuple[str, str], Figures]


@cache
def loads(subject: str, case: str, window: int) -> list[loadgen.Load]:
    return SUBJECTS[subject].loads(CASES[case], window)


def measure(subject: Subject, case: Case, load: list[loadgen.Load], directory: str) -> tuple[float, float]:
    """Insert a case's jobs into a new server.

    Returns:
        Jobs a second, and the server's processor time for one, microseconds.

    Raises:
        SystemExit: a job was not accepted, or is not there afterwards.
    """
    jobs = sum(one.calls for one in load) * (case.batch if subject.batches else 1)
    with subject.start(directory) as server:
        before = server.cpu_seconds()
        seconds = loadgen.run(server.port, load, lambda replies: replies.count(subject.ok))
        cpu = server.cpu_seconds() - before
        if (ready := subject.ready(server.port)) != jobs:
            raise SystemExit(f"{subject.name} holds {ready} jobs of {jobs} it accepted")
    return jobs / seconds, cpu / jobs * 1e6


def ceiling(subject: Subject, case: Case, load: list[loadgen.Load], null: NullServer) -> float:
    """Jobs a second that the load generator can push through a server that does nothing."""
    with null.run(subject.lines, subject.reply_size(case)) as server:
        seconds = loadgen.run(server.port, load, lambda replies: replies.count(b"\n"))
    return sum(one.calls for one in load) * (case.batch if subject.batches else 1) / seconds


def one_round(results: Results, given: argparse.Namespace, directory: str, null: NullServer) -> None:
    """Every server in every case, one after the other, so that what disturbs one disturbs all."""
    for name in given.cases:
        case = CASES[name]
        for key in given.servers:
            subject = SUBJECTS[key]
            if case.batch > 1 and not subject.batches:
                continue
            load = loads(key, name, given.window)
            figures = results[key, name]
            rate, cpu = measure(subject, case, load, directory)
            figures.rates.append(rate)
            figures.cpu.append(cpu)
            figures.ceilings.append(ceiling(subject, case, load, null))


def report(results: Results, subjects: list[str], cases: list[str]) -> str:
    """The table: medians, and the medians of the ratios within each round."""
    rows = [_row(results, key, name) for name in cases for key in subjects]
    head = (
        "case",
        "server",
        "jobs/s",
        "lowest",
        "highest",
        "KQS is",
        "CPU us/job",
        "ceiling/s",
        "ceiling is",
    )
    return table(head, rows, left=2)


def _row(results: Results, key: str, name: str) -> list[str]:
    own = results.get(("kqs", name))
    figures, server = results.get((key, name)), SUBJECTS[key].name
    if figures is None:  # no batches there: beside them stand its pipelined singles
        figures, server = results[key, "singles"], f"{server}: singles"
    ratio = "-"
    if own is not None and key != "kqs":
        pairs = zip(own.rates, figures.rates, strict=True)
        ratio = f"{statistics.median(mine / theirs for mine, theirs in pairs):.2f} x"
    rate, top = statistics.median(figures.rates), statistics.median(figures.ceilings)
    verdict = f"{top / rate:.1f} x"
    if top < MARGIN * rate:
        verdict += " (too low: the figure says nothing)"
    return [
        CASES[name].name,
        server,
        f"{rate:,.0f}",
        f"{min(figures.rates):,.0f}",
        f"{max(figures.rates):,.0f}",
        ratio,
        f"{statistics.median(figures.cpu):.1f}",
        f"{top:,.0f}",
        verdict,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="every server once in each [5]")
    parser.add_argument("--dir", default=None, help="where the servers keep their data [the temporary one]")
    parser.add_argument("--servers", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--window", type=int, default=0, help="jobs unanswered at any time [4000; batches: 16]"
    )
    given = parser.parse_args()
    if "batches" in given.cases and given.servers != ["kqs"] and "singles" not in given.cases:
        parser.error(f"batches are compared with {SINGLES.name}: add the case singles")
    busy = machine.load()
    results: Results = defaultdict(Figures)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.dir) as directory:
        null = NullServer(directory)
        for _ in range(given.rounds):
            one_round(results, given, directory, null)
        print(f"machine: {machine.describe(directory)}; {busy}")
    print(f"medians of {given.rounds} rounds; null server in {null.language}\n")
    print(report(results, given.servers, given.cases))


if __name__ == "__main__":
    main()
