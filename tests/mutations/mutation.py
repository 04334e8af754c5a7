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
#: Says of a test that it did not end.
WAITS = "(waits for ever)"
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


class Mutation(NamedTuple):
    """A safeguard to take out.

    Attributes:
        name: what is done to it, for the table.
        place: file or folder under ``src/kqs``.
        old: text that stands there exactly once.
        new: what stands there in the mutant.
        tests: what pytest is given; at least one of them must go red.
        fast: whether it is tried in every test run.
        hangs: seconds after which a mutant that makes its tests wait for ever is stopped; 0: it must not.
    """

    name: str
    place: str
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


def find(mutation: Mutation, sources: Path) -> Path:
    """The file that a mutation changes.

    Args:
        sources: the folder that holds the package.

    Raises:
        Stale: its old text is not there exactly once.
    """
    place = sources / "kqs" / mutation.place
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    found = [path for path in files for _ in range(path.read_text().count(mutation.old))]
    if len(found) != 1:
        raise Stale(f"{mutation.name}: its old text is in {mutation.place} {len(found)} times; mend the list")
    return found[0]


def try_mutation(mutation: Mutation) -> Verdict:
    """Run a mutation's tests against a mutant.

    Raises:
        Stale: see :func:`find`; or pytest could not run the tests.
    """
    with tempfile.TemporaryDirectory(prefix="kqs-mutant-") as folder:
        shutil.copytree(ROOT / "src", f"{folder}/src")
        path = find(mutation, Path(folder, "src"))
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        sound = path.read_text()
        path.write_text(sound.replace(mutation.old, mutation.new))
        if not mutation.hangs:
            return run_tests(mutation.tests, folder)
        verdict = run_tests(mutation.tests, folder, patience=mutation.hangs, hangs=True)
        if verdict.red.endswith(WAITS):
            path.write_text(sound)  # is it the mutant that makes them wait?
            run_tests(mutation.tests, folder, patience=mutation.hangs / 2)
        return verdict


def run_tests(
    tests: Collection[str], folder: str, *, patience: float = PATIENCE, hangs: bool = False
) -> Verdict:
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
        "KQS_PATIENCE": "15",  # what does not happen is known sooner
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
        return Verdict(f"{next(iter(tests))} {WAITS}", output)
    if process.returncode == 0:
        return Verdict("", output)
    failed = _FAILED.search(output)
    if process.returncode != 1 or failed is None:
        raise Stale(f"pytest ended with status {process.returncode}:\n{output[-3000:]}")
    return Verdict(failed[1], output)
