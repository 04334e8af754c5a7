"""Settings of every test: Hypothesis profiles, and what a missing outside program means."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from kqs.testing.postgres import PostgresServer

CI = os.environ.get("CI") == "true"

# No deadlines: the machines that run this are shared, and a slow example is no failure. In CI the examples
# are the same in every run, so that a red build is about the change that was made.
settings.register_profile(
    "default", deadline=None, derandomize=CI, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=5000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked ``service("beanstalkd")`` skips where that program is missing, and fails in CI."""
    for marker in item.iter_markers("service"):
        if not marker.args:
            pytest.fail("mark it service(NAME, ..): which programs does it need?", pytrace=False)
        missing = [name for name in marker.args if shutil.which(name) is None]
        if not missing:
            continue
        unavailable(f"needs {', '.join(missing)}, not found on PATH")


def unavailable(text: str) -> NoReturn:
    """Skip a test for what is not on this machine, or fail it in CI, where everything is."""
    if CI:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for the tests of a module, without tables."""
    from tests.databases import started

    with started() as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests recorded as ``told`` is part of the output, whichever process ran them."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                for name, value in report.user_properties:
                    if name == "told":
                        terminalreporter.write_line(str(value))
