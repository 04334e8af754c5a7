"""``job``, ``jobs``, ``stats``: what the server tells of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from kqs.client import Client
from kqs.errors import CallError, NotFound
from tests.support import ServerProcess

STATES = ("delayed", "ready", "reserved", "buried", "done")


@pytest.fixture(scope="module")
def ids(shared: ServerProcess) -> dict[str, str]:
    """One job in every state, of the type ``state``, by state."""
    with shared.client() as client:
        made = {"done": client.insert("state", 0, prio="urgent"), "buried": client.insert("state", 1)}
        for id, outcome in ((made["done"], "ok"), (made["buried"], "fail")):
            (lease,) = client.call("reserve", {"types": ["state"]})["jobs"]
            assert lease["id"] == id
            settlement = {"receipt": lease["receipt"], "outcome": outcome, "reason": f"was {outcome}"}
            client.call("settle", [settlement])
        made["reserved"] = client.insert("state", 2, ttr=1000)
        client.call("reserve", {"types": ["state"], "worker": "w"})
        made["delayed"] = client.insert("state", 3, delay=1000)
        made["ready"] = client.insert("state", {"n": 4})
    return made


@pytest.fixture
def client(shared: ServerProcess, ids: dict[str, str]) -> Iterator[Client]:
    with shared.client() as client:
        yield client


BASE = {"id", "type", "state", "prio", "attempt", "inserted_at", "due_at", "ttr", "size"}
MORE = {
    "delayed": set(),
    "ready": set(),
    "reserved": {"started_at", "leased_by", "lease_expires_at"},
    "buried": {"started_at", "last_error"},
    "done": {"started_at", "finished_at", "outcome"},
}


@pytest.mark.parametrize("state", STATES)
def test_a_job_shows_what_applies_and_nothing_else(client: Client, ids: dict[str, str], state: str) -> None:
    job = client.job(ids[state])
    assert job.keys() == BASE | MORE[state]
    assert (job["id"], job["type"], job["state"]) == (ids[state], "state", state)


def test_data_comes_when_asked_for(client: Client, ids: dict[str, str]) -> None:
    job = client.job(ids["ready"], data=True)
    assert (job["data"], job["size"]) == ({"n": 4}, len('{"n":4}'))
    assert "data" not in client.call("job", {"id": ids["ready"], "data": False})


def test_a_reserved_job_says_who_and_until_when(client: Client, ids: dict[str, str]) -> None:
    job = client.job(ids["reserved"])
    assert (job["leased_by"], job["attempt"]) == ("w", 1)
    assert job["lease_expires_at"] > job["started_at"] >= job["inserted_at"]


def test_a_buried_job_says_why(client: Client, ids: dict[str, str]) -> None:
    error = client.job(ids["buried"])["last_error"]
    assert error.keys() == {"message", "kind", "at"}
    assert error["message"] == "was fail"


@pytest.mark.parametrize("id", ["", "1", "nosuch-1", "-", "1-1-1", "\N{SNOWMAN}", "x" * 10_000])
def test_no_such_job(client: Client, id: str) -> None:
    with pytest.raises(NotFound):
        client.job(id)


def test_ids_of_another_number_are_not_found(client: Client, ids: dict[str, str]) -> None:
    prefix = ids["ready"].rpartition("-")[0]
    for number in ("0", "99999999", "9" * 30, "-1", "1_0", "\N{ARABIC-INDIC DIGIT ONE}", " 1"):
        with pytest.raises(NotFound):
            client.job(f"{prefix}-{number}")


@pytest.mark.parametrize("state", STATES)
def test_jobs_of_a_state(client: Client, ids: dict[str, str], state: str) -> None:
    page = client.call("jobs", {"state": state, "type": "state"})
    assert page.keys() == {"jobs"}
    assert [job["id"] for job in page["jobs"]] == [ids[state]]
    assert page["jobs"][0] == client.job(ids[state])


def test_jobs_come_in_pages_in_insertion_order(client: Client) -> None:
    made = client.insert_many([{"type": "page", "data": n} for n in range(105)])
    seen: list[str] = []
    after: dict[str, Any] = {}
    sizes = []
    while True:
        page = client.call("jobs", {"type": "page", **after})
        sizes.append(len(page["jobs"]))
        seen += [job["id"] for job in page["jobs"]]
        if "next" not in page:
            break
        after = {"after": page["next"]}
    assert (seen, sizes) == (made, [50, 50, 5])
    limited = client.call("jobs", {"type": "page", "limit": 2, "after": made[9]})
    assert [job["id"] for job in limited["jobs"]] == made[10:12]


def test_all_jobs_without_an_argument(client: Client, ids: dict[str, str]) -> None:
    page = client.call("jobs")
    assert ids["ready"] in [job["id"] for job in page["jobs"]]
    assert {job["state"] for job in page["jobs"]} <= set(STATES)


@pytest.mark.parametrize(
    ("call", "argument", "code", "field"),
    [
        ("job", {}, "bad_request", "id"),
        ("job", {"id": 7}, "bad_request", "id"),
        ("job", {"id": "x", "data": 1}, "bad_request", "data"),
        ("job", {"id": "x", "dta": True}, "unknown_field", "dta"),
        ("job", "x", "bad_request", None),
        ("jobs", {"state": "gone"}, "bad_request", "state"),
        ("jobs", {"limit": 0}, "bad_request", "limit"),
        ("jobs", {"limit": 1001}, "bad_request", "limit"),
        ("jobs", {"limit": 1.5}, "bad_request", "limit"),
        ("jobs", {"type": ""}, "bad_request", "type"),
        ("jobs", {"after": "nosuch-1"}, "not_found", "after"),
        ("jobs", {"after": 1}, "bad_request", "after"),
        ("jobs", {"sate": "ready"}, "unknown_field", "sate"),
        ("jobs", [], "bad_request", None),
        ("stats", {"type": 1}, "bad_request", "type"),
        ("stats", {"tpye": "x"}, "unknown_field", "tpye"),
        ("stats", [], "bad_request", None),
        ("health", {"x": 1}, "unknown_field", "x"),
        ("health", "x", "bad_request", None),
        ("quit", {"grace": -1}, "bad_request", "grace"),
        ("quit", {"grace": "now"}, "bad_request", "grace"),
        ("quit", {"graec": 1}, "unknown_field", "graec"),
        ("auth", {}, "bad_request", "token"),
        ("auth", {"token": 1}, "bad_request", "token"),
    ],
)
def test_bad_arguments(client: Client, call: str, argument: Any, code: str, field: str | None) -> None:
    with pytest.raises(CallError) as caught:
        client.call(call, argument)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert client.ping() == "pong"


def test_stats_has_at_least_what_the_reference_says(client: Client, shared: ServerProcess) -> None:
    client.call("ping")
    with pytest.raises(CallError):
        client.call("job", {"id": "nosuch"})
    stats = client.stats()
    assert stats["jobs"].keys() == set(STATES)
    assert stats["types"]["state"] == dict.fromkeys(STATES, 1)
    assert stats["jobs"]["buried"] == 1
    assert stats["oldest_ready_age"] >= 0
    assert stats["engine"] == "embedded"
    assert stats["process"]["pid"] == shared.pid
    assert stats["process"]["rss_bytes"] > 1_000_000
    assert stats["process"]["uptime"] > 0
    journal = stats["journal"]
    assert journal.keys() >= {"bytes", "segments", "last_seq", "synced_seq"}
    assert 0 < journal["synced_seq"] <= journal["last_seq"]
    assert stats["errors"]["not_found"] >= 1
    ping = stats["calls"]["ping"]
    assert ping["count"] >= 1
    for histogram in (ping["latency"], ping["duration"]):
        assert histogram.keys() == {"count", "mean", "p50", "p99", "max", "buckets"}
        assert histogram["count"] == ping["count"] == sum(histogram["buckets"].values())
        assert 0 <= histogram["p50"] <= histogram["p99"] <= histogram["max"]
    assert stats["calls"]["job"]["errors"] >= 1
    assert stats["connections"]["open"] >= 1


def test_stats_of_one_type(client: Client) -> None:
    stats = client.call("stats", {"type": "state"})
    assert stats["types"].keys() == {"state"}
    assert stats["jobs"] == stats["types"]["state"]
    assert client.call("stats", {"type": "nosuch"})["types"] == {}


def test_every_call_is_counted(client: Client) -> None:
    calls = ("ping", "echo", "insert", "reserve", "settle", "renew", "job", "jobs", "stats", "health")
    arguments: dict[str, Any] = {
        "insert": {"type": "counted"},
        "reserve": {"types": ["nosuch"]},
        "settle": [],
        "renew": {"receipts": []},
        "job": {"id": client.insert("counted")},
    }
    before = client.stats()["calls"]
    for call in calls:
        client.call(call, arguments.get(call, {}))
    after = client.stats()["calls"]
    counted = {call: after[call]["count"] - before.get(call, {"count": 0})["count"] for call in calls}
    assert counted == {call: 2 if call == "stats" else 1 for call in calls}


def test_health_of_a_server_at_rest(client: Client) -> None:
    health = client.health()
    assert health.keys() == {"status", "checks"}
    assert health["status"] == "ok"
    assert [check["name"] for check in health["checks"]] == ["journal", "disk", "progress", "workers"]
    for check in health["checks"]:
        assert check.keys() == {"name", "status", "text"} and check["status"] == "ok" and check["text"]


def test_the_process_it_names_is_it(client: Client, shared: ServerProcess) -> None:
    assert psutil.Process(client.stats()["process"]["pid"]).ppid() == os.getpid()
    assert len(shared.workers()) == len(client.stats()["workers"]) == 1
