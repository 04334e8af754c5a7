"""Tokens made and revoked by the command, while the server runs and between its starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from kqs.client import Client
from kqs.errors import Unauthorized
from kqs.service.throttle import FREE
from tests.support import ServerProcess, Wire, kqs, request, until

Start = Callable[..., ServerProcess]


def new(server: ServerProcess, role: str, *args: str) -> str:
    """A new token."""
    done = kqs("token", "new", "--role", role, "--data", str(server.data), *args)
    assert done.status == 0, done
    return done.out.strip()


def revoke(server: ServerProcess, name: str) -> None:
    assert kqs("token", "revoke", name, "--data", str(server.data)).status == 0


def code(server: ServerProcess, token: str | None) -> str:
    """What a new connection's ``stats`` comes to; ``closed`` when the tokens changed just then."""
    with server.connect() as wire:
        calls: list[tuple[str, Any]] = [("stats", ...)]
        if token is not None:
            calls.insert(0, ("auth", {"token": token}))
        for name, argument in calls:
            wire.send(request(name, argument))
            reply = wire.line()
            if reply is None:
                return "closed"
            if reply["e"] is not None:
                return str(reply["e"]["code"])
    return "ok"


def known(server: ServerProcess, token: str) -> None:
    """Return when the server knows a token; one that needs none takes any."""
    until(lambda: code(server, None) == "unauthorized", "tokens to be required")
    until(lambda: code(server, token) in ("ok", "forbidden"), "the token to be known")


def authenticated(server: ServerProcess, token: str) -> Wire:
    wire = server.connect()
    assert wire.call("auth", {"token": token})["e"] is None
    return wire


def test_the_first_token_closes_an_open_server(start: Start) -> None:
    server = start()
    with server.connect() as idle, server.connect() as waiting, Client(server.url) as client:
        assert idle.call("ping")["m"] == "pong"
        client.ping()
        waiting.send(b'{"v":1,"id":"w","n":"reserve","m":{"types":["none"],"wait":600}}\n')
        until(lambda: client.stats()["reserves_waiting"] > len(server.workers()), "the reserve to wait")
        token = new(server, "read")
        assert idle.closed()
        assert waiting.rest() == [{"v": 1, "id": "w", "e": None, "s": "end", "m": {"jobs": []}}]
        with pytest.raises(Unauthorized):
            client.ping()
    assert code(server, None) == "unauthorized"
    assert code(server, token) == "ok"


def test_local_workers_stay_when_the_first_token_comes(start: Start) -> None:
    server = start()
    server.wait_for_workers()
    before = {worker.pid for worker in server.wait_for_workers().workers()}
    token = new(server, "insert")
    known(server, token)
    with server.client(token) as client:
        client.insert("ping", {"a": 1})
    server.stdout.wait_for('ping running, payload = {"a":1}')
    assert {worker.pid for worker in server.workers()} == before


def test_a_revoked_token_ends_its_connections_and_no_others(start: Start) -> None:
    server = start()
    kept, lost = new(server, "read", "--name", "kept"), new(server, "read", "--name", "lost")
    known(server, lost)
    with authenticated(server, kept) as one, authenticated(server, lost) as other:
        revoke(server, "lost")
        assert other.closed()
        assert one.call("stats")["e"] is None
    assert (code(server, kept), code(server, lost)) == ("ok", "unauthorized")


@pytest.mark.parametrize("gone", ["revoked", "removed"])
def test_without_a_token_left_nobody_is_let_in(start: Start, gone: str) -> None:
    server = start()
    token = new(server, "admin", "--name", "last")
    known(server, token)
    with authenticated(server, token) as wire:
        if gone == "revoked":
            revoke(server, "last")
        else:
            (server.data / "tokens.json").unlink()
        assert wire.closed()
    assert (code(server, None), code(server, token)) == ("unauthorized", "unauthorized")
    another = new(server, "read")
    known(server, another)


def test_the_file_is_read_at_start_beside_the_config(start: Start) -> None:
    server = start()
    server.stop()
    token = new(server, "read")
    config = f'[[tokens]]\nname = "other"\nrole = "insert"\nsha256 = "{"0" * 64}"\n'
    for settings in (None, config):
        server = start(settings)
        assert (code(server, None), code(server, token)) == ("unauthorized", "ok")
        server.stop()
    assert kqs("token", "revoke", "read-1", "--data", str(server.data)).status == 0
    server = start()
    assert code(server, None) == "unauthorized"


def test_a_file_that_cannot_be_read_changes_nothing_while_the_server_runs(start: Start) -> None:
    server = start()
    token = new(server, "read")
    known(server, token)
    file = server.data / "tokens.json"
    good = file.read_text()
    with authenticated(server, token) as wire:
        file.write_text("{")
        server.stderr.wait_for("tokens not read")
        assert wire.call("stats")["e"] is None
        assert (code(server, None), code(server, token)) == ("unauthorized", "ok")
        file.write_text(good)
        server.stderr.wait_for("tokens read again", times=2)
        assert wire.call("stats")["e"] is None


def test_a_garbled_first_file_closes_an_open_server(start: Start) -> None:
    server = start()
    with server.connect() as wire:
        wire.call("ping")
        (server.data / "tokens.json").write_text("{")
        assert wire.closed()
    assert code(server, None) == "unauthorized"


CANARY = "kqs_canary-a-token-nobody-may-see"
WRONG = "kqs_canary-another-that-is-wrong"

#: Every way to hand a token in, right and wrong; what is inside ``echo`` or a name comes back on purpose.
LINES: list[Any] = [
    {"n": "auth", "m": {"token": CANARY}},
    {"n": "auth", "m": {"token": CANARY, "more": 1}},
    {"n": "auth", "m": {"tokn": CANARY}},
    {"n": "auth", "m": {"token": [CANARY]}},
    {"n": "auth", "m": CANARY},
    {"n": "auth", "m": {"token": WRONG}},
    {"n": "stats", "m": {"auth": {"usr": "me", "pwd": CANARY}}},
    {"n": "stats", "m": {"auth": {"usr": "me", "pwd": WRONG}}},
    {"n": "stats", "m": {"auth": {"usr": 1, "pwd": CANARY}}},
    {"n": "stats", "m": {"auth": CANARY}},
    {"n": "stats", "m": {"token": CANARY}},
    {"n": "insert", "m": {"auth": {"usr": CANARY, "pwd": CANARY}, "type": "x", "data": 1}},
    {"n": "insert", "m": {"auth": {"pwd": CANARY}, "type": "x", "ttr": -1}},
    {"n": "insert", "m": [{"type": "x", "auth": {"pwd": CANARY}}]},
    {"n": "nosuch", "m": {"auth": {"pwd": CANARY}}},
    {"n": "jobs", "m": {"auth": {"pwd": CANARY}, "state": "nosuch"}},
    f"auth {CANARY}",
    f'{{"v":1,"n":"auth","m":{{"token":"{CANARY}"}}',
    f'{{"v":2,"n":"auth","m":{{"token":"{CANARY}"}}}}',
    f'{{"v":1,"n":"auth","m":{{"token":"{CANARY}\\ud800"}}}}',
    '{"n":"auth","m":{"token":"' + CANARY * 10_000 + '"}}',
]


def test_a_token_is_nowhere_to_be_seen(start: Start) -> None:
    """Not in a reply, the log, the call log, the journal or any other file, not in what a client says."""
    sha256 = hashlib.sha256(CANARY.encode()).hexdigest()
    token = f'[[tokens]]\nname = "one"\nrole = "admin"\nsha256 = "{sha256}"\n'
    server = start(token + "[call_log]\nsample = 1.0\n")
    seen = ""
    for line in LINES:
        with server.connect() as wire:
            wire.send(
                line.encode() if isinstance(line, str) else json.dumps({"v": 1, "id": "1", **line}).encode()
            )
            wire.half_close()
            replies = wire.rest()
            assert replies, line
            seen += json.dumps(replies)
    with server.connect() as wire:
        wire.call("auth", {"token": CANARY})
        for name in (CANARY, f"x\n{CANARY}"):
            wire.call(name)
    for token in (CANARY, WRONG):
        for command in (("stats",), ("insert", "x"), ("call", "stats", "{nosuch: 1}")):
            done = kqs(*command, KQS_URL=server.url, KQS_TOKEN=token)
            seen += done.out + done.err
    for number in range(FREE):
        with server.connect() as wire:
            seen += json.dumps(wire.call("auth", {"token": f"{WRONG}{number}"}))
    server.stderr.wait_for("wrong tokens")
    server.stop()
    done = kqs("stats", KQS_URL=server.url, KQS_TOKEN=CANARY)
    seen += done.out + done.err + server.stdout.text + server.stderr.text
    assert '"call":"insert"' in (server.data / "log" / "calls.jsonl").read_text()
    assert "canary" not in seen
    for path in server.folder.rglob("*"):
        if path.is_file():
            assert b"canary" not in path.read_bytes(), path
