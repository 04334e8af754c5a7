"""SIGKILL of a real server under load, again and again on the same data (RELIABILITY T5).

``KQS_KILLS`` sets how often (60), ``KQS_SEED`` the seed.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from random import Random

from tests.support import ServerProcess, until

from .ledger import Inserter, Ledger, Worker

KILLS = int(os.environ.get("KQS_KILLS", "60"))
SEED = int(os.environ.get("KQS_SEED", "1"))
#: Small segments, so that there is rotation and compaction all the time.
CONFIG = """
[journal]
segment_size = 262144
"""


def _round(server: ServerProcess, ledger: Ledger, random: Random) -> None:
    """Load from eight connections; the server is killed amid it."""
    actors: list[Inserter | Worker] = [
        Inserter(ledger, server.url, Random(random.random())) for _ in range(5)
    ]
    actors += [Worker(ledger, server.url, Random(random.random())) for _ in range(3)]
    threads = [threading.Thread(target=actor.run) for actor in actors]
    for thread in threads:
        thread.start()
    time.sleep(random.uniform(0.02, 0.25))
    server.process.kill()
    for actor in actors:
        actor.over.set()
    server.process.wait()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    server.discard()


def test_what_was_promised_survives_every_kill(tmp_path: Path) -> None:
    random, ledger = Random(SEED), Ledger()
    for _ in range(KILLS):
        _round(ServerProcess(tmp_path, CONFIG).start(), ledger, random)
        assert ledger.wrong == [], f"seed {SEED}"
    server = ServerProcess(tmp_path, CONFIG).start()
    try:
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
        assert ledger.wrong == [], f"seed {SEED}"
        lost = ledger.accepted.keys() - ledger.done - ledger.maybe_done - out
        assert lost == set(), f"seed {SEED}"
        journal = client.stats()["journal"]
        assert journal["segments"] < 40  # compaction kept up although most starts lived only moments
        assert len(ledger.accepted) > 10 * KILLS and len(ledger.done) > KILLS  # there was something to lose
        server.stop()
    finally:
        server.discard()
