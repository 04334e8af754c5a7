"""What clients were told, kept outside the server: the oracle of the kill and power-cut tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from kqs.client import Client
from kqs.errors import CallError, ConnectionFailed
from tests.support import ServerProcess, until

T = TypeVar("T")

#: A payload above the bulk store's threshold.
LARGE = "y" * 70_000


@dataclass
class Ledger:
    """All that was promised; safe to share between threads.

    Attributes:
        accepted: payload by id, of the inserts that were answered.
        sent: payloads of inserts that may or may not have been taken.
        done: ids whose ack was answered.
        maybe_done: ids whose ack was sent.
        attempts: the attempt that was settled durably, by id.
        keys: the id a key's insert was answered with.
        receipts: all that were ever handed out.
        wrong: what must not happen, in words.
        dark: whether the power is cut: what is answered now, no real machine would have answered.
    """

    accepted: dict[str, Any] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    maybe_done: set[str] = field(default_factory=set)
    attempts: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    receipts: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    number: int = 0
    dark: bool = False

    def heard(self, reply: T) -> T:
        """A reply that came, if there was power to send it."""
        if self.dark:
            raise ConnectionFailed("no power", sent=True)
        return reply

    def payload(self, large: bool) -> str:
        """A payload there never was before."""
        with self.lock:
            self.number += 1
            text = f"job {self.number}" + (LARGE if large else "")
            self.sent.add(text)
            return text

    def told(self, id: str, payload: str, duplicate: bool = False) -> None:
        """An insert was answered."""
        with self.lock:
            if id in self.accepted and not (duplicate and self.accepted[id] == payload):
                self.wrong.append(f"id {id} was given twice")
            self.accepted[id] = payload

    def leased(self, job: dict[str, Any]) -> None:
        """A job was handed out."""
        id, data = job["id"], job["data"]
        with self.lock:
            if job["receipt"] in self.receipts:
                self.wrong.append(f"receipt {job['receipt']} was given twice")
            self.receipts.add(job["receipt"])
            if data not in self.sent or self.accepted.get(id, data) != data:
                self.wrong.append(f"job {id} has another payload")
            if id in self.done:
                self.wrong.append(f"job {id} came back after its ack was answered")
            if job["attempt"] <= self.attempts.get(id, 0):
                self.wrong.append(f"job {id}: attempt {job['attempt']} after {self.attempts[id]} was settled")


class Inserter:
    """Inserts until the server is gone: singles, batches, oversize payloads, keys used again."""

    def __init__(self, ledger: Ledger, url: str, random: Random) -> None:
        self._ledger = ledger
        self._client = Client(url, timeout=3)
        self._random = random
        self.over = threading.Event()

    def run(self) -> None:
        try:
            with self._client:
                while not self.over.is_set():
                    self._random.choice([self._single, self._single, self._batch, self._keyed])()
        except (ConnectionFailed, CallError):
            return  # killed; what was not answered is unknown

    def _job(self, **more: Any) -> dict[str, Any]:
        data = self._ledger.payload(large=self._random.random() < 0.03)
        delay = 0.2 if self._random.random() < 0.1 else 0
        prio = self._random.choice(["urgent", "normal", "normal", "bulk"])
        return {"type": "work", "data": data, "delay": delay, "prio": prio, "ttr": 60, **more}

    def _single(self) -> None:
        job = self._job()
        self._ledger.told(self._ledger.heard(self._client.call("insert", job))["id"], job["data"])

    def _batch(self) -> None:
        jobs = [self._job() for _ in range(self._random.randrange(2, 20))]
        for id, job in zip(self._ledger.heard(self._client.insert_many(jobs)), jobs, strict=True):
            self._ledger.told(id, job["data"])

    def _keyed(self) -> None:
        """A new key, or one that was answered before: then with its id and nothing inserted."""
        ledger = self._ledger
        if ledger.keys and self._random.random() < 0.5:
            key, id = self._random.choice(list(ledger.keys.items()))
            again = {"type": "work", "data": "not inserted", "key": key}
            reply = ledger.heard(self._client.call("insert", again))
            if reply != {"id": id, "duplicate": True}:
                ledger.wrong.append(f"key {key} of {id} was answered {reply}")
            return
        job = self._job()
        job["key"] = key = f"key of {job['data'][:20]}"
        id = ledger.heard(self._client.call("insert", job))["id"]
        ledger.told(id, job["data"])
        ledger.keys[key] = id


class Worker:
    """Reserves and settles until the server is gone, or, to drain, until nothing is left."""

    def __init__(
        self, ledger: Ledger, url: str, random: Random, more: Callable[[], bool] = lambda: True
    ) -> None:
        self._ledger = ledger
        self._client = Client(url, timeout=3)
        self._random = random
        self._more = more
        self.drain = False
        self.over = threading.Event()

    def run(self) -> None:
        try:
            with self._client:
                while self._more() and not self.over.is_set():
                    ask = {"max": 8, "wait": 0.5, "types": ["work"]}
                    jobs = self._ledger.heard(self._client.call("reserve", ask))["jobs"]
                    for job in jobs:
                        self._ledger.leased(job)
                    if jobs:
                        self._settle(jobs)
        except (ConnectionFailed, CallError):
            return

    def _settle(self, jobs: list[dict[str, Any]]) -> None:
        outcomes = ["ok"] if self.drain else ["ok", "ok", "ok", "again", "release"]
        settlements = [{"receipt": job["receipt"], "outcome": self._random.choice(outcomes)} for job in jobs]
        for settlement in settlements:
            if settlement["outcome"] == "again":
                settlement |= {"delay": 0, "reason": "not yet"}
        acked = {job["id"] for job, said in zip(jobs, settlements, strict=True) if said["outcome"] == "ok"}
        with self._ledger.lock:
            self._ledger.maybe_done |= acked
        reply = self._ledger.heard(self._client.call("settle", settlements))
        refused = {one["index"] for one in reply["refused"]}
        with self._ledger.lock:
            for index, (job, said) in enumerate(zip(jobs, settlements, strict=True)):
                if index in refused:
                    continue
                if said["outcome"] == "ok":
                    self._ledger.done.add(job["id"])
                elif said["outcome"] == "again":
                    self._ledger.attempts[job["id"]] = job["attempt"]


def under_load(server: ServerProcess, ledger: Ledger, random: Random, strike: Callable[[], None]) -> None:
    """Five connections insert and three work while ``strike`` ends the server."""
    actors: list[Inserter | Worker] = [
        Inserter(ledger, server.url, Random(random.random())) for _ in range(5)
    ]
    actors += [Worker(ledger, server.url, Random(random.random())) for _ in range(3)]
    threads = [threading.Thread(target=actor.run) for actor in actors]
    for thread in threads:
        thread.start()
    try:
        strike()
    finally:
        for actor in actors:
            actor.over.set()
        server.discard()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def drain(server: ServerProcess, ledger: Ledger, random: Random) -> set[str]:
    """Do all jobs the server has; returns the ids of those that were promised and are nowhere."""
    client = server.client()

    def left() -> int:
        jobs = client.stats()["jobs"]
        return int(jobs["ready"] + jobs["delayed"])

    # Leases that were out when the server died last until their ttr: their jobs count as there.
    out = {job["id"] for job in client.call("jobs", {"state": "reserved", "limit": 1000})["jobs"]}
    worker = Worker(ledger, server.url, random, lambda: left() > 0)
    worker.drain = True
    worker.run()
    until(lambda: left() == 0)
    return ledger.accepted.keys() - ledger.done - ledger.maybe_done - out
