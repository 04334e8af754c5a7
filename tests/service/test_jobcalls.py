"""Calls that change jobs: kick, bury, delete, cancel, purge, pause, resume, drain; and expiry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from kqs.client import Client
from kqs.errors import BadRequest, CallError, Conflict, NotFound, UnknownField
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]

_numbers = count()


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[Client]:
    with shared.client() as client:
        yield client


@pytest.fixture
def type() -> str:
    """A job type no other test uses."""
    return f"jobcalls-{next(_numbers)}"


def states(client: Client, ids: list[str]) -> list[str]:
    return [client.job(id).get("outcome") or client.job(id)["state"] for id in ids]


def lease(client: Client, type: str, max: int = 1) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = client.call("reserve", {"types": [type], "max": max})["jobs"]
    return jobs


def in_all_states(client: Client, type: str) -> dict[str, str]:
    """One job in each state that is not the end."""
    reserved, buried = client.insert(type), client.insert(type)
    assert [job["id"] for job in lease(client, type, 2)] == [reserved, buried]
    client.call("bury", {"id": buried})
    return {
        "reserved": reserved,
        "buried": buried,
        "delayed": client.insert(type, delay=1000),
        "ready": client.insert(type),
    }


# -- kick, bury, delete, cancel ------------------------------------------------------------------------

#: What becomes of a job in a state by a verb that names it; None: it is a conflict.
BY_ID = {
    "kick": {"delayed": "ready", "ready": None, "reserved": None, "buried": "ready"},
    "bury": {"delayed": "buried", "ready": "buried", "reserved": "buried", "buried": None},
    "delete": dict.fromkeys(("delayed", "ready", "reserved", "buried"), "deleted"),
    "cancel": {"delayed": "cancelled", "ready": "cancelled", "reserved": "reserved", "buried": "cancelled"},
}
#: The states a verb is for when it is given a type alone.
USUAL = {
    "kick": ["buried"],
    "bury": ["delayed", "ready"],
    "delete": ["delayed", "ready", "buried"],
    "cancel": ["delayed", "ready", "reserved"],
}


@pytest.mark.parametrize("verb", BY_ID)
def test_by_id_in_every_state(client: Client, type: str, verb: str) -> None:
    for state, id in in_all_states(client, type).items():
        became = BY_ID[verb][state]
        if became is not None:
            assert client.call(verb, {"id": id}) == {"count": 1}
            assert states(client, [id]) == [became]
            continue
        with pytest.raises(Conflict) as refused:
            client.call(verb, {"id": id})
        assert refused.value.field == "id" and f"a {state} job can't take {verb}" in str(refused.value)
        assert states(client, [id]) == [state]


@pytest.mark.parametrize("verb", BY_ID)
def test_by_type_it_is_for_the_usual_states(client: Client, type: str, verb: str) -> None:
    ids = in_all_states(client, type)
    assert client.call(verb, {"type": type}) == {"count": len(USUAL[verb])}
    for state, id in ids.items():
        assert states(client, [id]) == [BY_ID[verb][state] if state in USUAL[verb] else state]


@pytest.mark.parametrize("verb", BY_ID)
def test_by_type_and_state(client: Client, type: str, verb: str) -> None:
    for state, id in in_all_states(client, type).items():
        became = BY_ID[verb][state]
        if became is None:
            with pytest.raises(Conflict, match=f"a {state} job can't take {verb}") as refused:
                client.call(verb, {"type": type, "state": state})
            assert refused.value.field == "state"
        else:
            assert client.call(verb, {"type": type, "state": state})["count"] >= 1
            assert states(client, [id]) == [became]


@pytest.mark.parametrize("verb", BY_ID)
def test_ids_are_all_or_none(client: Client, type: str, verb: str) -> None:
    """An unknown one, or one that is done, and nothing of the call is done."""
    good = [client.insert(type, delay=1000) for _ in range(2)]
    done = client.insert(f"{type}-done")
    client.call("delete", {"id": done})
    for bad, error in (("nosuch", NotFound), (done, Conflict)):
        with pytest.raises(error) as refused:
            client.call(verb, {"ids": [*good, bad]})
        assert refused.value.field == "id"
    assert states(client, good) == ["delayed", "delayed"]
    assert client.call(verb, {"ids": [*good, good[0]]}) == {"count": 2}
    assert client.call(verb, {"ids": []}) == {"count": 0}
    assert states(client, good) == [BY_ID[verb]["delayed"]] * 2


def test_a_limit_takes_the_oldest(client: Client, type: str) -> None:
    ids = client.insert_many([{"type": type}] * 5)
    assert client.call("bury", {"type": type, "limit": 3}) == {"count": 3}
    assert states(client, ids) == ["buried"] * 3 + ["ready"] * 2
    assert client.call("kick", {"type": type, "limit": 1}) == {"count": 1}
    assert states(client, ids) == ["ready", "buried", "buried", "ready", "ready"]
    assert client.call("delete", {"type": type, "state": "buried", "limit": 100}) == {"count": 2}


def test_a_filter_is_about_its_type_only(client: Client, type: str) -> None:
    mine, other = client.insert(type), client.insert(f"{type}-other")
    client.call("delete", {"type": type})
    assert states(client, [mine, other]) == ["deleted", "ready"]


def test_many_jobs(client: Client, type: str) -> None:
    """More than are changed in one append."""
    ids = client.insert_many([{"type": type}] * 2500)
    assert client.call("bury", {"type": type}) == {"count": 2500}
    assert client.call("kick", {"ids": ids}) == {"count": 2500}
    assert client.call("delete", {"type": type, "limit": 2400}) == {"count": 2400}
    assert client.call("stats", {"type": type})["jobs"]["ready"] == 100


@pytest.mark.parametrize("verb", BY_ID)
@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ({}, "id"),
        ({"limit": 1}, "id"),
        ({"id": "a", "ids": ["b"]}, "ids"),
        ({"id": "a", "type": "b"}, "ids"),
        ({"ids": ["a"], "state": "ready"}, "ids"),
        ({"ids": ["a"], "limit": 1}, "ids"),
        ({"id": 1}, "id"),
        ({"ids": "a"}, "ids"),
        ({"ids": ["a"] * 10_001}, "ids"),
        ({"type": ""}, "type"),
        ({"type": "t", "state": "done"}, "state"),
        ({"type": "t", "state": "waiting"}, "state"),
        ({"type": "t", "limit": 0}, "limit"),
    ],
)
def test_arguments_that_make_no_sense(client: Client, verb: str, argument: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        client.call(verb, argument)
    assert refused.value.field == field


@pytest.mark.parametrize("call", [*BY_ID, "purge", "pause", "resume", "drain", "wait", "watch"])
def test_a_member_nobody_knows(client: Client, call: str) -> None:
    with pytest.raises(UnknownField) as refused:
        client.call(call, {"type": "t", "typ": "t"} if call == "purge" else {"typ": "t"})
    assert refused.value.field == "typ"


def test_a_kicked_job_runs_at_once_with_its_attempts_kept(client: Client, type: str) -> None:
    id = client.insert(type)
    (job,) = lease(client, type)
    client.call("settle", [{"receipt": job["receipt"], "outcome": "fail", "reason": "no"}])
    assert lease(client, type) == []
    client.call("kick", {"id": id})
    (again,) = lease(client, type)
    assert (again["id"], again["attempt"]) == (id, 2)
    assert client.job(id)["last_error"]["message"] == "no"


@pytest.mark.parametrize("verb", ["bury", "delete"])
def test_a_lease_that_was_taken_away_settles_nothing(client: Client, type: str, verb: str) -> None:
    client.insert(type)
    (job,) = lease(client, type)
    client.call(verb, {"id": job["id"]})
    assert client.call("renew", {"receipts": [job["receipt"]]})["lost"] == [job["receipt"]]
    settled = client.call("settle", [{"receipt": job["receipt"], "outcome": "ok"}])
    assert settled["refused"] == [{"index": 0, "code": "stale_receipt"}]


@pytest.mark.parametrize(
    ("outcome", "became"),
    [("ok", "ok"), ("again", "cancelled"), ("fail", "cancelled"), ("release", "cancelled")],
)
def test_a_remote_worker_hears_of_a_cancel_when_it_renews(
    client: Client, type: str, outcome: str, became: str
) -> None:
    id = client.insert(type)
    (job,) = lease(client, type)
    client.call("cancel", {"id": id})
    shown = client.job(id)
    assert (shown["state"], shown["cancelled"]) == ("reserved", True)
    assert client.call("renew", {"receipts": [job["receipt"]]})["cancelled"] == [job["receipt"]]
    assert client.call("settle", [{"receipt": job["receipt"], "outcome": outcome}])["settled"] == 1
    assert client.job(id)["outcome"] == became
    assert "cancelled" not in client.job(id)


def test_a_cancel_outlives_a_kill_of_the_server(start: Start) -> None:
    """Its worker is away and does not hear of it: the job ends with the lease."""
    server = start()
    client = server.client()
    id = client.insert("away", ttr=1)
    lease(client, "away")
    client.call("cancel", {"id": id})
    server.kill()
    client = start().client()
    until(lambda: client.job(id)["state"] == "done", "the lease to be over")
    assert client.job(id)["outcome"] == "cancelled"


# -- purge ------------------------------------------------------------------------------------------------


def test_purge_takes_what_is_ready(client: Client, type: str) -> None:
    ids = in_all_states(client, type)
    assert client.call("purge", {"type": type}) == {"count": 1}
    assert client.job(ids.pop("ready"))["outcome"] == "deleted"
    assert states(client, list(ids.values())) == list(ids)
    for state in ids:
        assert client.call("purge", {"type": type, "state": state}) == {"count": 1}
    assert states(client, list(ids.values())) == ["deleted"] * 3


def test_purge_of_what_is_older(client: Client, type: str) -> None:
    old = client.insert(type)
    until(lambda: client.call("purge", {"type": type, "older": 0.3}) == {"count": 1}, "it to be old")
    young = client.insert(type)
    assert client.call("purge", {"type": type, "older": 1000}) == {"count": 0}
    assert states(client, [old, young]) == ["deleted", "ready"]


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ({}, "type"),
        ({"type": 1}, "type"),
        ({"type": "t", "state": "done"}, "state"),
        ({"type": "t", "older": -1}, "older"),
        ({"type": "t", "older": "1 day"}, "older"),
    ],
)
def test_purge_refuses(client: Client, argument: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        client.call("purge", argument)
    assert refused.value.field == field


# -- pause and drain --------------------------------------------------------------------------------------


def test_a_paused_type_waits_over_a_kill_and_a_restart(start: Start) -> None:
    server = start()
    client = server.client()
    ids = [client.insert("paused"), client.insert("other")]
    assert client.call("pause", {"type": "paused"}) == {"type": "paused", "paused": True}
    server.kill()
    server = start()
    client = server.client()
    ids.append(client.insert("paused"))
    assert client.stats()["paused"] == ["paused"]
    assert [job["id"] for job in client.call("reserve", {"max": 10})["jobs"]] == [ids[1]]
    assert client.call("resume", {"type": "paused"}) == {"type": "paused", "paused": False}
    server.terminate()
    server.wait()
    client = start().client()
    assert client.stats()["paused"] == []
    assert [job["id"] for job in client.call("reserve", {"types": ["paused"], "max": 10})["jobs"]] == [
        ids[0],
        ids[2],
    ]


def test_who_waits_is_woken_by_resume(shared: ServerProcess, client: Client, type: str) -> None:
    client.call("pause", {"type": type})
    client.call("pause", {"type": type})  # twice is once
    id = client.insert(type)
    with shared.connect() as wire:
        wire.send(b'{"v":1,"id":"1","n":"reserve","m":{"types":["%s"],"wait":600}}\n' % type.encode())
        until(lambda: client.stats()["reserves_waiting"] > len(client.stats()["workers"]))
        client.call("resume", {"type": type})
        reply = wire.line()
    assert reply is not None and [job["id"] for job in reply["m"]["jobs"]] == [id]


@pytest.mark.parametrize("call", ["pause", "resume"])
def test_a_pause_needs_a_type(client: Client, call: str) -> None:
    for argument in ({}, {"type": ""}, {"type": "x" * 198}):
        with pytest.raises(BadRequest) as refused:
            client.call(call, argument)
        assert refused.value.field == "type"


DRAINED = """
[health]
stall = 0.2
disk_free = 0
[handlers.note]
python = "jobs:note"
"""


def test_a_draining_server_accepts_and_hands_out_nothing(start: Start) -> None:
    server = start(DRAINED).wait_for_workers()
    client = server.client()
    assert client.call("drain") == {"draining": True}
    assert client.call("drain", {"on": True}) == {"draining": True}
    id = client.insert("note")
    assert client.call("reserve", {"wait": 0.5}) == {"jobs": []}  # longer than health.stall
    assert (client.job(id)["state"], client.stats()["draining"]) == ("ready", True)
    health = client.health()
    assert health["status"] == "degraded"
    (check,) = [check for check in health["checks"] if check["status"] != "ok"]
    assert check["name"] == "workers" and "draining" in check["text"] and "kqs drain --off" in check["text"]
    assert client.call("drain", {"on": False}) == {"draining": False}
    until(lambda: client.job(id)["state"] == "done", "the job to run")
    assert client.health()["status"] == "ok"
    with pytest.raises(BadRequest) as refused:
        client.call("drain", {"on": "yes"})
    assert refused.value.field == "on"


# -- expiry ----------------------------------------------------------------------------------------------


def test_a_job_that_expires_is_buried_and_may_be_kicked(client: Client, type: str) -> None:
    id = client.insert(type, expires=0.05)
    until(lambda: client.job(id)["state"] == "buried", "it to expire")
    error = client.job(id)["last_error"]
    assert error["kind"] == "expired" and error["message"] == "expired 0.05 s after it was inserted"
    assert lease(client, type) == []
    client.call("kick", {"id": id})
    (job,) = lease(client, type)
    assert (job["id"], job["attempt"]) == (id, 1)


def test_an_attempt_that_began_in_time_is_not_ended_by_expiry(client: Client, type: str) -> None:
    id = client.insert(type, expires=0.3)
    (job,) = lease(client, type)
    probe = client.insert(f"{type}-probe", expires=0.3)
    until(lambda: client.job(probe)["state"] == "buried", "the time to be over")
    assert client.job(id)["state"] == "reserved"
    assert client.call("settle", [{"receipt": job["receipt"], "outcome": "ok"}])["settled"] == 1


@pytest.mark.parametrize("member", ["expires", "result_ttl"])
def test_times_that_make_no_sense(client: Client, type: str, member: str) -> None:
    for value in (-1, "1", 1e300):
        with pytest.raises(CallError) as refused:
            client.insert(type, **{member: value})
        assert (refused.value.code, refused.value.field) == ("bad_request", member)
