"""T8: workers under every fault there is, at once. Nothing is lost, only current leases are acked."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Any

import psutil

from kqs.client import Client
from tests.support import ServerProcess, until

CONFIG = """
[pools.plain]
processes = 2
[pools.many]
processes = 2
concurrency = 5
[defaults]
ttr = 20
[defaults.retry]
backoff = "fixed"
base = 0
jitter = 0
[handlers.storm]
python = "ajobs:storm"
pool = "plain"
[handlers.astorm]
python = "ajobs:astorm"
pool = "many"
"""
FAULTS = ["kill", "stop", "exit", "segfault", "memory", "bomb", "daemon", "flood", "descriptors"]
FAULTS += ["system exit", "fork", "threads", "block"]
#: Faults that only the end of the ttr ends.
_STUCK = {"stop", "bomb", "daemon", "block", "deaf"}
#: How often each fault is injected into each kind of worker; RELIABILITY.md has the totals.
ROUNDS = int(os.environ.get("KQS_TEST_STORM", "2"))
#: Jobs that remote workers lease, forget and ack too late.
REMOTE = 20


def test_storm(start: Callable[..., ServerProcess]) -> None:
    mark = token_hex(8)
    server = start(CONFIG, STORM=mark)
    client = server.client()
    faults = [("storm", fault) for fault in FAULTS * ROUNDS]
    faults += [("astorm", fault) for fault in [*FAULTS, "deaf"] * ROUNDS]
    assert len(faults) + REMOTE >= 50
    clean = [(type_, None) for type_ in ("storm", "astorm") for _ in range(100)]
    mixed = faults + clean
    random.Random(len(mixed)).shuffle(mixed)
    ids = client.insert_many([_job(type_, fault) for type_, fault in mixed])
    late = _late_acks(client)
    until(lambda: _waiting(client) == 0, "all jobs to end", patience=240)
    ran: dict[str, list[int]] = {}
    for line in (server.folder / "ran").read_text().splitlines():
        id, attempt = line.split()
        ran.setdefault(id, []).append(int(attempt))
    lost = [id for id in ids if id not in ran]
    assert lost == []
    for id, (_type, fault) in zip(ids, mixed, strict=True):
        job = client.job(id)
        assert (job["state"], job["outcome"]) == ("done", "ok"), (fault, job)
        # What was acked is the lease that was current: the last one.
        assert job["attempt"] == max(ran[id]), (fault, job, ran[id])
        assert job["attempt"] >= (1 if fault is None else 2), (fault, job)
        assert job.get("deaths", 0) <= 2, (fault, job)
    assert late == REMOTE
    _nothing_left(server, mark)


def _job(type_: str, fault: str | None) -> dict[str, Any]:
    ttr = {"ttr": 1.5} if fault in _STUCK else {}
    return {"type": type_, "data": fault, **ttr}


def _waiting(client: Client) -> int:
    jobs = client.stats()["jobs"]
    assert jobs["buried"] == 0, client.call("jobs", {"state": "buried"})
    return sum(int(jobs[state]) for state in ("delayed", "ready", "reserved"))


def _late_acks(client: Client) -> int:
    """Workers that vanish with their leases and ack when others have the jobs; how many acks were refused."""
    client.insert_many([{"type": "remote", "ttr": 0.3}] * REMOTE)
    gone = client.call("reserve", {"types": ["remote"], "max": REMOTE, "wait": 10})["jobs"]
    assert len(gone) == REMOTE
    now: list[dict[str, Any]] = []
    while len(now) < REMOTE:
        leases = client.call("reserve", {"types": ["remote"], "max": REMOTE, "wait": 10})["jobs"]
        client.call("renew", {"receipts": [lease["receipt"] for lease in leases]})
        done = client.call("settle", [{"receipt": lease["receipt"], "outcome": "ok"} for lease in leases])
        assert done["refused"] == []
        now += leases
    late = client.call("settle", [{"receipt": lease["receipt"], "outcome": "ok"} for lease in gone])
    assert {refusal["code"] for refusal in late["refused"]} == {"stale_receipt"}
    return len(late["refused"])


def _nothing_left(server: ServerProcess, mark: str) -> None:
    """No process of the bombs and daemons is left."""

    def left() -> list[str]:
        known = {server.pid, *(worker.pid for worker in server.workers())}  # one may be started only now
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid not in known and process.environ().get("STORM") == mark:
                    where = Path(f"/proc/{process.pid}/wchan").read_text()
                    command = " ".join(process.cmdline()[-6:])
                    family = f"child of {process.ppid()}, {process.num_threads()} threads"
                    found.append(f"{process}, in {where}, {family}, of {command}")
            except (psutil.Error, OSError):
                continue  # it has ended
        return found

    def told() -> str:
        log = [line for line in server.stderr.lines if "worker" in line or "attempt" in line]
        return "\n".join([f"the end of {left()}; the server said", *log])

    until(lambda: not left(), told)
