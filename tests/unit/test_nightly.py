"""The long runs go on after a failure, count what they did and say how to repeat what failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import nightly
from tests.nightly import Part, main

#: Stands for pytest: writes down each round, and fails with one seed.
ROUND = """
import os, sys
with open(sys.argv[1], "a") as file:
    print(os.environ["KQS_SEED"], os.environ["COUNT"], file=file)
print("seed", os.environ["KQS_SEED"])
sys.exit(os.environ["KQS_SEED"] == sys.argv[2])
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stand_in.py").write_text(ROUND)
    (tmp_path / "skipping.py").write_text("print('1 skipped in 0.01s')\n")
    (tmp_path / "hanging.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_rounds_until_the_goal_and_a_failure_that_stops_its_part_only(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = stand_in / "log"
    good = Part("good", 1, ("stand_in", str(log), "never"), "things", "COUNT", 10, 25)
    bad = Part("bad", 1, ("stand_in", str(log), "1010"), "things", "COUNT", 10, 100)
    skipped = Part("skipped", 1, ("skipping",))
    out = stand_in / "out"
    parts = [bad, skipped, good]
    assert main(["--minutes", "5", "--seed", "1000", "--out", str(out)], parts) == 1
    assert log.read_text().split("\n")[:-1] == ["1000 10", "1010 10", "1000 10", "1010 10", "1020 10"]
    summary = json.loads((out / "summary.json").read_text())
    found = {part["part"]: (part["status"], part["count"], part["rounds"]) for part in summary["parts"]}
    assert found == {"bad": ("failed", 10, 2), "skipped": ("skipped", 0, 1), "good": ("passed", 30, 3)}
    [failure] = summary["parts"][0]["failures"]
    assert failure["env"] == {"COUNT": "10", "KQS_SEED": "1010"}
    assert failure["output"] == "seed 1010\n"
    assert "| good | 30 things | passed | 1000 .. |" in (out / "summary.md").read_text()
    assert "seed 1010" in capsys.readouterr().out
    assert main(["--only", "good", "--out", str(out)], parts) == 0


def test_what_hangs_is_ended(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nightly, "GRACE", 3.0)
    out = stand_in / "out"
    assert main(["--minutes", "0", "--out", str(out)], [Part("hangs", 1, ("hanging",))]) == 1
    [part] = json.loads((out / "summary.json").read_text())["parts"]
    assert (part["status"], part["failures"][0]["output"]) == ("out of time", "here\n")
