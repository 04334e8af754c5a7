"""One safeguard, taken out of a copy of the sources."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
#: A mutant that hangs is red after this many seconds.
PATIENCE = 120.0
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


class Mutation(NamedTuple):
    """A safeguard to take out.

    Attributes:
        name: what is done to it, for the table.
        file: under ``src/kqs``.
        old: text that stands in the file exactly once.
        new: what stands there in the mutant.
        tests: what pytest is given; at least one of them must go red.
        fast: whether it is tried in every test run.
        hangs: seconds after which a mutant that makes its tests wait for ever is stopped; 0: it must not.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    fast: bool = False
    hangs: float = 0.0


class Verdict(NamedTuple):
    """What became of a mutant.

    Attributes:
        red: the test that failed first, or ``""``: the mutant survived.
        output: what pytest wrote.
    """

    red: str
    output: str


class Stale(Exception):
    """The list does not fit the sources, or the tests do not run, so that nothing was proved."""


def mutate(mutation: Mutation, source: str) -> str:
    """The mutant's text of the file.

    Raises:
        Stale: the old text is not there exactly once.
    """
    times = source.count(mutation.old)
    if times != 1:
        raise Stale(
            f"{mutation.name}: its old text is in {mutation.file} {times} times; bring the list up to date"
        )
    return source.replace(mutation.old, mutation.new)


def try_mutation(mutation: Mutation) -> Verdict:
    """Run a mutation's tests against a mutant.

    Raises:
        Stale: see :func:`mutate`; or pytest could not run the tests.
    """
    with tempfile.TemporaryDirectory(prefix="kqs-mutant-") as folder:
        shutil.copytree(ROOT / "src", f"{folder}/src", ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder, "src", "kqs", mutation.file)
        path.write_text(mutate(mutation, path.read_text()))
        return run_tests(
            mutation.tests, folder, patience=mutation.hangs or PATIENCE, hangs=mutation.hangs > 0
        )


def run_tests(tests: Collection[str], folder: str, *, patience: float, hangs: bool = False) -> Verdict:
    """Run tests against the sources in ``folder/src``, stopping at the first failure.

    Args:
        tests: paths and node ids.
        folder: temporary; the tests' own folders go there too.
        patience: seconds.
        hangs: whether running longer than that is a failure, not a mistake of the list.

    Raises:
        Stale: pytest could not run them, or they did not run against these sources.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("KQS_", "PYTEST_"))}
    env |= {
        "PYTHONPATH": os.pathsep.join((f"{folder}/src", str(ROOT))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": f"{folder}/hypothesis",  # a mutant's failures are nobody else's
    }
    argv = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--basetemp={folder}/tmp"]
    process = subprocess.Popen(
        [*argv, "-p", "tests.mutations.sources", *tests],
        cwd=ROOT,
        env=env | {"KQS_MUTANT": f"{folder}/src"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if not hangs:
            raise Stale(f"{' '.join(tests)} took more than {patience:g} s:\n{output[-3000:]}") from None
        return Verdict(f"{tests[0]} (waits for ever)", output)
    if process.returncode == 0:
        return Verdict("", output)
    failed = _FAILED.search(output)
    if process.returncode != 1 or failed is None:
        raise Stale(f"pytest ended with status {process.returncode}:\n{output[-3000:]}")
    return Verdict(failed[1], output)
