"""Who may call what: every call with every role, on a server that has tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from kqs.client import AsyncClient, Client
from kqs.core.calls import ALLOWED, ROLES
from kqs.errors import Forbidden, Unauthorized
from tests.support import ServerProcess, kqs

#: What each role may call, written out once more on purpose: a call that is added must be added here too,
#: or nobody but admin may make it. Admin may make all.
MAY = {
    "insert": {"ping", "echo", "auth", "insert", "wait", "job"},
    "work": {"ping", "echo", "auth", "reserve", "settle", "renew"},
    "read": {"ping", "echo", "auth", "stats", "health", "job", "jobs", "why", "watch", "cron"},
}

#: Arguments that are refused as such, or change nothing: being heard is what is tested here.
ARGUMENTS: dict[str, Any] = {
    "insert": {},
    "job": {},
    "renew": {},
    "settle": {},  # no array: that could not carry a token the seed's way
    "reserve": {"max": 0},
    "quit": {"grace": -1},
    "watch": {"id": ""},
    "drain": {"on": None},
}


def token(role: str) -> str:
    return f"secret-of-{role}"


CONFIG = "".join(
    f'[[tokens]]\nname = "{role}"\nrole = "{role}"\n'
    f'sha256 = "{hashlib.sha256(token(role).encode()).hexdigest()}"\n'
    for role in ROLES
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("guarded"), CONFIG)
    try:
        yield made.start()
        made.stop()
    finally:
        made.discard()


def code(reply: dict[str, Any]) -> str:
    """An error's code, ``heard`` when the call itself was looked at."""
    if reply["e"] is None or reply["e"]["code"] in ("bad_request", "not_found"):
        return "heard"
    return str(reply["e"]["code"])


def may(role: str, call: str) -> bool:
    return role == "admin" or call in MAY[role]


def test_the_table_has_every_call_the_server_takes(guarded: ServerProcess) -> None:
    with guarded.client(token("read")) as client:
        assert client.stats()["calls_known"] == sorted(ALLOWED)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("call", sorted(ALLOWED))
def test_every_call_with_every_role(guarded: ServerProcess, call: str, role: str) -> None:
    with guarded.connect() as wire:
        if call == "auth":
            reply = wire.call("auth", {"token": token(role)})
            assert reply["m"] == {"role": role}
            return
        assert wire.call("auth", {"token": token(role)})["m"] == {"role": role}
        reply = wire.call(call, ARGUMENTS.get(call, ...))
        assert code(reply) == ("heard" if may(role, call) else "forbidden"), reply
        if not may(role, call):
            assert reply["e"]["message"] == f"role {role} may not call {call}"
        assert wire.call("ping")["m"] == "pong"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("call", sorted(ALLOWED.keys() - {"auth", "echo"}))
def test_every_call_with_every_role_the_seeds_way(guarded: ServerProcess, call: str, role: str) -> None:
    """The token is in the call itself, the first on its connection."""
    argument = ARGUMENTS.get(call, {})
    with guarded.connect() as wire:
        reply = wire.call(call, {"auth": {"usr": "anyone", "pwd": token(role)}, **argument})
        assert code(reply) == ("heard" if may(role, call) else "forbidden"), reply


@pytest.mark.parametrize("call", sorted(ALLOWED))
def test_every_call_without_a_token(guarded: ServerProcess, call: str) -> None:
    with guarded.connect() as wire:
        reply = wire.call(call, ARGUMENTS.get(call, ...))
        assert code(reply) == ("heard" if call == "auth" else "unauthorized"), reply


@pytest.mark.parametrize("role", ROLES)
def test_unknown_calls_are_unknown_to_all(guarded: ServerProcess, role: str) -> None:
    with guarded.connect() as wire:
        wire.call("auth", {"token": token(role)})
        assert wire.call("nosuch")["e"]["message"] == "nosuch: no handler"


def test_the_unix_socket_wants_a_token_too(guarded: ServerProcess) -> None:
    url = f"kqs+unix:{guarded.data}/kqs.sock"
    with Client(url) as client, pytest.raises(Unauthorized):
        client.ping()
    with Client(url, token=token("read")) as client:
        assert client.ping() == "pong"


@pytest.mark.parametrize("role", ROLES)
def test_the_seeds_way_authenticates_call_and_connection(guarded: ServerProcess, role: str) -> None:
    auth = {"usr": "anyone", "pwd": token(role)}
    with guarded.connect() as wire:
        assert wire.call("ping", {"auth": auth})["m"] == "pong"
        assert wire.call("ping")["m"] == "pong"
        reply = wire.call("stats", {"type": "ping", "auth": auth})
        assert code(reply) == ("heard" if may(role, "stats") else "forbidden")


def test_the_seeds_way_inserts(guarded: ServerProcess) -> None:
    with guarded.connect() as wire:
        job = {"auth": {"usr": "", "pwd": token("insert")}, "type": "seed", "data": {"auth": "mine"}}
        id = wire.call("insert", job)["m"]["id"]
    with guarded.client(token("read")) as client:
        assert client.job(id, data=True)["data"] == {"auth": "mine"}


@pytest.mark.parametrize("auth", ["x", 7, None, {"usr": 1}, {"pwd": token("admin"), "x": 1}, []])
def test_a_malformed_auth_is_refused_by_name(guarded: ServerProcess, auth: Any) -> None:
    with guarded.connect() as wire:
        error = wire.call("ping", {"auth": auth})["e"]
        assert (error["code"], error["field"]) == ("bad_request", "auth")
        assert wire.call("ping")["e"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        ("auth", {"token": "guess"}),
        ("auth", {"token": ""}),
        ("auth", {"token": token("admin").upper()}),
        ("stats", {"auth": {"usr": "x", "pwd": "guess"}}),
        ("stats", {"auth": {"usr": "x"}}),
    ],
)
def test_a_wrong_token_is_answered_and_ends_the_connection(
    guarded: ServerProcess, call: str, argument: Any
) -> None:
    with guarded.connect() as wire:
        error = wire.call(call, argument)["e"]
        assert error == {"_isError__": True, "message": "unknown token", "code": "unauthorized"}
        assert wire.closed()


def test_a_wrong_token_takes_the_role_away(guarded: ServerProcess) -> None:
    with guarded.connect() as wire:
        wire.call("auth", {"token": token("admin")})
        assert wire.call("auth", {"token": "guess"})["e"]["code"] == "unauthorized"
        assert wire.closed()


def test_a_role_can_be_changed(guarded: ServerProcess) -> None:
    with guarded.connect() as wire:
        wire.call("auth", {"token": token("insert")})
        assert wire.call("stats")["e"]["code"] == "forbidden"
        wire.call("auth", {"token": token("read")})
        assert wire.call("stats")["e"] is None


def test_both_clients_send_their_token(guarded: ServerProcess) -> None:
    with guarded.client(token("read")) as client:
        assert client.health()["status"] == "ok"
        with pytest.raises(Forbidden):
            client.insert("x")
    with guarded.client("guess") as client, pytest.raises(Unauthorized):
        client.ping()


async def test_the_asyncio_client_sends_its_token(guarded: ServerProcess) -> None:
    async with AsyncClient(guarded.url, token=token("read")) as client:
        assert (await client.health())["status"] == "ok"
        with pytest.raises(Forbidden):
            await client.insert("x")
    async with AsyncClient(guarded.url, token="guess") as client:
        with pytest.raises(Unauthorized):
            await client.ping()


def test_the_command_sends_its_token(guarded: ServerProcess) -> None:
    done = kqs("health", KQS_URL=guarded.url, KQS_TOKEN=token("read"))
    assert (done.status, done.out.split()[0]) == (0, "ok")
    done = kqs("health", KQS_URL=guarded.url)
    assert done.status == 1 and done.err.startswith("kqs: unauthorized: this server needs a token")
    done = kqs("insert", "x", KQS_URL=guarded.url, KQS_TOKEN=token("read"))
    assert (done.status, done.err) == (1, "kqs: forbidden: role read may not call insert\n")


def test_workers_of_a_guarded_server_need_no_token(guarded: ServerProcess) -> None:
    with guarded.client(token("insert")) as client:
        client.insert("ping", {"a": 1})
    guarded.stdout.wait_for('ping running, payload = {"a":1}')
