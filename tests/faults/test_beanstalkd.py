"""A server on two beanstalkds that are killed, stopped and drained under load: nothing accepted is lost.

Their binlogs are synced at every write (``-f 0``). ``KQS_BEANSTALKD_FAULTS`` sets how many faults (36).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kqs.client import Client
from kqs.errors import CallError, ConnectionFailed
from kqs.testing.beanstalkd import Beanstalkd
from tests.support import ServerProcess, until

FAULTS = int(os.environ.get("KQS_BEANSTALKD_FAULTS", "36"))
#: Seconds after which a server is given up.
SILENCE = 0.5
KINDS = ("kill", "kill", "stop", "drain", "server", "silent")

pytestmark = pytest.mark.service("beanstalkd")


@pytest.fixture
def pool() -> Iterator[list[Beanstalkd]]:
    servers = [Beanstalkd(), Beanstalkd()]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.discard()


def config(pool: list[Beanstalkd]) -> str:
    servers = ", ".join(f'"{one.address.host}:{one.address.port}"' for one in pool)
    return f"""
[engine]
kind = "beanstalkd"
[beanstalkd]
servers = [{servers}]
silence = {SILENCE}
[bulk]
shared = true
"""


class Load:
    """Inserters and workers that go on whatever happens, and what they were told.

    Attributes:
        accepted: payload by id of every insert that was answered.
        run: how often each id was acked, and that was answered.
        wrong: what must not happen.
    """

    def __init__(self, url: str) -> None:
        self.accepted: dict[str, str] = {}
        self.acked: Counter[str] = Counter()
        self.run: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.refused: Counter[str] = Counter()
        self._sent: set[str] = set()
        self._url = url
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._number = 0
        self._threads = [threading.Thread(target=self._insert, args=(n,)) for n in range(3)]
        self._threads += [threading.Thread(target=self._work) for _ in range(2)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _insert(self, seed: int) -> None:
        random = Random(seed)
        while not self._over.is_set():
            try:
                with Client(self._url, timeout=5) as client:
                    while not self._over.is_set():
                        self._insert_some(client, random)
                        time.sleep(0.002)
            except (ConnectionFailed, CallError) as error:
                self.refused[type(error).__name__] += 1
                time.sleep(0.02)

    def _insert_some(self, client: Client, random: Random) -> None:
        jobs = []
        for _ in range(random.choice([1, 1, 20])):
            with self._lock:
                self._number += 1
                text = (
                    f"job {self._number} {'x' * random.choice([0, 1000, 70_000 * (random.random() < 0.05)])}"
                )
            self._sent.add(text)
            delay = 1 if random.random() < 0.05 else 0
            jobs.append({"type": "work", "data": text, "ttr": 20, "delay": delay})
        ids = client.insert_many(jobs)
        self.accepted |= {id: job["data"] for id, job in zip(ids, jobs, strict=True)}

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                with Client(self._url, timeout=5) as client:
                    while not self._over.is_set():
                        self.work(client)
            except (ConnectionFailed, CallError) as error:
                self.refused[type(error).__name__] += 1
                time.sleep(0.02)

    def work(self, client: Client, wait: float = 0.2) -> int:
        """Take some jobs and end them; returns how many were given."""
        jobs = client.call("reserve", {"types": ["work"], "max": 50, "wait": wait})["jobs"]
        for job in jobs:
            self.run[job["id"]] += 1
            if job["data"] not in self._sent or self.accepted.get(job["id"], job["data"]) != job["data"]:
                self.wrong.append(f"{job['id']} has another payload")
        outcomes = ["again" if number % 7 == 3 else "ok" for number in range(len(jobs))]
        settlements = [
            {"receipt": job["receipt"], "outcome": outcome, **({"delay": 0} if outcome == "again" else {})}
            for job, outcome in zip(jobs, outcomes, strict=True)
        ]
        if jobs:
            reply = client.call("settle", settlements)
            refused = {one["index"] for one in reply["refused"]}
            for index, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True)):
                if outcome == "ok" and index not in refused:
                    self.acked[job["id"]] += 1
        return len(jobs)


def strike(kind: str, server: ServerProcess, one: Beanstalkd, random: Random) -> None:
    """One fault, and its end."""
    pause = random.uniform(0.02, 0.2)
    if kind == "server":
        server.kill()
        time.sleep(pause)
        server.start()
        return
    if kind in ("stop", "silent"):
        one.send(signal.SIGSTOP)
        time.sleep(pause if kind == "stop" else 3 * SILENCE)
        one.send(signal.SIGCONT)
        return
    if kind == "drain":
        one.send(signal.SIGUSR1)
        time.sleep(pause)
    one.kill()
    time.sleep(pause)
    one.start()


def test_nothing_accepted_is_lost_whatever_happens_to_the_servers(
    tmp_path: Path, pool: list[Beanstalkd]
) -> None:
    random = Random(1)
    server = ServerProcess(tmp_path, config(pool)).start()
    try:
        load = Load(server.url)
        load.start()
        try:
            for number in range(FAULTS):
                strike(KINDS[number % len(KINDS)], server, random.choice(pool), random)
                time.sleep(random.uniform(0.0, 0.1))
        finally:
            load.stop()
        client = server.client()

        def left() -> int:
            stats = client.stats()
            return int(sum(stats["jobs"][state] for state in ("ready", "delayed", "reserved"))) + int(
                stats["feed"]["waiting"]
            )

        def finished() -> bool:
            load.work(client, 0.1)
            return left() == 0

        until(finished, "all jobs to be done")
        assert load.wrong == []
        lost = load.accepted.keys() - load.run.keys()
        assert not lost, f"{len(lost)} of {len(load.accepted)} were never run"
        assert len(load.accepted) > 20 * FAULTS
        server.stop()
    finally:
        server.discard()


def test_a_pool_that_is_away_costs_no_accepts(tmp_path: Path, pool: list[Beanstalkd]) -> None:
    server = ServerProcess(tmp_path, config(pool)).start()
    try:
        with server.client() as client:
            for one in pool:
                one.kill()
            ids = [client.insert("work", number) for number in range(500)]
            assert client.call("reserve", {"types": ["work"]})["jobs"] == []
            stats = client.stats()
            assert stats["feed"]["waiting"] == 500
            assert not any(one["up"] for one in stats["servers"])
        server.kill()
        pool[0].start()
        server.start()
        with server.client() as client:
            done: list[str] = []

            def drained() -> bool:
                jobs = client.call("reserve", {"types": ["work"], "max": 100, "wait": 0.2})["jobs"]
                client.call("settle", [{"receipt": job["receipt"], "outcome": "ok"} for job in jobs])
                done.extend(job["id"] for job in jobs)
                return len(done) >= 500

            until(drained)
            assert done == ids  # one server: the order they were accepted in
        server.stop()
    finally:
        server.discard()
