"""Backups of a server under load, while compaction gives up segments: what was promised is in each of them.

``KQS_BACKUPS`` sets how many (4), ``KQS_SEED`` the seed.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from random import Random
from typing import Any

from tests.support import ServerProcess, kqs, until

from .ledger import Inserter, Ledger, Worker

BACKUPS = int(os.environ.get("KQS_BACKUPS", "4"))
SEED = int(os.environ.get("KQS_SEED", "1"))
#: Small segments, so that there is rotation and compaction all the time.
CONFIG = """
[journal]
segment_size = 262144
"""


def first_segment(data: Path) -> int:
    return min(int(path.stem) for path in (data / "journal").glob("*.seg"))


def everything(server: ServerProcess) -> dict[str, Any]:
    """Every job that has not ended, with its payload, or None of one that is leased."""
    client = server.client()
    jobs: dict[str, Any] = {}

    def none_left() -> bool:
        found = client.call("reserve", {"max": 1000, "types": ["work"], "worker": "test"})["jobs"]
        for job in found:
            jobs[job["id"]] = job["data"]
        counts = client.stats()["jobs"]
        return not counts["ready"] and not counts["delayed"]

    until(none_left, "all jobs to be handed out")
    after: dict[str, str] = {}
    while after is not None:
        page = client.call("jobs", {"limit": 1000, **after})
        for job in page["jobs"]:
            jobs.setdefault(job["id"], None)
        after = {"after": page["next"]} if "next" in page else None  # type: ignore[assignment]
    return jobs


def check(backup: Path, folder: Path, ledger: Ledger, accepted: dict[str, Any], done: set[str]) -> None:
    """Start on a backup; ``accepted`` and ``done`` are what was promised when it began."""
    with ledger.lock:
        maybe_done = set(ledger.maybe_done)
    restored = ServerProcess(folder, CONFIG, ("--data", str(backup))).start()
    try:
        jobs = everything(restored)
        assert accepted.keys() - jobs.keys() <= maybe_done, "accepted jobs are lost"
        assert not done & jobs.keys(), "acked jobs are back"
        for id, data in jobs.items():
            assert data is None or data in ledger.sent
            assert data is None or accepted.get(id, data) == data
        new = restored.client().insert("later")
        assert new not in ledger.accepted
        restored.stop()
    finally:
        restored.discard()


def test_all_that_was_promised_is_in_a_backup(tmp_path: Path) -> None:
    random, ledger = Random(SEED), Ledger()
    server = ServerProcess(tmp_path, CONFIG).start()
    actors: list[Inserter | Worker] = [
        Inserter(ledger, server.url, Random(random.random())) for _ in range(3)
    ]
    actors += [Worker(ledger, server.url, Random(random.random())) for _ in range(3)]
    threads = [threading.Thread(target=actor.run) for actor in actors]
    firsts = []
    try:
        for thread in threads:
            thread.start()
        for number in range(BACKUPS):
            done_so_far = len(ledger.done)
            until(lambda so_far=done_so_far: len(ledger.done) > so_far + 300, "load")
            with ledger.lock:
                accepted, done = dict(ledger.accepted), set(ledger.done)
            backup = tmp_path / f"backup-{number}"
            made = kqs("backup", str(backup), "--data", str(server.data), "--json")
            assert (made.status, made.err) == (0, ""), made
            folder = tmp_path / f"restored-{number}"
            folder.mkdir()
            firsts.append(first_segment(backup))
            check(backup, folder, ledger, accepted, done)
        assert any((path / "bulk").iterdir() for path in tmp_path.glob("backup-*"))
        assert firsts[-1] > firsts[0], "compaction was to run"
        assert ledger.wrong == [], f"seed {SEED}"
    finally:
        for actor in actors:
            actor.over.set()
        for thread in threads:
            thread.join(60)
        server.discard()
