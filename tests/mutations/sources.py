"""A pytest plugin: sees to it that a mutant's tests run against the mutant, in every test process."""

from __future__ import annotations

import os

import pytest

import kqs


def pytest_sessionstart() -> None:
    """End the run at once when another copy of the sources would be tested."""
    wanted = os.environ["KQS_MUTANT"]
    if not str(kqs.__file__).startswith(wanted):
        pytest.exit(f"the tests would run against {kqs.__file__}, not {wanted}", returncode=4)
