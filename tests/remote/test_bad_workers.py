"""Workers that do not keep to the rules: nothing is lost, and nobody else pays."""

from __future__ import annotations

from collections.abc import Callable

from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]


def test_a_worker_that_vanishes_with_a_thousand_leases(start: Start) -> None:
    server = start()
    client = server.client()
    ids = client.insert_many([{"type": "t", "data": n, "ttr": 1} for n in range(1000)])
    gone = server.client()
    leased = gone.call("reserve", {"types": ["t"], "max": 1000})["jobs"]
    assert [job["id"] for job in leased] == ids
    gone.close()
    other = server.client()
    again: dict[str, str] = {}

    def rescued() -> bool:
        found = other.call("reserve", {"types": ["t"], "max": 1000, "wait": 5})["jobs"]
        again.update({job["id"]: job["receipt"] for job in found})
        return len(again) == 1000

    until(rescued, "all to be leased again")
    assert list(again) == ids, "in the order they had"
    old = [{"receipt": job["receipt"], "outcome": "ok"} for job in leased]
    refused = gone.call("settle", old)["refused"]
    assert [one["code"] for one in refused] == ["stale_receipt"] * 1000
    new = [{"receipt": receipt, "outcome": "ok"} for receipt in again.values()]
    assert other.call("settle", new) == {"settled": 1000, "refused": []}
    assert client.stats()["jobs"]["done"] == 1000


def test_a_worker_that_acks_twice(start: Start) -> None:
    client = start().client()
    client.insert("t")
    receipt = client.call("reserve", {"types": ["t"]})["jobs"][0]["receipt"]
    ok = {"receipt": receipt, "outcome": "ok"}
    assert client.call("settle", [ok]) == {"settled": 1, "refused": []}
    assert client.call("settle", [ok]) == {"settled": 1, "refused": []}, "a repeat, after a lost reply"
    other = client.call("settle", [{"receipt": receipt, "outcome": "fail"}])
    assert other == {"settled": 0, "refused": [{"index": 0, "code": "stale_receipt"}]}
    assert client.stats()["jobs"]["done"] == 1 and client.stats()["jobs"]["buried"] == 0


def test_a_worker_that_acks_what_is_anothers(start: Start) -> None:
    server = start()
    one, two = server.client(), server.client()
    id = one.insert("t", ttr=1)
    first = one.call("reserve", {"types": ["t"]})["jobs"][0]["receipt"]
    second = two.call("reserve", {"types": ["t"], "wait": 30})["jobs"][0]
    assert second["id"] == id and second["receipt"] != first
    forged = second["receipt"][:-1] + ("0" if second["receipt"][-1] != "0" else "1")
    for receipt in (first, forged):
        answer = one.call("settle", [{"receipt": receipt, "outcome": "ok"}])
        assert answer["refused"] == [{"index": 0, "code": "stale_receipt"}]
        assert one.call("renew", {"receipts": [receipt]})["lost"] == [receipt]
    assert two.call("settle", [{"receipt": second["receipt"], "outcome": "ok"}])["settled"] == 1
