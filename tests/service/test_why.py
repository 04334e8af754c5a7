"""``why``: what keeps real jobs from running, each reason as the server names it; and the limits behind it.

The tests are the workers here, so that every job waits for what it is to wait for.
"""

from __future__ import annotations

import datetime as dt
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kqs.client import Client
from kqs.errors import NotFound
from tests.support import Finished, ServerProcess, kqs, request, until

Start = Callable[..., ServerProcess]

CONFIG = """
[classes.few]
types = ["few.*"]
concurrency = 2
[classes.slow]
types = ["slow"]
rate = "1/h"
[fair.one]
concurrency = 1
[fair."calm-*"]
rate = "10/m"
burst = 1
"""


class Asked:
    """A server, and one who asks it."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.client: Client = server.client()

    def insert(self, type: str = "t", fair: str | None = None, **more: Any) -> str:
        if fair is not None:
            more["fair"] = fair
        return self.client.insert(type, **more)

    def reserve(self, *types: str, max: int = 1, wait: float = 0) -> list[dict[str, Any]]:
        wanted = {"types": types or ("t",), "max": max, "wait": wait, "worker": "me"}
        leases: list[dict[str, Any]] = self.client.call("reserve", wanted)["jobs"]
        return leases

    def lease(self, *types: str) -> str:
        (lease,) = self.reserve(*types)
        return str(lease["receipt"])

    def settle(self, *receipts: str, outcome: str = "ok", **more: Any) -> None:
        told = [{"receipt": receipt, "outcome": outcome, **more} for receipt in receipts]
        assert self.client.call("settle", told) == {"settled": len(told), "refused": []}

    def why(self, id: str) -> list[dict[str, Any]]:
        """All reasons, the first first."""
        answer = self.client.call("why", {"id": id})
        assert answer["id"] == id and answer["state"] == self.client.job(id)["state"]
        assert all(reason["text"] for reason in answer["reasons"])
        reasons: list[dict[str, Any]] = answer["reasons"]
        return reasons

    def codes(self, id: str) -> list[str]:
        return [reason["code"] for reason in self.why(id)]

    def reason(self, id: str, code: str) -> dict[str, Any]:
        """The only reason."""
        (reason,) = self.why(id)
        assert reason["code"] == code, reason
        return reason

    def hang_up(self, config: str) -> None:
        """Have the server take over another config."""
        (self.server.folder / "kqs.toml").write_text(config)
        times = len(self.server.logged("config reloaded")) + 1
        self.server.process.send_signal(signal.SIGHUP)
        self.server.stderr.wait_for('"event": "config reloaded"', times=times)


@pytest.fixture
def it(start: Start) -> Asked:
    asked = Asked(start(CONFIG))
    worker = asked.server.client()  # from now on there is one
    worker.call("reserve", {"types": ["t", "u", "few.a", "few.b", "slow"]})
    return asked


# -- every reason --------------------------------------------------------------------------------------


def test_next(it: Asked) -> None:
    assert "free" in it.reason(it.insert(), "next")["text"]


def test_delayed(it: Asked) -> None:
    id = it.insert(delay=100)
    reason = it.reason(id, "delayed")
    assert reason["due_at"] == it.client.job(id)["due_at"]
    assert 90 < reason["seconds"] <= 100


def test_retrying(it: Asked) -> None:
    id = it.insert()
    it.settle(it.lease(), outcome="again", delay=50, reason="the shop is closed")
    reason = it.reason(id, "retrying")
    assert reason["last_error"] == it.client.job(id)["last_error"]
    assert reason["due_at"] == it.client.job(id)["due_at"]
    assert 40 < reason["seconds"] <= 50
    assert "attempt 1 ended (the shop is closed)" in reason["text"]


def test_a_job_given_back_is_not_retried(it: Asked) -> None:
    id = it.insert()
    it.settle(it.lease(), outcome="release", delay=50)
    it.reason(id, "delayed")


def test_paused_by_whom(it: Asked) -> None:
    waits, later = it.insert(), it.insert(delay=100)
    before = time.time()
    it.client.call("pause", {"type": "t"})
    reason = it.reason(waits, "paused")
    assert "127.0.0.1" in reason["by"] and reason["by"] in reason["text"]
    assert "kqs resume t" in reason["text"]
    assert abs(_epoch(reason["since"]) - before) < 60
    assert it.codes(later) == ["delayed", "paused"]
    it.client.call("resume", {"type": "t"})
    it.reason(waits, "next")


def test_a_pause_names_the_token_and_is_remembered(start: Start, tmp_path: Path) -> None:
    done = kqs("token", "new", "--name", "anna", "--role", "admin", "--data", str(tmp_path / "data"))
    token = done.out.strip()
    server = start()
    with server.client(token) as client:
        id = client.insert("t")
        client.call("pause", {"type": "t"})
        asked = client.call("why", {"id": id})["reasons"]
    assert [reason["code"] for reason in asked] == ["no_worker", "paused"]
    assert asked[1]["by"] == "anna"
    server.kill()
    with start().client(token) as client:
        assert client.call("why", {"id": id})["reasons"] == asked


def test_no_worker(it: Asked) -> None:
    id, later = it.insert("nobodys"), it.insert("nobodys", delay=100)
    assert "type nobodys" in it.reason(id, "no_worker")["text"]
    assert it.codes(later) == ["no_worker", "delayed"]
    with it.server.client() as worker:
        worker.call("reserve", {"types": ["nobodys", "other"], "max": 1})
        assert it.codes(it.insert("nobodys")) == ["next"]  # somebody who takes them is there, and busy
    until(lambda: "no_worker" in it.codes(later), "the server to see that the worker has gone")


def test_a_worker_of_every_type_takes_it(it: Asked) -> None:
    id = it.insert("nobodys", delay=100)
    with it.server.client() as worker:
        worker.call("reserve", {"max": 1})
        it.reason(id, "delayed")


def test_a_handler_here_takes_it(start: Start) -> None:
    it = Asked(start('[handlers.t]\npython = "jobs:hold"\n[pools.default]\nprocesses = 1\n'))
    file = it.server.folder / "go"
    it.insert(data=str(file))
    it.server.stdout.wait_for("hold began")
    id = it.insert(data=str(file))
    it.reason(id, "next")
    file.touch()
    until(lambda: it.client.job(id)["state"] == "done")


def test_draining(it: Asked) -> None:
    id = it.insert()
    it.client.call("drain", {"on": True})
    assert "kqs drain --off" in it.reason(id, "draining")["text"]
    it.client.call("drain", {"on": False})
    it.reason(id, "next")


def test_behind_others_of_its_lane(it: Asked) -> None:
    ids = [it.insert(fair="k") for _ in range(5)]
    reason = it.reason(ids[3], "behind")
    assert (reason["ahead"], reason["running"]) == (3, 0)
    assert "seconds" not in reason  # nothing ran yet, so nobody knows
    assert "t, k" in reason["text"]
    receipt = it.lease()
    reason = it.reason(ids[3], "behind")
    assert (reason["ahead"], reason["running"]) == (2, 1)
    assert reason["seconds"] > 0
    it.settle(receipt)
    assert it.reason(ids[4], "behind")["running"] == 0
    it.client.call("delete", {"id": ids[1]})
    assert it.reason(ids[2], "behind")["ahead"] <= 1


def test_the_turn_of_others(it: Asked) -> None:
    busy = [it.insert(fair="busy") for _ in range(4)]
    receipts = [it.lease() for _ in range(2)]
    it.insert(fair="fresh")
    reason = it.reason(busy[2], "turn")
    assert reason["lanes"] == 1
    assert it.client.job(it.reserve()[0]["id"])["fair"] == "fresh"
    it.reason(busy[2], "next")
    it.settle(*receipts)


def test_a_higher_priority(it: Asked) -> None:
    low = it.insert("t", prio="low")
    it.insert("u", prio="high")
    it.insert("unseen", prio="urgent")  # which the workers of type t do not take
    assert it.reason(low, "priority")["lanes"] == 1
    it.lease("t", "u", "few.a", "few.b", "slow")
    it.reason(low, "next")


def test_a_limit_of_concurrency(it: Asked) -> None:
    ids = [it.insert("few.a"), it.insert("few.b"), it.insert("few.a"), it.insert("few.b", fair="one")]
    receipts = [it.lease("few.a"), it.lease("few.b")]
    (limit,) = [reason for reason in it.why(ids[2]) if reason["code"] == "limit"]
    assert limit["limit"] == {"kind": "class", "name": "few", "running": 2, "concurrency": 2}
    assert "2 of at most 2 jobs of class few run" in limit["text"]
    assert "limit" in it.codes(ids[3])
    it.settle(receipts[0])
    it.reason(ids[2], "next")
    it.lease("few.b")
    assert [reason["limit"]["kind"] for reason in it.why(it.insert("few.b", fair="one"))] == ["class", "key"]


def test_a_limit_of_rate(it: Asked) -> None:
    id = it.insert("t", fair="calm-1")
    reason = it.reason(id, "limit")  # after its start nobody knows what began just before: no token yet
    assert reason["limit"] == {
        "kind": "key",
        "name": "calm-1",
        "running": 0,
        "rate": pytest.approx(1 / 6),
        "burst": 1,
        "next_in": reason["limit"]["next_in"],
    }
    assert 0 < reason["limit"]["next_in"] <= 6
    assert f"the next in {reason['limit']['next_in']:g} s" in reason["text"]
    other = it.insert("t", fair="else")
    assert it.reserve(max=5)[0]["id"] == other


def test_running(it: Asked) -> None:
    id = it.insert()
    it.lease()
    reason = it.reason(id, "running")
    job = it.client.job(id)
    assert reason["leased_by"] == job["leased_by"] == "me"
    assert reason["started_at"] == job["started_at"]
    assert reason["lease_expires_at"] == job["lease_expires_at"]
    it.client.call("cancel", {"id": id})
    assert it.codes(id) == ["running", "cancelling"]


def test_buried(it: Asked) -> None:
    id = it.insert()
    it.settle(it.lease(), outcome="fail", reason="no such customer")
    reason = it.reason(id, "buried")
    assert reason["last_error"]["message"] == "no such customer"
    assert "no such customer" in reason["text"] and "kqs kick" in reason["text"]
    it.client.call("kick", {"id": id})
    it.reason(id, "next")


def test_done(it: Asked) -> None:
    id = it.insert()
    it.settle(it.lease())
    reason = it.reason(id, "done")
    assert (reason["outcome"], reason["finished_at"]) == ("ok", it.client.job(id)["finished_at"])


def test_all_reasons_at_once_the_nearest_first(it: Asked) -> None:
    it.insert("few.a")
    it.insert("few.a", prio="high")
    it.lease("few.a")
    it.insert("few.a", fair="one")
    it.insert("few.a", fair="one")
    id = it.insert("few.a", fair="one", prio="low")
    it.lease("few.a")
    it.client.call("pause", {"type": "few.a"})
    it.client.call("drain", {"on": True})
    assert it.codes(id) == ["draining", "paused", "limit", "priority"]


def test_no_such_job(it: Asked) -> None:
    with pytest.raises(NotFound):
        it.client.call("why", {"id": "nosuch-1"})


def _epoch(iso: str) -> float:
    return dt.datetime.fromisoformat(iso).timestamp()


# -- the command -------------------------------------------------------------------------------------


def test_the_command(it: Asked) -> None:
    it.insert()
    id = it.insert()
    it.client.call("pause", {"type": "t"})
    said = _ok(kqs("why", id, KQS_URL=it.server.url)).out.splitlines()
    assert said[0] == f"{id}: t, ready"
    assert [line.split(":")[0] for line in said[1:]] == ["  paused", "  behind"]
    assert "kqs resume t" in said[1] and "1 jobs are before it" in said[2]
    answer = _ok(kqs("why", id, "--json", KQS_URL=it.server.url)).json
    assert answer == it.client.call("why", {"id": id})
    refused = kqs("why", "nosuch-1", KQS_URL=it.server.url)
    assert refused.status != 0 and refused.out == "" and "nosuch-1" in refused.err


def _ok(done: Finished) -> Finished:
    assert done.status == 0 and done.err == "", done
    return done


# -- limits that change, or are there after a kill -----------------------------------------------------


def few(concurrency: int) -> str:
    return CONFIG.replace("concurrency = 2", f"concurrency = {concurrency}")


def test_running_jobs_count_after_a_kill(start: Start) -> None:
    """Remote leases outlive the server; so do the places they take."""
    it = Asked(start(CONFIG))
    ids = [it.insert("few.a", fair="x") for _ in range(4)]
    receipts = [it.lease("few.a"), it.lease("few.a")]
    one = it.insert("t", fair="one")
    receipts.append(it.lease("t"))
    it.insert("t", fair="one")  # accepted, so the leases before it are on disk, too
    it.server.kill()
    it = Asked(start(CONFIG))
    assert it.reserve("few.a", max=10) == it.reserve("t") == []
    (limit,) = [reason for reason in it.why(ids[2]) if reason["code"] == "limit"]
    assert limit["limit"] == {"kind": "class", "name": "few", "running": 2, "concurrency": 2}
    assert it.client.job(one)["state"] == "reserved"
    it.settle(*receipts[1:])
    assert [lease["id"] for lease in it.reserve("few.a", max=10)] == [ids[2]]
    assert len(it.reserve("t", max=10)) == 1


def test_a_rate_is_empty_after_a_kill(start: Start) -> None:
    it = Asked(start(CONFIG.replace("1/h", "1000/s")))
    it.insert("slow")
    it.settle(until(lambda: it.reserve("slow"), "a token")[0]["receipt"])
    waits = it.insert("slow")
    it.server.kill()
    it = Asked(start(CONFIG.replace('"1/h"', '"100/h"\nburst = 50')))
    fresh = it.insert("t", fair="calm-1")
    assert it.reserve("slow", max=10) == it.reserve("t") == []
    for id in (waits, fresh):
        (limit,) = [reason["limit"] for reason in it.why(id) if reason["code"] == "limit"]
        assert 0 < limit["next_in"] <= 36


def test_a_raised_limit_wakes_who_waits(it: Asked) -> None:
    for _ in range(8):
        it.insert("few.a")
    assert len(it.reserve("few.a", max=10)) == 2
    waiters = it.client.stats()["reserves_waiting"]
    waiting = it.server.connect()
    waiting.send(request("reserve", {"types": ["few.a"], "max": 10, "wait": 50}))
    until(lambda: it.client.stats()["reserves_waiting"] > waiters, "the reserve to wait")
    begun = time.monotonic()
    it.hang_up(few(5))
    reply = waiting.line()
    assert reply is not None and len(reply["m"]["jobs"]) == 3
    assert time.monotonic() - begun < 30  # not when it gave up
    it.hang_up(few(0))
    assert len(it.reserve("few.a", max=10)) == 3


def test_a_lowered_limit_lets_what_runs_run(it: Asked) -> None:
    it.hang_up(few(4))
    for _ in range(8):
        it.insert("few.a")
    receipts = [str(lease["receipt"]) for lease in it.reserve("few.a", max=10)]
    assert len(receipts) == 4
    it.hang_up(few(1))
    for receipt in receipts[:3]:
        it.settle(receipt)
        assert it.reserve("few.a", max=10) == []
    it.settle(receipts[3])
    assert len(it.reserve("few.a", max=10)) == 1


def test_a_limit_that_comes_and_one_that_goes(it: Asked) -> None:
    for _ in range(6):
        it.insert("u", fair="k")
    assert len(it.reserve("u", max=2)) == 2
    it.hang_up(CONFIG + "[fair.k]\nconcurrency = 3\n")
    assert len(it.reserve("u", max=10)) == 1  # what ran before it counts
    it.hang_up(CONFIG)
    assert len(it.reserve("u", max=10)) == 3


def test_a_changed_rate(it: Asked) -> None:
    ids = [it.insert("slow") for _ in range(30)]
    assert it.reserve("slow", max=30) == []
    it.hang_up(CONFIG.replace('"1/h"', '"1000/s"'))
    got = until(lambda: it.reserve("slow", max=5), "tokens of the new rate")
    it.hang_up(CONFIG.replace('"1/h"', '"1/d"'))
    assert it.reserve("slow", max=30) == []
    assert it.codes(ids[len(got)])[0] == "limit"
    it.hang_up(CONFIG.replace('rate = "1/h"', "concurrency = 0"))
    assert len(it.reserve("slow", max=30)) == 30 - len(got)


def test_a_changed_order(it: Asked) -> None:
    ids = it.client.insert_many([{"type": "t", "fair": fair} for fair in "aaaaaabbbbbb"])
    first = [lease["id"] for lease in it.reserve(max=4)]
    assert first == [ids[0], ids[6], ids[1], ids[7]]
    it.hang_up(CONFIG + '[scheduler]\norder = "fifo"\n')
    assert [lease["id"] for lease in it.reserve(max=4)] == ids[2:6]
    it.hang_up(CONFIG + "[fair.b]\nweight = 3\n")
    assert [lease["id"] for lease in it.reserve(max=10)] == ids[8:]


def test_a_changed_weight(it: Asked) -> None:
    it.client.insert_many([{"type": "t", "fair": fair} for fair in ["a"] * 40 + ["b"] * 40])
    it.hang_up(CONFIG + "[fair.b]\nweight = 3\n")
    ids = [lease["id"] for lease in it.reserve(max=40)]
    served = [it.client.job(id)["fair"] for id in ids]
    assert 29 <= served.count("b") <= 31, served
