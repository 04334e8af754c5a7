"""The commands that change jobs, or wait for them: what they print, as text and JSON, how they exit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kqs.client import Client
from tests.support import PATIENCE, Finished, Output, ServerProcess, environment, kqs_here, until

Start = Callable[..., ServerProcess]
Ask = Callable[..., Finished]


@pytest.fixture
def ask(shared: ServerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Runs a command against the shared server."""
    monkeypatch.setenv("KQS_URL", shared.url)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: kqs_here(*args, cwd=tmp_path)


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[Client]:
    with shared.client() as client:
        yield client


class Running:
    """A command under way."""

    def __init__(self, server: ServerProcess, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kqs.cli.main", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment({"KQS_URL": server.url, "COLUMNS": "200"}),
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.out, self.err = Output(self.process.stdout), Output(self.process.stderr)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def end(self) -> int:
        status = self.process.wait(PATIENCE)
        self.out.join()
        self.err.join()
        return status


def ok(done: Finished) -> Finished:
    assert done.status == 0 and done.err == "", done
    return done


def lease(client: Client, type: str) -> str:
    (job,) = client.call("reserve", {"types": [type]})["jobs"]
    return str(job["receipt"])


def settle(client: Client, receipt: str, outcome: str, **more: Any) -> None:
    assert client.call("settle", [{"receipt": receipt, "outcome": outcome, **more}])["settled"] == 1


# -- insert --------------------------------------------------------------------------------------------


def test_insert_with_a_key_a_time_and_a_result(ask: Ask, client: Client) -> None:
    options = ("--key", "order 17", "--expires", "1000", "--result-ttl", "60")
    id = ok(ask("insert", "cli", *options)).out.strip()
    assert ok(ask("insert", "cli", *options)).out.strip() == id
    assert client.job(id)["key"] == "order 17"
    (job,) = client.call("reserve", {"types": ["cli"]})["jobs"]
    assert job["result"] is True
    client.call("settle", [{"receipt": job["receipt"], "outcome": "release"}])
    late = ok(ask("insert", "cli", "--expires", "0.001")).out.strip()
    until(lambda: client.job(late)["state"] == "buried", "it to expire")
    done = ask("insert", "cli", "--expires", "-1")
    assert done.status == 1 and "bad_request: expires:" in done.err


def test_insert_of_a_unique_job(ask: Ask, client: Client) -> None:
    id = ok(ask("insert", "unique.cli", "--unique", "k")).out.strip()
    assert ok(ask("insert", "unique.cli", "--unique", "k", "--unique-scope", "queued")).out.strip() == id
    settle(client, lease(client, "unique.cli"), "fail")
    short = ok(ask("insert", "unique.cli", "--unique", "k", "--unique-scope", "queued")).out.strip()
    assert short != id
    job = client.job(short)
    assert (job["unique"], job["unique_scope"]) == ("k", "queued")
    kick = ask("kick", id)
    assert kick.status == 1 and f"job {short} has the same unique key" in kick.err
    alone = ask("insert", "unique.cli", "--unique-scope", "queued")
    assert alone.status == 2 and "--unique KEY" in alone.err


# -- kick, bury, delete, cancel, purge ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "did", "state"),
    [
        ("kick", "kicked", "ready"),
        ("bury", "buried", "buried"),
        ("delete", "deleted", "done"),
        ("cancel", "cancelled", "done"),
    ],
)
def test_control(ask: Ask, client: Client, verb: str, did: str, state: str) -> None:
    type = f"{verb}.cli"
    ids = client.insert_many([{"type": type, "delay": 1000}] * 6)
    assert ok(ask(verb, *ids[:2])).out == f"{did}: 2\n"
    assert ok(ask(verb, ids[2], "--json")).json == {"count": 1}
    assert ok(ask(verb, "--type", type, "--state", "delayed", "--limit", "2")).out == f"{did}: 2\n"
    assert [client.job(id)["state"] for id in ids] == [state] * 5 + ["delayed"]
    assert ok(ask(verb, "--type", "nosuch")).out == f"{did}: 0\n"


@pytest.mark.parametrize("verb", ["kick", "bury", "delete", "cancel"])
def test_control_refuses(ask: Ask, client: Client, verb: str) -> None:
    done = ask(verb)
    assert done.status == 2 and f"which jobs? kqs {verb} ID..., or --type, or --state" in done.err
    done = ask(verb, "nosuch")
    assert done.status == 1 and done.out == "" and "kqs: not_found: no job 'nosuch' here" in done.err
    done = ask(verb, "a", "--type", "b")
    assert done.status == 1 and f"{verb} takes ids, or a type and state; not both" in done.err
    for args in (("--state", "done"), ("--type", "t", "--limit", "0")):
        assert ask(verb, *args).status == 2
    ended = client.insert("t")
    client.call("delete", {"id": ended})
    done = ask(verb, ended)
    assert done.status == 1 and f"kqs: conflict: job {ended} is done already" in done.err


def test_purge(ask: Ask, client: Client) -> None:
    ids = client.insert_many([{"type": "purge.cli", "delay": 1000}] * 2 + [{"type": "purge.cli"}] * 2)
    assert ok(ask("purge", "purge.cli", "--older", "1000")).out == "deleted: 0\n"
    assert ok(ask("purge", "purge.cli")).out == "deleted: 2\n"
    assert [client.job(id)["state"] for id in ids] == ["delayed", "delayed", "done", "done"]
    assert ok(ask("purge", "purge.cli", "--state", "delayed", "--json")).json == {"count": 2}
    assert ask("purge").status == 2
    assert ask("purge", "purge.cli", "--state", "done").status == 2


# -- pause, resume, drain ----------------------------------------------------------------------------------


def test_pause_and_resume(ask: Ask, client: Client) -> None:
    assert ok(ask("pause", "a\x1b[2Jb")).out == "a\\x1b[2Jb: paused\n"
    assert client.stats()["paused"] == ["a\x1b[2Jb"]
    assert ok(ask("pause", "b", "--json")).json == {"type": "b", "paused": True}
    assert ok(ask("resume", "a\x1b[2Jb")).out == "a\\x1b[2Jb: goes on\n"
    assert ok(ask("resume", "b", "--json")).json == {"type": "b", "paused": False}
    assert client.stats()["paused"] == []
    assert ask("pause").status == 2


def test_drain(ask: Ask, client: Client) -> None:
    try:
        assert ok(ask("drain")).out == "draining\n"
        assert ok(ask("drain", "--json")).json == {"draining": True}
        done = ask("health")
        assert done.status == 1 and "workers: degraded: draining" in done.out
    finally:
        client.call("drain", {"on": False})
    assert ok(ask("drain", "--off")).out == "working\n"
    assert ok(ask("health")).status == 0


# -- wait ---------------------------------------------------------------------------------------------------


def test_wait_prints_the_result(ask: Ask, client: Client) -> None:
    id = client.insert("wait", result_ttl=60)
    settle(client, lease(client, "wait"), "ok", result={"a": [1]})
    assert ok(ask("wait", id)).json == {"a": [1]}
    assert ok(ask("wait", id, "--json")).json == {
        "id": id,
        "state": "done",
        "outcome": "ok",
        "result": {"a": [1]},
    }
    plain = client.insert("wait")
    settle(client, lease(client, "wait"), "ok", result=7)
    assert ok(ask("wait", plain)).out == "null\n"


def test_wait_waits(shared: ServerProcess, client: Client) -> None:
    id = client.insert("wait.long", result_ttl=60)
    receipt = lease(client, "wait.long")
    connected = client.stats()["connections"]["open"]
    with Running(shared, "wait", id) as running:
        until(lambda: client.stats()["connections"]["open"] > connected, "it to connect")
        assert running.process.poll() is None
        settle(client, receipt, "ok", result="\x9bK")
        assert running.end() == 0
    assert running.out.text == '"\\u009bK"'


def test_wait_for_what_does_not_come_to_a_good_end(ask: Ask, client: Client) -> None:
    buried, cancelled, open = (client.insert(f"wait.{n}") for n in range(3))
    settle(client, lease(client, "wait.0"), "fail", reason="no \x1b[31mluck")
    client.call("cancel", {"id": cancelled})
    for args, text in (
        ((buried,), "buried: no \\x1b[31mluck\n"),
        ((cancelled,), "cancelled\n"),
        ((open, "--timeout", "0.05"), "ready\n"),
    ):
        done = ask("wait", *args)
        assert (done.status, done.out, done.err) == (1, "", text)
        assert ask("wait", *args, "--json").json["id"] == args[0]
    done = ask("wait", "nosuch")
    assert done.status == 1 and "kqs: not_found" in done.err


# -- watch and follow --------------------------------------------------------------------------------------


def test_watch_prints_events(shared: ServerProcess, client: Client) -> None:
    id = client.insert("watch.cli")
    with Running(shared, "watch", id) as text, Running(shared, "watch", id, "--json") as lines:
        for running in (text, lines):
            running.out.wait_for("state")
        settle(client, lease(client, "watch.cli"), "again", delay=0, reason="not \x1b[31myet")
        settle(client, lease(client, "watch.cli"), "ok")
        assert text.end() == lines.end() == 0
    events = [json.loads(line) for line in lines.out.lines]
    names = ["state", "reserved", "again", "reserved", "done"]
    assert [event["event"] for event in events] == names
    assert [line.split()[1:5] for line in text.out.lines] == [
        [event["event"], id, "watch.cli", event["job"]["state"]] for event in events
    ]
    assert text.out.lines[2].endswith("watch.cli ready not \\x1b[31myet")
    assert text.err.text == lines.err.text == ""


def test_watch_of_a_type_goes_on_until_it_is_ended(shared: ServerProcess, client: Client) -> None:
    with Running(shared, "watch", "--type", "watch.type") as running:
        until(lambda: client.insert("watch.type") and running.out.lines, "the first event")
        client.insert("other")
        client.call("delete", {"type": "watch.type"})
        running.out.wait_for("deleted")
        running.process.terminate()
        running.end()
    assert not any("other" in line for line in running.out.lines)


def test_watch_refuses(ask: Ask) -> None:
    done = ask("watch", "nosuch")
    assert done.status == 1 and done.out == "" and "kqs: not_found: no job 'nosuch' here" in done.err
    done = ask("watch", "a", "--type", "b")
    assert done.status == 1 and "bad_request" in done.err


@pytest.mark.parametrize(
    ("outcome", "reason", "status"), [("ok", None, 0), ("fail", "no such \x1b[31mfile", 1)]
)
def test_follow_shows_progress_until_the_end(
    shared: ServerProcess, client: Client, outcome: str, reason: str | None, status: int
) -> None:
    id = client.insert("follow")
    receipt = lease(client, "follow")
    watched = client.stats()["connections"]["open"]
    with Running(shared, "job", id, "--follow") as running:
        until(lambda: client.stats()["connections"]["open"] > watched, "it to connect")

        progress = {"fraction": 0.25, "message": "page \x1b[2J1"}
        client.call("renew", {"receipts": [receipt], "progress": progress})
        settle(client, receipt, outcome, reason=reason)
        assert running.end() == status
    assert running.out.text == ""
    assert id in running.err.text
    if status:
        assert "buried: no such \\x1b[31mfile" in running.err.text
    else:
        assert re.search(r"ok.*100%", running.err.text)


def test_follow_of_what_is_over(ask: Ask, client: Client) -> None:
    done, cancelled = client.insert("over"), client.insert("over.2")
    settle(client, lease(client, "over"), "ok")
    client.call("cancel", {"id": cancelled})
    assert ask("job", done, "--follow").status == 0
    assert ask("job", cancelled, "--follow").status == 1
    refused = ask("job", "nosuch", "--follow")
    assert refused.status == 1 and "kqs: not_found" in refused.err
