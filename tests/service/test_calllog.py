"""The call log: slow, failed and sampled calls; rotated; never a payload, a token or a control character."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kqs.client import Client
from kqs.errors import CallError
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]

CANARY = "canary-7f3a9c51"
MEMBERS = {"at", "call", "connection", "latency", "duration", "size", "outcome", "why"}


def entries(server: ServerProcess) -> list[dict[str, Any]]:
    """All lines of all files, oldest first."""
    folder = server.data / "log"
    files = sorted(
        folder.iterdir(), key=lambda file: -int(file.suffix[1:] if file.suffix[1:].isdigit() else 0)
    )
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def calls(server: ServerProcess, why: str) -> list[dict[str, Any]]:
    return [entry for entry in entries(server) if entry["why"] == why]


def test_failed_calls_are_logged_and_the_others_are_not(start: Start) -> None:
    server = start()
    with server.connect() as wire:
        for _ in range(3):
            wire.call("ping")
            wire.call("insert", {"type": "x"})
        wire.call("insert", {"type": "x", "prio": "top"})
        wire.call("job", {"id": "nosuch"})
        wire.call("nosuch")
        wire.send(b"no json\n")
        wire.rest()
    failed = until(lambda: len(entries(server)) == 4 and entries(server))
    assert [(entry["call"], entry["outcome"], entry["why"]) for entry in failed] == [
        ("insert", "bad_request", "failed"),
        ("job", "not_found", "failed"),
        ("", "unsupported", "failed"),
        ("", "bad_request", "failed"),
    ]
    for entry in failed:
        assert entry.keys() == MEMBERS
        assert entry["at"].endswith("Z")
        assert entry["connection"].startswith("127.0.0.1:")
        assert entry["latency"] >= 0 and entry["duration"] >= 0 and entry["size"] >= 0


def test_failed_calls_can_be_left_out(start: Start) -> None:
    server = start("[call_log]\nfailed = false\n")
    with server.client() as client:
        with pytest.raises(CallError):
            client.job("nosuch")
        client.ping()
    server.stop()
    assert not (server.data / "log" / "calls.jsonl").exists() or entries(server) == []


def test_slow_calls_are_logged(start: Start) -> None:
    server = start("[call_log]\nslow = 0.05\n")
    with server.client() as client:
        client.ping()
        client.call("reserve", {"types": ["nosuch"], "wait": 0.2})
    (entry,) = until(lambda: [e for e in calls(server, "slow") if e["connection"].startswith("127")])
    assert entry["call"] == "reserve"
    assert entry["duration"] >= 0.2


def test_every_call_is_slow_when_all_are(start: Start) -> None:
    server = start("[call_log]\nslow = 0\n")
    with server.connect() as wire:
        for name in ("ping", "echo", "stats", "health", "jobs"):
            wire.call(name)
        wire.call("insert", {"type": "x"})
    logged = until(lambda: len(calls(server, "slow")) >= 6 and calls(server, "slow"))
    own = [entry["call"] for entry in logged if entry["connection"].startswith("127")]
    assert sorted(own) == sorted(["ping", "echo", "stats", "health", "jobs", "insert"])


def test_a_sample_of_the_others_is_logged(start: Start) -> None:
    server = start("[call_log]\nslow = 100\nsample = 0.5\n")
    with server.client() as client:
        for _ in range(200):
            client.ping()
    server.stop()
    sampled = [entry for entry in calls(server, "sampled") if entry["call"] == "ping"]
    assert 50 <= len(sampled) <= 150  # 1 in 10^12 outside
    assert {entry["outcome"] for entry in sampled} == {"ok"}


def test_pipelined_inserts_stand_for_many(start: Start) -> None:
    server = start("[call_log]\nslow = 100\nsample = 1.0\n")
    with server.connect() as wire:
        wire.send(b'{"v":1,"id":"1","n":"insert","m":{"type":"x"}}\n' * 500)
        wire.half_close()
        assert len(wire.rest()) == 500
    server.stop()
    inserts = [entry for entry in calls(server, "sampled") if entry["call"] == "insert"]
    assert sum(entry.get("calls", 1) for entry in inserts) == 500


def test_rotation_keeps_so_many_files_of_such_a_size(start: Start) -> None:
    server = start("[call_log]\nmax_bytes = 2000\nkeep = 2\n")
    with server.connect() as wire:
        for _ in range(200):
            wire.call("nosuch")
    server.stop()
    files = {file.name: file.stat().st_size for file in (server.data / "log").iterdir()}
    assert files.keys() == {"calls.jsonl", "calls.jsonl.1", "calls.jsonl.2"}
    assert all(size <= 2000 for size in files.values())
    assert len(entries(server)) < 200
    assert all(entry.keys() == MEMBERS for entry in entries(server))  # no line is cut


def test_rotation_with_nothing_kept(start: Start) -> None:
    server = start("[call_log]\nmax_bytes = 2000\nkeep = 0\n")
    with server.connect() as wire:
        for _ in range(100):
            wire.call("nosuch")
    server.stop()
    (file,) = (server.data / "log").iterdir()
    assert file.stat().st_size <= 2000


@pytest.mark.parametrize("trouble", ["full", "directory", "gone"])
def test_a_log_that_cannot_be_written_stops_nobody(start: Start, tmp_path: Path, trouble: str) -> None:
    folder = tmp_path / "data" / "log"
    folder.mkdir(parents=True)
    if trouble == "full":
        (folder / "calls.jsonl").symlink_to("/dev/full")
    elif trouble == "directory":
        (folder / "calls.jsonl").mkdir()
    server = start("[call_log]\nslow = 0\nmax_bytes = 2000\n")
    if trouble == "gone":
        folder.rmdir()
    with server.connect() as wire:
        for _ in range(50):
            assert wire.call("nosuch")["e"]["code"] == "unsupported"
            assert wire.call("insert", {"type": "x"})["e"] is None


def test_the_log_goes_on_where_a_restart_left_it(start: Start) -> None:
    for _ in range(2):
        server = start()
        with server.connect() as wire:
            wire.call("nosuch")
        server.stop()
    assert len(calls(server, "failed")) == 2


def test_the_log_is_for_the_owner_only(start: Start) -> None:
    server = start()
    assert (server.data / "log").stat().st_mode & 0o777 == 0o700
    assert server.data.stat().st_mode & 0o777 == 0o700


# -- what must never be in any log ------------------------------------------------------------------------


@pytest.fixture
def told(start: Start) -> Iterator[ServerProcess]:
    """A server that logs every call, and was told the canary in every way there is."""
    digest = hashlib.sha256(CANARY.encode()).hexdigest()
    config = f"""
[call_log]
slow = 0
[handlers.digest]
python = "jobs:digest"
[handlers.end]
python = "jobs:end"
[[tokens]]
name = "all"
role = "admin"
sha256 = "{digest}"
"""
    server = start(config)
    with server.connect() as wire:
        wire.call("auth", {"token": CANARY + "-wrong"})
    with server.connect() as wire:
        wire.call("stats", {"auth": {"usr": CANARY, "pwd": CANARY}})
        wire.call("ping", {"auth": {"pwd": CANARY, CANARY: 1}})
        wire.call("auth", {"token": CANARY})
        wire.call("echo", CANARY)
        wire.call("insert", {"type": "digest", "data": CANARY})
        wire.call("insert", {"type": "digest", "data": CANARY, CANARY: 1})
        wire.call("insert", {"type": "x", "prio": CANARY})
        wire.call("insert", {"type": "digest", "data64": CANARY})
        wire.call("insert", {"type": "nobody", "data": CANARY * 10_000})
        wire.call(CANARY)
        wire.call("job", {"id": CANARY})
        wire.call("jobs", {"type": CANARY})
        wire.call("reserve", {"types": [CANARY], "worker": CANARY})
        wire.call("settle", [{"receipt": CANARY, "outcome": CANARY}])
        wire.send(b'{"v":1,"n":"ping","m":"' + CANARY.encode() + b"\n")
        wire.rest()
    with server.connect() as wire:
        wire.send(b"GET /" + CANARY.encode() + b" HTTP/1.1\r\n\r\n")
        wire.rest()
    server.stdout.wait_for("digest ")
    with server.client(CANARY) as client:
        until(lambda: client.call("stats", {"type": "digest"})["jobs"]["done"] == 1)
    yield server


def test_no_payload_and_no_token_is_in_any_log(told: ServerProcess) -> None:
    told.stop()
    logs = {file.name: file.read_text() for file in (told.data / "log").iterdir()}
    assert sum(text.count("\n") for text in logs.values()) > 15
    for name, text in {**logs, "stdout": told.stdout.text, "stderr": told.stderr.text}.items():
        assert CANARY not in text, name


def test_no_token_is_anywhere_in_the_data(told: ServerProcess) -> None:
    """The payloads are there, they are what the data is; the name of the token's owner is not."""
    told.stop()
    whole = b"".join(file.read_bytes() for file in _files(told.data))
    assert CANARY.encode() in whole
    assert b'"pwd"' not in whole and b'"token"' not in whole and (CANARY + "-wrong").encode() not in whole


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def test_control_characters_are_escaped(start: Start) -> None:
    server = start("[call_log]\nslow = 0\n")
    nasty = '\x1b[31m\r\n\x00\x9b\u2028{"forged":1}'
    with server.connect() as wire:
        wire.call(nasty)
        wire.call("insert", {"type": nasty, "prio": nasty})
        wire.call("reserve", {"types": [nasty], "worker": nasty})
        wire.call("job", {"id": nasty})
    with Client(server.url) as client:
        client.ping()
    server.stop()
    text = (server.data / "log" / "calls.jsonl").read_bytes().decode()
    assert text.replace("\n", "").isprintable()
    assert all(entry.keys() == MEMBERS for entry in entries(server))
    assert "\x1b" not in server.stderr.text and "forged" not in server.stdout.text
