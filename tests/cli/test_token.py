"""``kqs token``: what it prints, what it keeps, and what it refuses."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kqs.core.calls import ROLES
from kqs.service.tokens import new
from tests.support import Finished, kqs_here


def token(folder: Path, *args: str) -> Finished:
    return kqs_here("token", *args, "--data", str(folder / "data"), cwd=folder)


def names(folder: Path) -> list[str]:
    return [one["name"] for one in token(folder, "list", "--json").json["tokens"]]


@pytest.mark.parametrize("role", ROLES)
def test_a_token_is_shown_once_and_its_hash_kept(tmp_path: Path, role: str) -> None:
    done = token(tmp_path, "new", "--role", role, "--name", "web shop")
    assert done.status == 0
    assert re.fullmatch(r"kqs_[\w-]{43}\n", done.out)
    assert done.err == (
        f"token 'web shop', role {role}; clients take it from KQS_TOKEN; it is not shown again\n"
    )
    secret = done.out.strip()
    text = (tmp_path / "data" / "tokens.json").read_text()
    assert secret not in text
    (kept,) = json.loads(text)["tokens"]
    assert (kept["name"], kept["role"]) == ("web shop", role)
    assert kept["sha256"] == hashlib.sha256(secret.encode()).hexdigest()


def test_tokens_are_different_and_named_when_nobody_names_them(tmp_path: Path) -> None:
    made = [token(tmp_path, "new", "--role", "work", "--json").json for _ in range(3)]
    assert [(one["name"], one["role"]) for one in made] == [(f"work-{n}", "work") for n in (1, 2, 3)]
    assert len({one["token"] for one in made}) == 3
    assert token(tmp_path, "revoke", "work-2").out == "revoked; 2 left\n"
    assert token(tmp_path, "new", "--role", "work", "--json").json["name"] == "work-2"


@pytest.mark.parametrize("before", [0o022, 0o777, 0])
def test_only_the_owner_may_read_the_file(tmp_path: Path, before: int) -> None:
    old = os.umask(before)
    try:
        for _ in range(2):
            token(tmp_path, "new", "--role", "read")
    finally:
        os.umask(old)
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert (tmp_path / "data" / "tokens.json").stat().st_mode & 0o177 == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["tokens.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_the_owner_of_the_data_directory_may_read_what_root_made(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 4711, 4712)
    token(tmp_path, "new", "--role", "read")
    stat = (tmp_path / "data" / "tokens.json").stat()
    assert (stat.st_uid, stat.st_gid) == (4711, 4712)


def test_the_list(tmp_path: Path) -> None:
    assert token(tmp_path, "list", "--json").json == {"tokens": []}
    assert not (tmp_path / "data").exists()
    token(tmp_path, "new", "--role", "admin", "--name", "operators [red]")
    token(tmp_path, "new", "--role", "insert")
    shown = token(tmp_path, "list").out
    assert re.search(r"operators \[red\] +│ admin +│ \d{4}-\d\d-\d\d \d\d:\d\d", shown)
    assert "insert-1" in shown
    (one, _other) = token(tmp_path, "list", "--json").json["tokens"]
    assert one.keys() == {"name", "role", "created_at"}


def test_what_is_refused(tmp_path: Path) -> None:
    token(tmp_path, "new", "--role", "read", "--name", "one")
    done = token(tmp_path, "new", "--role", "read", "--name", "one")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("kqs: conflict: there is a token named 'one'")
    done = token(tmp_path, "revoke", "two")
    assert (done.status, done.err) == (
        1,
        "kqs: not_found: no token is named 'two'; 'kqs token list' shows their names\n",
    )
    for bad in ("", "x" * 101, "a\nb", "\x1b[31m"):
        assert token(tmp_path, "new", "--role", "read", "--name", bad).status == 2
    assert token(tmp_path, "new", "--role", "king").status == 2
    assert token(tmp_path, "new").status == 2
    assert names(tmp_path) == ["one"]


def test_revoking_where_there_is_no_file_makes_none(tmp_path: Path) -> None:
    done = token(tmp_path, "revoke", "one")
    assert done.status == 1 and "is --data right?" in done.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["", "{", '{"format":2,"tokens":[]}', '{"format":1,"tokens":[{}]}'])
def test_a_file_it_cannot_read_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "tokens.json"
    file.write_text(text)
    for command in (("new", "--role", "read"), ("revoke", "one"), ("list",)):
        done = token(tmp_path, *command)
        assert done.status == 2 and str(file) in done.err, done
    assert file.read_text() == text


def test_a_place_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    done = token(tmp_path, "new", "--role", "read")
    assert done.status == 2 and "cannot be written" in done.err
    assert (tmp_path / "data").read_text() == "mine"


def test_a_write_that_failed_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token(tmp_path, "new", "--role", "read", "--name", "old")

    def no_space(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdatasync", no_space)
    done = token(tmp_path, "new", "--role", "read", "--name", "new")
    assert (done.status, done.out) == (2, "") and "No space left" in done.err
    monkeypatch.undo()
    assert names(tmp_path) == ["old"]
    token(tmp_path, "new", "--role", "read", "--name", "new")
    assert names(tmp_path) == ["old", "new"]


def test_commands_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    data, now = str(tmp_path / "data"), dt.datetime.now(dt.UTC)
    wanted = [str(number) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert [name for name, _ in pool.map(lambda name: new(data, "read", name, now), wanted)] == wanted
    assert sorted(names(tmp_path), key=int) == wanted
