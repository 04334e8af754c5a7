"""The ``service`` marker: a missing program is seen in the output, and is a failure in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests import conftest

REPOSITORY = Path(__file__).parents[2]
MISSING = "no-such-program"


def _set_up(request: pytest.FixtureRequest, *names: str) -> None:
    request.node.add_marker(pytest.mark.service(*names))
    conftest.pytest_runtest_setup(request.node)


@pytest.mark.parametrize("ci", [False, True])
def test_present_program_runs(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, ci: bool
) -> None:
    monkeypatch.setattr(conftest, "CI", ci)
    monkeypatch.setattr(conftest.shutil, "which", lambda name: f"/bin/{name}")
    _set_up(request, "sh", "node")


@pytest.mark.parametrize(("ci", "raised"), [(False, pytest.skip.Exception), (True, pytest.fail.Exception)])
def test_missing_program_is_named(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    ci: bool,
    raised: type[BaseException],
) -> None:
    monkeypatch.setattr(conftest, "CI", ci)
    with pytest.raises(raised, match=f"needs {MISSING}, not found"):
        _set_up(request, "sh", MISSING)


def test_a_mark_without_a_program_is_a_mistake(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.fail.Exception, match="which programs"):
        _set_up(request)


def test_no_deadlines() -> None:
    assert settings().deadline is None


def test_ci_is_told_by_the_environment(tmp_path: Path) -> None:
    """The whole way: a session of its own with ``CI=true`` goes red."""
    (tmp_path / "test_it.py").write_text(
        f'import pytest\n\n@pytest.mark.service("{MISSING}")\ndef test_it():\n    pass\n'
    )
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(REPOSITORY / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "CI": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"needs {MISSING}" in done.stdout
