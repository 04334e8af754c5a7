"""``python -m tests.mutations``: take out every safeguard, one after the other. See the package."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from . import engine, feed, journal, postgres, service
from .mutation import ROOT, Mutation, Stale, Verdict, find, run_tests, try_mutation

MUTATIONS: list[Mutation] = [
    *journal.MUTATIONS,
    *engine.MUTATIONS,
    *feed.MUTATIONS,
    *postgres.MUTATIONS,
    *service.MUTATIONS,
]
PAGE = ROOT / "docs" / "_mutations.md"


def main() -> int:
    """Returns 0 when every mutant went red, 1 when one survived or could not be tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=main.__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of those to try; all by default")
    parser.add_argument("--table", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if not arguments.names or any(name in m.name for name in arguments.names)]
    unmutated(chosen)
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutation, verdict in zip(chosen, pool.map(attempt, chosen), strict=True):
            verdicts.append(verdict)
            print(f"{verdict.red or 'SURVIVED'}  <-  {mutation.name}", flush=True)
    red = sum(bool(verdict.red) for verdict in verdicts)
    print(f"{len(chosen)} safeguards taken out, {red} found out")
    if arguments.table and not arguments.names:
        PAGE.write_text(table(chosen, verdicts))
    return 0 if red == len(chosen) else 1


def unmutated(mutations: Sequence[Mutation]) -> None:
    """The tests are green while nothing is taken out.

    Raises:
        SystemExit: they are not, so that a red one would prove nothing.
    """
    tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    with tempfile.TemporaryDirectory(prefix="kqs-mutant-") as folder:
        shutil.copytree(ROOT / "src", f"{folder}/src")
        verdict = run_tests(tests, folder, patience=1800)
    if verdict.red:
        sys.exit(f"{verdict.red} is red although nothing was taken out:\n{verdict.output[-3000:]}")


def attempt(mutation: Mutation) -> Verdict:
    """One mutation; what cannot be tried has survived, and says why."""
    try:
        return try_mutation(mutation)
    except Stale as stale:
        print(f"{mutation.name}: {stale}", file=sys.stderr, flush=True)
        return Verdict("", str(stale))


def table(mutations: Sequence[Mutation], verdicts: Sequence[Verdict]) -> str:
    """The table of docs/reliability.md."""
    rows = [
        f"| {mutation.name} | `{find(mutation, ROOT / 'src').name}` | {_test(verdict.red)} |"
        for mutation, verdict in zip(mutations, verdicts, strict=True)
    ]
    return "\n".join(["| taken out | of | what went red |", "| --- | --- | --- |", *rows]) + "\n"


def _test(red: str) -> str:
    """A test's node id, without parameters, which may be long."""
    node, _, note = red.partition(" ")
    return f"`{node.partition('[')[0]}` {note}".rstrip() if red else "**nothing**"


if __name__ == "__main__":
    sys.exit(main())
