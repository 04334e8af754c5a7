"""Generated pages are what the code says, and hand-written references name everything there is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from kqs.core import calls
from kqs.core.calls import ALLOWED
from kqs.core.job import JobFields
from kqs.core.outcome import Settlement
from kqs.errors import _BY_CODE

ARGUMENTS = {
    "auth": calls.AuthArgument,
    "reserve": calls.ReserveArgument,
    "settle": Settlement,
    "renew": calls.RenewArgument,
    "job": calls.JobArgument,
    "jobs": calls.JobsArgument,
    "wait": calls.WaitArgument,
    "watch": calls.WatchArgument,
    "purge": calls.PurgeArgument,
    "drain": calls.DrainArgument,
    "cron_run": calls.CronRunArgument,
    "stats": calls.StatsArgument,
    "quit": calls.QuitArgument,
    "insert": JobFields,
    **dict.fromkeys(("kick", "bury", "delete", "cancel"), calls.ControlArgument),
    **dict.fromkeys(("pause", "resume"), calls.PauseArgument),
}


def test_nothing_is_out_of_date(generate: ModuleType) -> None:
    assert generate.outdated() == [], "run: python docs/generate.py"


def test_a_changed_page_is_found(
    generate: ModuleType, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in generate.pages():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(docs / name, tmp_path / name)
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    assert generate.outdated() == []
    page = tmp_path / "reference/config.md"
    page.write_text(page.read_text().replace("14151", "14152"))
    (tmp_path / "explanation/lifecycle.svg").unlink()
    assert generate.outdated() == ["reference/config.md", "explanation/lifecycle.svg"]


@pytest.fixture(scope="module")
def sections(docs: Path) -> dict[str, str]:
    """docs/reference/calls.md, cut at its headings; one of several calls is the section of each."""
    text = (docs / "reference/calls.md").read_text(encoding="utf-8")
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {
        name: body
        for heading, body in zip(parts[1::2], parts[2::2], strict=True)
        for name in re.findall(r"`(\w+)`", heading) or [heading]
    }


@pytest.mark.parametrize("call", ALLOWED)
def test_every_call_and_member_is_described(call: str, sections: dict[str, str]) -> None:
    struct = ARGUMENTS.get(call)
    members = [field.encode_name for field in msgspec.structs.fields(struct)] if struct else []
    assert call in sections
    missing = [member for member in members if f"`{member}`" not in sections[call]]
    assert missing == []


def test_no_call_is_described_that_is_not_there(sections: dict[str, str]) -> None:
    single_words = {name for name in sections if re.fullmatch(r"[a-z_]+", name)}
    assert single_words == set(ALLOWED)


def test_the_error_table_has_every_code(docs: Path) -> None:
    table = (docs / "reference/_codes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(_BY_CODE)
