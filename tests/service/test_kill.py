"""SIGKILL: what had its ok reply is there after the restart, and nothing is there that nobody inserted.

Ledgers are kept outside of the server: what clients tried, what they were told and, by the handler, what ran.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

from kqs.client import Client
from kqs.errors import ConnectionFailed
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]

KILLS = 20
CLIENTS = 4
CONFIG = """
[journal]
segment_size = 1048576
[pools.default]
processes = 2
[handlers.ledger]
python = "jobs:ledger"
"""


class Ledger:
    """What the clients did, over all kills.

    Attributes:
        tried: numbers that were sent, one tuple a call.
        acked: the id each number was given.
    """

    def __init__(self) -> None:
        self.tried: list[tuple[int, ...]] = []
        self.acked: dict[int, str] = {}
        self._numbers = count()
        self._lock = threading.Lock()
        self._grown = threading.Condition(self._lock)

    def next(self, size: int) -> tuple[int, ...]:
        with self._lock:
            call = tuple(next(self._numbers) for _ in range(size))
            self.tried.append(call)
        return call

    def note(self, call: tuple[int, ...], ids: list[str]) -> None:
        with self._grown:
            self.acked.update(zip(call, ids, strict=True))
            self._grown.notify_all()

    def wait_for(self, more: int) -> None:
        """Return when so many more numbers were acked."""
        with self._grown:
            goal = len(self.acked) + more
            assert self._grown.wait_for(lambda: len(self.acked) >= goal, 60)


def insert_until_it_dies(url: str, ledger: Ledger, chance: random.Random) -> None:
    """One client: single jobs, pipelined singles and batches, some too large for the journal."""
    with Client(url, timeout=30) as client:
        try:
            while True:
                size = chance.choice((1, 1, 1, 2, 50))
                call = ledger.next(size)
                jobs = [{"type": "ledger", "data": [number, "x" * _padding(number)]} for number in call]
                if size == 1:
                    ledger.note(call, [client.call("insert", jobs[0])["id"]])
                else:
                    ledger.note(call, client.insert_many(jobs))
        except ConnectionFailed:
            pass


def _padding(number: int) -> int:
    return 100_000 if number % 97 == 0 else number % 200


def ran(folder: Path) -> list[int]:
    """The numbers the handler wrote down, in order."""
    file = folder / "ran"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_twenty_kills_lose_nothing(start: Start, tmp_path: Path) -> None:
    ledger = Ledger()
    for kill in range(KILLS):
        server = start(CONFIG)
        chance = random.Random(kill)
        threads = [
            threading.Thread(target=insert_until_it_dies, args=(server.url, ledger, random.Random(seed)))
            for seed in range(kill * CLIENTS, (kill + 1) * CLIENTS)
        ]
        for thread in threads:
            thread.start()
        ledger.wait_for(chance.randrange(1, 400))
        server.kill()
        for thread in threads:
            thread.join(60)
        assert "Traceback" not in server.stderr.text
    tried = {number for call in ledger.tried for number in call}
    assert len(ledger.acked) > KILLS
    assert len(set(ledger.acked.values())) == len(ledger.acked)  # no id is given twice, ever

    server = start(CONFIG)
    with server.client() as client:
        known = client.stats()["jobs"]
        assert known["buried"] == known["delayed"] == 0
        until(lambda: not any(client.stats()["jobs"][state] for state in ("ready", "reserved")))
    runs = set(ran(tmp_path))
    lost = ledger.acked.keys() - runs
    assert not lost, f"{len(lost)} of {len(ledger.acked)} acked jobs never ran: {sorted(lost)[:20]}"
    assert runs <= tried
    for call in ledger.tried:  # a call whose reply was lost is done or not done, never half
        assert len({number in runs for number in call}) == 1


def test_what_a_kill_left_in_the_bulk_store_is_collected(start: Start) -> None:
    """Payloads whose job was never accepted, once they are old; never one that a job refers to."""
    server = start()
    server.client().insert("x", b"#" * 100_000)
    server.kill()
    folder = server.data / "bulk"
    (kept,) = folder.iterdir()
    orphans = [folder / ("0" * 32), folder / ("1" * 32 + ".new")]
    for orphan in orphans:
        orphan.write_bytes(b"?")
    young = folder / ("2" * 32)
    young.write_bytes(b"?")
    stranger = folder / "README"
    stranger.write_text("not ours")
    for file in (kept, *orphans, stranger):
        os.utime(file, (0, 0))
    start()
    until(lambda: not any(orphan.exists() for orphan in orphans), "the orphans to be collected")
    assert kept.exists() and young.exists() and stranger.exists()


def test_a_settled_job_stays_settled(start: Start) -> None:
    """The kill comes right after the ok reply to the ack: the job must not run again."""
    server = start()
    client = server.client()
    ids = client.insert_many([{"type": "x", "data": n} for n in range(40)])
    leases = client.call("reserve", {"types": ["x"], "max": 40})["jobs"]
    outcomes = ["ok", "fail", "again", "release"]
    client.call(
        "settle",
        [
            {"receipt": lease["receipt"], "outcome": outcomes[n % 4], "delay": 1000, "reason": "r"}
            for n, lease in enumerate(leases)
        ],
    )
    server.kill()
    client = start().client()
    states = ["done", "buried", "delayed", "delayed"]
    jobs = [client.job(id) for id in ids]
    assert [job["state"] for job in jobs] == [states[n % 4] for n in range(40)]
    assert [job["attempt"] for job in jobs] == [[1, 1, 1, 0][n % 4] for n in range(40)]
    assert [job.get("last_error", {}).get("message") for job in jobs] == [None, "r", "r", None] * 10


def test_a_remote_lease_and_its_receipt_outlive_the_server(start: Start) -> None:
    server = start()
    client = server.client()
    id = client.insert("x", ttr=1000)
    (lease,) = client.call("reserve", {"types": ["x"], "worker": "far away"})["jobs"]
    client.insert("y")  # its reply covers the lease, which nobody waits for
    server.kill()
    client = start().client()
    job = client.job(id)
    assert (job["state"], job["leased_by"], job["attempt"]) == ("reserved", "far away", 1)
    assert client.call("reserve", {"types": ["x"]})["jobs"] == []
    settled = client.call("settle", [{"receipt": lease["receipt"], "outcome": "ok"}])
    assert settled == {"settled": 1, "refused": []}


def test_a_job_that_ran_here_runs_again_at_once_and_costs_no_attempt(start: Start) -> None:
    config = '[handlers.hold]\npython = "jobs:hold"\n[pools.default]\nprocesses = 1\n'
    server = start(config)
    id = server.client().insert("hold", "go", ttr=1000)
    server.stdout.wait_for(f"hold began {id} 1")
    server.client().insert("y")
    server.kill()
    (server.folder / "go").touch()
    again = start(config)
    again.stdout.wait_for(f"hold ended {id} 1")


def test_order_and_delays_outlive_the_server(start: Start) -> None:
    server = start()
    client = server.client()
    for prio in ("low", "normal", "urgent"):
        client.insert_many([{"type": "x", "data": [prio, n], "prio": prio} for n in range(3)])
    delayed = client.insert("x", delay=1000)
    due = client.job(delayed)["due_at"]
    server.kill()
    client = start().client()
    leases = client.call("reserve", {"types": ["x"], "max": 100})["jobs"]
    order = [[prio, n] for prio in ("urgent", "normal", "low") for n in range(3)]
    assert [lease["data"] for lease in leases] == order
    job = client.job(delayed)
    assert (job["state"], job["due_at"]) == ("delayed", due)


def test_a_server_killed_while_it_starts_loses_nothing(start: Start, tmp_path: Path) -> None:
    server = start()
    ids = server.client().insert_many([{"type": "x", "data": n} for n in range(3000)])
    server.kill()
    for line in ("", '"event": "ready"'):
        again = ServerProcess(tmp_path)
        again.spawn()
        if line:
            again.stderr.wait_for(line)
        again.kill()
    with start().client() as client:
        assert client.stats()["types"]["x"]["ready"] == 3000
        assert client.job(ids[-1], data=True)["data"] == 2999
