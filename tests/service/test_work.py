"""``reserve``, ``settle``, ``renew``: what a remote worker says and hears."""

from __future__ import annotations

import threading
from base64 import b64decode
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from kqs.client import Client
from kqs.errors import BadRequest, CallError
from tests.support import ServerProcess, until

_numbers = count()


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[Client]:
    with shared.client() as client:
        yield client


@pytest.fixture
def type() -> str:
    """A job type no other test uses."""
    return f"work-{next(_numbers)}"


def reserve(client: Client, type: str, **more: Any) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = client.call("reserve", {"types": [type], **more})["jobs"]
    return jobs


def settle(client: Client, *settlements: dict[str, Any]) -> Any:
    return client.call("settle", list(settlements))


def test_a_lease_has_exactly_these_members(client: Client, type: str) -> None:
    id = client.insert(type, {"a": [1]}, prio="high", ttr=7)
    (lease,) = reserve(client, type)
    assert lease.keys() == {"receipt", "id", "type", "attempt", "ttr", "prio", "inserted_at", "data"}
    receipt, inserted_at = lease.pop("receipt"), lease.pop("inserted_at")
    assert isinstance(receipt, str) and receipt
    assert inserted_at.endswith("Z") and "T" in inserted_at
    assert lease == {
        "id": id,
        "type": type,
        "attempt": 1,
        "ttr": 7,
        "prio": "high",
        "data": {"a": [1]},
    }


def test_binary_comes_as_data64(client: Client, type: str) -> None:
    client.insert(type, bytes(range(256)))
    (lease,) = reserve(client, type)
    assert "data" not in lease
    assert b64decode(lease["data64"], validate=True) == bytes(range(256))


def test_nothing_there(client: Client, type: str) -> None:
    assert client.call("reserve", {"types": [type]}) == {"jobs": []}
    assert client.call("reserve", {"types": [type], "wait": 0.05}) == {"jobs": []}


def test_max_bounds_and_order(client: Client, type: str) -> None:
    for prio in ("bulk", "low", "normal", "high", "urgent"):
        for number in range(3):
            client.insert(type, [prio, number], prio=prio)
    first, rest = reserve(client, type, max=4), reserve(client, type, max=10_000)
    assert [lease["data"] for lease in first + rest] == [
        [prio, number] for prio in ("urgent", "high", "normal", "low", "bulk") for number in range(3)
    ]


def test_types_choose(client: Client, type: str) -> None:
    for suffix in "abc":
        client.insert(f"{type}{suffix}")
    jobs = client.call("reserve", {"types": [f"{type}c", f"{type}a"], "max": 10})["jobs"]
    assert [job["type"] for job in jobs] == [f"{type}a", f"{type}c"]


def test_wait_ends_when_a_job_comes(shared: ServerProcess, client: Client, type: str) -> None:
    got: list[Any] = []

    def wait() -> None:
        with shared.client() as other:
            got.extend(reserve(other, type, wait=600, worker="patient"))

    waiting = client.stats()["reserves_waiting"]
    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: client.stats()["reserves_waiting"] == waiting + 1, "the reserve to wait")
    id = client.insert(type)
    thread.join(60)
    assert [lease["id"] for lease in got] == [id]
    assert client.job(id)["leased_by"] == "patient"


def test_a_waiting_worker_that_leaves_takes_no_job(shared: ServerProcess, client: Client, type: str) -> None:
    waiting = client.stats()["reserves_waiting"]
    with shared.connect() as wire:
        wire.send(b'{"v":1,"id":"1","n":"reserve","m":{"types":["%b"],"wait":600}}\n' % type.encode())
        until(lambda: client.stats()["reserves_waiting"] == waiting + 1, "the reserve to wait")
    until(lambda: client.stats()["reserves_waiting"] == waiting, "the reserve to be forgotten")
    id = client.insert(type)
    assert client.job(id)["state"] == "ready"


def test_delayed_jobs_come_when_due(client: Client, type: str) -> None:
    id = client.insert(type, delay=0.3)
    assert (client.job(id)["state"], reserve(client, type)) == ("delayed", [])
    (lease,) = reserve(client, type, wait=60)
    assert lease["id"] == id
    job = client.job(id)
    assert job["started_at"] >= job["due_at"] > job["inserted_at"]


@pytest.mark.parametrize(
    ("outcome", "state", "attempt"),
    [("ok", "done", 1), ("again", "delayed", 1), ("fail", "buried", 1), ("release", "ready", 0)],
)
def test_outcomes(client: Client, type: str, outcome: str, state: str, attempt: int) -> None:
    id = client.insert(type)
    (lease,) = reserve(client, type)
    assert client.job(id)["state"] == "reserved"
    assert settle(client, {"receipt": lease["receipt"], "outcome": outcome}) == {"settled": 1, "refused": []}
    job = client.job(id)
    assert (job["state"], job["attempt"]) == (state, attempt)


def test_again_takes_delay_prio_and_reason(client: Client, type: str) -> None:
    id = client.insert(type)
    (lease,) = reserve(client, type)
    reason = {"message": "no luck", "kind": "Luck", "traceback": "line 1\nline 2"}
    settle(
        client,
        {"receipt": lease["receipt"], "outcome": "again", "delay": 1000, "prio": "low", "reason": reason},
    )
    job = client.job(id)
    assert (job["state"], job["prio"]) == ("delayed", "low")
    error = job["last_error"]
    assert error.pop("at").endswith("Z")
    assert error == reason


def test_again_with_delay_zero_is_ready_at_once(client: Client, type: str) -> None:
    client.insert(type)
    (lease,) = reserve(client, type)
    settle(client, {"receipt": lease["receipt"], "outcome": "again", "delay": 0, "reason": "later"})
    (second,) = reserve(client, type, wait=60)
    assert (second["attempt"], second["id"]) == (2, lease["id"])
    assert second["receipt"] != lease["receipt"]


def test_max_attempts_buries(client: Client, type: str) -> None:
    id = client.insert(type, max_attempts=2)
    for _ in range(2):
        (lease,) = reserve(client, type, wait=60)
        settle(client, {"receipt": lease["receipt"], "outcome": "again", "delay": 0, "reason": "no"})
    job = client.job(id)
    assert (job["state"], job["attempt"]) == ("buried", 2)
    assert "2 of 2" in job["last_error"]["message"]


def test_a_stale_receipt_changes_nothing_and_is_told(client: Client, type: str) -> None:
    id = client.insert(type)
    (lease,) = reserve(client, type)
    settle(client, {"receipt": lease["receipt"], "outcome": "again", "delay": 0})
    (second,) = reserve(client, type, wait=60)
    answer = settle(
        client,
        {"receipt": lease["receipt"], "outcome": "ok"},
        {"receipt": second["receipt"], "outcome": "ok"},
        {"receipt": "1-1-1", "outcome": "fail"},
    )
    assert answer == {
        "settled": 1,
        "refused": [{"index": 0, "code": "stale_receipt"}, {"index": 2, "code": "stale_receipt"}],
    }
    assert client.job(id)["outcome"] == "ok"


@pytest.mark.parametrize("outcome", ["ok", "again", "fail", "release"])
def test_the_same_settlement_again_is_fine(client: Client, type: str, outcome: str) -> None:
    client.insert(type)
    (lease,) = reserve(client, type)
    settlement = {"receipt": lease["receipt"], "outcome": outcome, "delay": 1000}
    assert settle(client, settlement) == settle(client, settlement) == {"settled": 1, "refused": []}
    other = "fail" if outcome == "ok" else "ok"
    refused = settle(client, {"receipt": lease["receipt"], "outcome": other})["refused"]
    assert refused == [{"index": 0, "code": "stale_receipt"}]


@pytest.mark.parametrize(
    ("settlements", "code", "index", "field"),
    [
        ({}, "bad_request", None, None),
        ([7], "bad_request", 0, None),
        ([{"outcome": "ok"}], "bad_request", 0, "receipt"),
        ([{"receipt": "1-1-1"}], "bad_request", 0, "outcome"),
        ([{"receipt": "1-1-1", "outcome": "good"}], "bad_request", 0, "outcome"),
        ([{"receipt": 7, "outcome": "ok"}], "bad_request", 0, "receipt"),
        ([{"receipt": "1-1-1", "outcome": "again", "delay": -1}], "bad_request", 0, "delay"),
        ([{"receipt": "1-1-1", "outcome": "again", "prio": "top"}], "bad_request", 0, "prio"),
        ([{"receipt": "1-1-1", "outcome": "ok", "resutl": 1}], "unknown_field", 0, "resutl"),
        (["receipt"], "bad_request", 0, None),
    ],
)
def test_bad_settlements_settle_nothing(
    client: Client, type: str, settlements: Any, code: str, index: int | None, field: str | None
) -> None:
    id = client.insert(type)
    (lease,) = reserve(client, type)
    if isinstance(settlements, list):
        settlements = [{"receipt": lease["receipt"], "outcome": "ok"}, *settlements]
        index = None if index is None else index + 1
    with pytest.raises(BadRequest) as caught:
        client.call("settle", settlements)
    error = caught.value
    assert (error.code, error.index, error.field) == (code, index, field)
    assert client.job(id)["state"] == "reserved"


def test_settling_nothing_is_nothing(client: Client) -> None:
    assert client.call("settle", []) == {"settled": 0, "refused": []}


def test_renew_tells_kept_from_lost(client: Client, type: str) -> None:
    id = client.insert(type, ttr=100)
    (lease,) = reserve(client, type)
    before = client.job(id)["lease_expires_at"]
    argument = {"receipts": [lease["receipt"], "1-1-1"], "progress": {"fraction": 0.5, "message": "half"}}

    def later() -> bool:
        """A renewal within the same millisecond shows the same time."""
        answer = client.call("renew", argument)
        assert answer == {"renewed": [lease["receipt"]], "lost": ["1-1-1"], "cancelled": []}
        return bool(client.job(id)["lease_expires_at"] > before)

    until(later, "the lease to last longer")
    assert client.job(id)["progress"] == {"fraction": 0.5, "message": "half"}


def test_an_expired_lease_runs_again_and_its_late_ack_is_stale(client: Client, type: str) -> None:
    id = client.insert(type, ttr=0.2)
    (lease,) = reserve(client, type)
    (second,) = reserve(client, type, wait=60)
    assert (second["id"], second["attempt"]) == (id, 2)
    assert settle(client, {"receipt": lease["receipt"], "outcome": "ok"})["refused"] == [
        {"index": 0, "code": "stale_receipt"}
    ]
    error = client.job(id)["last_error"]
    assert (error["kind"], error["message"]) == ("ttr", "ttr of 0.2 s exceeded")
    assert settle(client, {"receipt": second["receipt"], "outcome": "ok"})["settled"] == 1


def test_a_renewed_lease_outlives_its_ttr(client: Client, type: str) -> None:
    marker = client.insert(f"{type}-marker", ttr=0.6)
    id = client.insert(type, ttr=0.6)
    (lease,) = reserve(client, type)
    reserve(client, f"{type}-marker")

    def marker_expired() -> bool:
        assert client.call("renew", {"receipts": [lease["receipt"]]})["lost"] == []
        return bool(client.job(marker)["state"] == "ready")

    until(marker_expired, "the lease that is not renewed to expire")
    assert client.job(id)["state"] == "reserved"
    assert settle(client, {"receipt": lease["receipt"], "outcome": "ok"})["settled"] == 1


@pytest.mark.parametrize(
    ("call", "argument", "field"),
    [
        ("reserve", {"max": 0}, "max"),
        ("reserve", {"max": 10_001}, "max"),
        ("reserve", {"max": True}, "max"),
        ("reserve", {"wait": -1}, "wait"),
        ("reserve", {"wait": 3601}, "wait"),
        ("reserve", {"types": "x"}, "types"),
        ("reserve", {"types": [""]}, "types"),
        ("reserve", {"types": ["x" * 198]}, "types"),
        ("reserve", {"worker": 7}, "worker"),
        ("reserve", {"tpyes": []}, "tpyes"),
        ("reserve", [], None),
        ("reserve", "x", None),
        ("renew", {}, "receipts"),
        ("renew", {"receipts": "x"}, "receipts"),
        ("renew", {"receipts": [1]}, "receipts"),
        ("renew", {"receipts": ["x"] * 10_001}, "receipts"),
        ("renew", {"receipts": [], "progress": {"fraction": 2}}, "progress.fraction"),
        ("renew", {"receipts": [], "progress": {"percent": 2}}, "progress.percent"),
        ("renew", {"receipts": [], "more": 1}, "more"),
        ("renew", ..., "receipts"),
    ],
)
def test_bad_arguments(client: Client, call: str, argument: Any, field: str | None) -> None:
    with pytest.raises(CallError) as caught:
        if argument is ...:
            client.call(call)
        else:
            client.call(call, argument)
    assert caught.value.code in ("bad_request", "unknown_field")
    assert caught.value.field == field


def test_reserve_without_types_takes_any(client: Client, type: str) -> None:
    id = client.insert(type, prio="urgent")
    leases = client.call("reserve", {"max": 10_000})["jobs"]
    assert id in [lease["id"] for lease in leases]
    assert len({lease["type"] for lease in leases}) > 1
    release = [{"receipt": lease["receipt"], "outcome": "release"} for lease in leases]
    assert settle(client, *release)["settled"] == len(leases)


def test_reserve_takes_no_argument_too(client: Client, type: str) -> None:
    client.insert(type)
    (lease,) = client.call("reserve")["jobs"]
    assert settle(client, {"receipt": lease["receipt"], "outcome": "ok"})["settled"] == 1
