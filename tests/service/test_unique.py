"""Unique jobs over the wire: one at a time, whoever inserts and however often the server dies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kqs.client import Client
from tests.support import ServerProcess

Start = Callable[..., ServerProcess]


def take(client: Client, type: str) -> str:
    (job,) = client.call("reserve", {"types": [type]})["jobs"]
    return str(job["receipt"])


def settle(client: Client, receipt: str, outcome: str) -> None:
    assert client.call("settle", [{"receipt": receipt, "outcome": outcome, "delay": 0}])["settled"] == 1


def test_one_stands_until_it_is_done(shared: ServerProcess) -> None:
    with shared.connect() as wire, shared.client() as client:
        job = {"type": "once", "unique": "u"}
        id = wire.call("insert", job)["m"]["id"]
        assert wire.call("insert", job)["m"] == {"id": id, "duplicate": True}
        receipt = take(client, "once")
        assert wire.call("insert", job)["m"] == {"id": id, "duplicate": True}
        batch = [{"type": "other"}, job, {"type": "once", "unique": "v"}, {"type": "once", "unique": "v"}]
        reply = wire.call("insert", batch)["m"]
        assert reply["duplicates"] == [1, 3]
        assert reply["ids"][1] == id and reply["ids"][2] == reply["ids"][3]
        settle(client, receipt, "ok")
        assert wire.call("insert", job)["m"].keys() == {"id"}


def test_a_payload_in_the_bulk_store_is_kept_once(start: Start) -> None:
    """That of a duplicate does not stay behind."""
    server = start()
    with server.client() as client:
        job = {"type": "big", "data": "x" * 3_000_000, "unique": "u"}
        ids = {client.call("insert", job)["id"] for _ in range(3)}
        assert len(ids) == 1
        assert client.job(*ids, data=True)["data"] == job["data"]
        files = [path for path in (server.data / "bulk").rglob("*") if path.is_file()]
        assert len(files) == 1


def test_many_callers_at_once(start: Start) -> None:
    server = start()
    answers: list[dict[str, Any]] = []

    def insert() -> None:
        with server.client() as client:
            answers.extend(client.call("insert", {"type": "race", "unique": "u"}) for _ in range(50))

    callers = [threading.Thread(target=insert) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(answers) == 400
    assert len({answer["id"] for answer in answers}) == 1
    assert sum("duplicate" not in answer for answer in answers) == 1
    with server.client() as client:
        assert client.stats()["jobs"]["ready"] == 1


def test_over_kills(start: Start) -> None:
    server = start()
    with server.client() as client:
        waits = client.insert("waits", unique="u")
        ran = client.insert("runs", unique={"key": "u", "scope": "queued"})
        receipt = take(client, "runs")
        again = client.insert("runs", unique="u")
        assert again != ran
    server.kill()
    server = start()
    with server.client() as client:
        assert client.call("insert", {"type": "waits", "unique": "u"}) == {"id": waits, "duplicate": True}
        settle(client, receipt, "again")
        view = client.job(ran)
        assert (view["state"], view["last_error"]["kind"]) == ("buried", "unique")
        assert again in view["last_error"]["message"]
    server.kill()
    with start().client() as client:
        assert client.job(ran) == view
        assert client.call("insert", {"type": "runs", "unique": "u"}) == {"id": again, "duplicate": True}
