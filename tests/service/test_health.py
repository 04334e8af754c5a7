"""``health``: progress is what counts; a full disk degrades; a dead worker is told."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import psutil

from kqs.client import Client
from tests.support import ServerProcess, kqs, until

Start = Callable[..., ServerProcess]

CONFIG = """
[health]
stall = 0.4
[pools.default]
processes = 1
[handlers.hold]
python = "jobs:hold"
ttr = 0.6
[handlers.note]
python = "jobs:note"
[handlers.again]
python = "jobs:again"
"""


def check(client: Client, name: str) -> dict[str, Any]:
    (found,) = [check for check in client.health()["checks"] if check["name"] == name]
    return dict(found)


def test_work_a_worker_for_it_and_nothing_completing_is_failing(start: Start) -> None:
    """The worker of the pool is stopped: present, and doing nothing."""
    server = start(CONFIG)
    client = server.client()
    server.wait_for_workers()
    (pid,) = [worker["pid"] for worker in client.stats()["workers"] if worker["pool"] == "default"]
    worker = psutil.Process(pid)
    worker.suspend()
    client.insert_many([{"type": "note", "ttr": 0.3}] * 3)
    health = until(lambda: (health := client.health())["status"] == "failing" and health)
    (progress,) = [check for check in health["checks"] if check["status"] == "failing"]
    assert progress["name"] == "progress"
    assert "note" in progress["text"] and "none completed" in progress["text"]
    done = kqs("health", KQS_URL=server.url)
    assert done.status == 1 and done.out.startswith("failing\n")
    worker.resume()
    until(lambda: client.health()["status"] == "ok", "it to recover")


def test_jobs_that_nobody_here_could_run_do_not_count(start: Start) -> None:
    server = start(CONFIG)
    client = server.client()
    client.insert_many([{"type": "elsewhere"}] * 3)
    client.insert("note", delay=1000)
    before = client.stats()["process"]["uptime"]
    until(lambda: client.stats()["process"]["uptime"] > before + 1.0, "longer than the stall")
    health = client.health()
    assert health["status"] == "ok", health
    assert "nothing is waiting" in check(client, "progress")["text"]


def test_a_long_job_within_its_ttr_is_no_stall(start: Start) -> None:
    server = start(CONFIG)
    client = server.client()
    running = client.insert("hold", "go", ttr=1000)
    server.stdout.wait_for(f"hold began {running}")
    client.insert("note")
    before = client.stats()["process"]["uptime"]
    until(lambda: client.stats()["process"]["uptime"] > before + 1.0, "longer than the stall")
    assert check(client, "progress")["status"] == "ok"
    (server.folder / "go").touch()
    until(lambda: client.stats()["types"]["note"]["done"] == 1)


def test_a_remote_worker_that_takes_and_never_settles_is_no_progress(start: Start) -> None:
    server = start("[health]\nstall = 0.3\n")
    client = server.client()
    client.insert_many([{"type": "remote", "ttr": 0.4}] * 500)
    assert client.health()["status"] == "ok"  # nobody here serves it
    with server.connect() as worker:

        def take() -> bool:
            assert worker.call("reserve", {"types": ["remote"]})["e"] is None
            return bool(client.health()["status"] == "failing")

        until(take, "leases that only expire to be seen as no progress")
    until(lambda: client.health()["status"] == "ok", "the worker's leaving to be seen")


def test_a_job_that_renews_is_progress(start: Start) -> None:
    server = start("[health]\nstall = 0.3\n")
    client = server.client()
    client.insert_many([{"type": "remote", "ttr": 0.1}] * 2)
    (lease,) = client.call("reserve", {"types": ["remote"]})["jobs"]
    before = client.stats()["process"]["uptime"]

    def renew() -> bool:
        """Until well after the stall: the other job waits all the while for this worker."""
        assert client.call("renew", {"receipts": [lease["receipt"]]})["lost"] == []
        assert check(client, "progress")["status"] == "ok"
        return bool(client.stats()["process"]["uptime"] > before + 1.0)

    until(renew)


def test_work_that_has_just_come_is_no_stall_however_long_it_was_quiet(start: Start) -> None:
    server = start(CONFIG)
    client = server.client()
    before = client.stats()["process"]["uptime"]
    until(lambda: client.stats()["process"]["uptime"] > before + 1.5, "longer than the stall")
    hold = client.insert("hold", "go")
    server.stdout.wait_for(f"hold began {hold}")
    with server.connect() as wire:  # the first health call of this server, right after the insert
        wire.send(b'{"v":1,"id":"i","n":"insert","m":{"type":"note"}}\n')
        assert wire.line() is not None
        checks = wire.call("health")["m"]["checks"]
    assert {check["name"]: check["status"] for check in checks}["progress"] == "ok"
    (server.folder / "go").touch()


def test_failing_attempts_are_progress(start: Start) -> None:
    """The server does its work; that the handler asks for more time is not its illness."""
    server = start(CONFIG)
    client = server.client()
    client.insert_many([{"type": "again", "data": 0.01}] * 20)
    server.stdout.wait_for("again began", times=60)
    assert check(client, "progress")["status"] == "ok"


def test_a_disk_nearly_full_is_degraded(start: Start) -> None:
    server = start("[health]\ndisk_free = 1.0\n")
    client = server.client()
    assert client.health()["status"] == "degraded"
    disk = check(client, "disk")
    assert disk["status"] == "degraded" and "% of the data directory's disk is free" in disk["text"]
    assert kqs("health", KQS_URL=server.url).status == 1
    client.insert("x")  # told, and served all the same


def test_a_worker_that_keeps_dying_is_told(start: Start) -> None:
    config = '[handlers.end]\npython = "jobs:end"\n[pools.default]\nprocesses = 1\n'
    server = start(config)
    client = server.client()
    client.insert_many([{"type": "end", "data": {"how": "signal", "value": int(signal.SIGKILL)}}] * 3)
    health = until(lambda: (health := client.health())["status"] == "degraded" and health)
    (workers,) = [check for check in health["checks"] if check["status"] == "degraded"]
    assert workers["name"] == "workers" and "kqs/default/1" in workers["text"]
