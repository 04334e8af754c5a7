"""``scripts/nightly``: long runs of the tests whose default run is a sample.

Each part gets a share of the time. Parts that count something run in rounds, each with seeds of its own,
until their share is over or their goal is reached; the others run once. A part that fails does not stop the
rest: its seeds and the end of its output are in the summary, and the exit status is 1. Totals go to
``summary.json`` and, as a table, to ``summary.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic, strftime, time
from typing import Any

ROOT = Path(__file__).parent.parent
#: A round that runs longer than its part's share by this many seconds hangs.
GRACE = 900.0
_SKIPPED = re.compile(r"^\d+ skipped in ", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """One kind of test.

    Attributes:
        name: for ``--only`` and the summary.
        share: of the whole time, against the shares of the others.
        run: what python is given: a module and its arguments.
        counts: what is counted, ``""`` when it runs once.
        variable: the environment variable that says how many.
        round: how many in one round.
        goal: how many are enough.
        env: more environment.
    """

    name: str
    share: float
    run: tuple[str, ...]
    counts: str = ""
    variable: str = ""
    round: int = 1
    goal: int = 1
    env: dict[str, str] = field(default_factory=dict)


_PYTEST = ("pytest", "-p", "no:cacheprovider", "-s")
_PROFILE = {"HYPOTHESIS_PROFILE": "nightly"}
PARTS = [
    Part("mutations", 10, ("tests.mutations", "--table")),
    Part("machine", 10, (*_PYTEST, "tests/conformance"), env=_PROFILE),
    Part("properties", 5, (*_PYTEST, "tests/unit/core", "tests/unit/engines"), env=_PROFILE),
    Part("damage", 20, (*_PYTEST, "tests/unit/journal/test_damage.py"), env=_PROFILE),
    Part("golden damage", 20, (*_PYTEST, "tests/unit/journal/test_golden_damage.py"), env=_PROFILE),
    Part("system calls", 5, (*_PYTEST, "tests/faults/test_syscalls.py"), env={"KQS_CALLS": "1000"}),
    Part("simulation", 30, (*_PYTEST, "tests/simulation"), "seeds", "KQS_SEEDS", 5000, 10_000_000),
    Part("kills", 15, (*_PYTEST, "tests/faults/test_kills.py"), "kills", "KQS_KILLS", 300, 3000),
    Part("power cuts", 15, (*_PYTEST, "tests/faults/test_power.py"), "cuts", "KQS_CUTS", 300, 3000),
    Part("fuzz", 10, (*_PYTEST, "tests/fuzz"), "hostile lines", "KQS_FUZZ", 50_000, 1_000_000),
]


@dataclass
class Result:
    """What became of a part.

    Attributes:
        status: ``passed``, ``failed``, ``skipped`` or ``out of time``.
        count: how many were done without a failure.
        seeds: the first seed of each round.
        failures: the environment that repeats a failed round, and the end of what it printed.
    """

    part: str
    counts: str
    status: str = "passed"
    count: int = 0
    rounds: int = 0
    seconds: float = 0.0
    seeds: list[int] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)


def run_part(part: Part, seconds: float, seed: int) -> Result:
    """Run a part's rounds.

    Args:
        part: which.
        seconds: its share of the time.
        seed: of the first round; each takes as many seeds as it counts.
    """
    result, began = Result(part.name, part.counts), monotonic()
    while True:
        env = dict(part.env)
        if part.variable:
            env |= {part.variable: str(part.round), "KQS_SEED": str(seed)}
            result.seeds.append(seed)
            seed += part.round
        left = seconds - (monotonic() - began)
        status, output = run_round(part.run, env, max(left, 0) + GRACE)
        result.rounds += 1
        result.seconds = round(monotonic() - began, 1)
        if status in ("passed", "skipped"):
            result.count += part.round if status == "passed" and part.variable else 0
        else:
            result.failures.append({"env": env, "status": status, "output": output[-4000:]})
        if status != "passed":
            result.status = status
        if status != "passed" or not part.variable or result.count >= part.goal or result.seconds >= seconds:
            return result


def run_round(run: Sequence[str], env: dict[str, str], patience: float) -> tuple[str, str]:
    """Run a module once; returns ``passed``, ``failed``, ``skipped`` or ``out of time``, and its output."""
    process = subprocess.Popen(
        [sys.executable, "-m", *run],
        cwd=ROOT,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return "out of time", process.communicate()[0]
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode != 0:
        return "failed", output
    return "skipped" if _SKIPPED.search(output) else "passed", output


def table(results: Sequence[Result]) -> str:
    """The summary for people."""
    lines = ["| part | done | outcome | seeds | took |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        done = f"{result.count:,} {result.counts}" if result.seeds else "all"
        seeds = f"{result.seeds[0]} .." if result.seeds else ""
        lines.append(f"| {result.part} | {done} | {result.status} | {seeds} | {result.seconds:,.0f} s |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Run parts and write the summary; returns 1 when one did not pass."""
    parser = argparse.ArgumentParser(prog="scripts/nightly", description=__doc__)
    parser.add_argument("--minutes", type=float, default=480, help="for all parts together (480)")
    parser.add_argument(
        "--only", action="append", choices=[part.name for part in parts], help="may be repeated"
    )
    parser.add_argument("--seed", type=int, help="of the first rounds; drawn from the time when not given")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "nightly", help="folder of the summary")
    given = parser.parse_args(arguments)
    chosen = [part for part in parts if not given.only or part.name in given.only]
    seed = given.seed if given.seed is not None else int(time()) % 1_000_000_000
    per_share = given.minutes * 60 / sum(part.share for part in chosen)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, check=False
    )
    summary: dict[str, Any] = {
        "began": strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit.stdout.decode().strip(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "minutes": given.minutes,
        "seed": seed,
    }
    results: list[Result] = []
    given.out.mkdir(parents=True, exist_ok=True)
    for part in chosen:
        print(f"{part.name}: {part.share * per_share:,.0f} s, seed {seed}", flush=True)
        result = run_part(part, part.share * per_share, seed)
        results.append(result)
        print(
            f"{part.name}: {result.status}, {result.count:,} {result.counts} in {result.rounds} rounds",
            flush=True,
        )
        for failure in result.failures:
            print(f"{failure['env']}\n{failure['output']}", flush=True)
        # After every part, so that a run that is broken off leaves what it has.
        summary["parts"] = [asdict(done) for done in results]
        (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        (given.out / "summary.md").write_text(table(results))
    print(table(results))
    return 0 if all(result.status in ("passed", "skipped") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
