"""SIGKILL of a real server under load, again and again on the same data (RELIABILITY T5).

``KQS_KILLS`` sets how often (60), ``KQS_SEED`` the seed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

from tests.support import ServerProcess

from .ledger import Ledger, drain, under_load

KILLS = int(os.environ.get("KQS_KILLS", "60"))
SEED = int(os.environ.get("KQS_SEED", "1"))
#: Small segments, so that there is rotation and compaction all the time.
CONFIG = """
[journal]
segment_size = 262144
"""


def test_what_was_promised_survives_every_kill(tmp_path: Path) -> None:
    random, ledger = Random(SEED), Ledger()
    for _ in range(KILLS):
        server = ServerProcess(tmp_path, CONFIG).start()

        def kill(server: ServerProcess = server) -> None:
            time.sleep(random.uniform(0.02, 0.25))
            server.kill()

        under_load(server, ledger, random, kill)
        assert ledger.wrong == [], f"seed {SEED}"
    server = ServerProcess(tmp_path, CONFIG).start()
    try:
        assert drain(server, ledger, random) == set(), f"seed {SEED}"
        assert ledger.wrong == [], f"seed {SEED}"
        journal = server.client().stats()["journal"]
        assert journal["segments"] < 40  # compaction kept up although most starts lived only moments
        assert len(ledger.accepted) > 10 * KILLS and len(ledger.done) > KILLS  # there was something to lose
        server.stop()
    finally:
        server.discard()
