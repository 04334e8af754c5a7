"""Power cuts of a real file system under a real server, again and again on the same data (RELIABILITY T6).

An ext4 on a loop device is shut down without writing anything more, as if the machine lost its power: what no
``fdatasync`` or ``fsync`` covered is gone. ``KQS_CUTS`` sets how often (60), ``KQS_SEED`` the seed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest

from tests.support import ServerProcess

from .conftest import MakeFileSystem
from .ledger import Ledger, drain, under_load
from .machine import FileSystem, Strace

CUTS = int(os.environ.get("KQS_CUTS", "60"))
SEED = int(os.environ.get("KQS_SEED", "1"))
#: Small segments, so that there is rotation and compaction all the time.
CONFIG = """
[journal]
segment_size = 262144
"""

pytestmark = pytest.mark.service("mkfs.ext4", "mount")


def cut_under_load(server: ServerProcess, disk: FileSystem, ledger: Ledger, random: Random) -> None:
    """Load from eight connections; the power is cut amid it, and soon the server is gone too."""

    def cut() -> None:
        time.sleep(random.uniform(0.02, 0.2))
        # From here on replies do not count. A real machine would send none, and an fdatasync that is under
        # way during this ioctl may be told to have succeeded: seen on Linux 6.18 with nothing but a loop of
        # pwrite and fdatasync beside others' fsync.
        ledger.dark = True
        disk.cut_power()
        server.kill()

    under_load(server, ledger, random, cut)
    disk.unmount()
    disk.mount()
    ledger.dark = False


def test_what_was_promised_survives_every_power_cut(tmp_path: Path, file_system: MakeFileSystem) -> None:
    random, ledger, disk = Random(SEED), Ledger(), file_system()
    data = disk.folder / "kqs" / "data"
    for _ in range(CUTS):
        cut_under_load(ServerProcess(tmp_path, CONFIG, data=data).start(), disk, ledger, random)
        assert ledger.wrong == [], f"seed {SEED}"
    server = ServerProcess(tmp_path, CONFIG, data=data).start()
    try:
        assert drain(server, ledger, random) == set(), f"seed {SEED}"
        assert ledger.wrong == [], f"seed {SEED}"
        assert len(ledger.accepted) > 10 * CUTS and len(ledger.done) > CUTS  # there was something to lose
        server.stop()
    finally:
        server.discard()


@pytest.mark.service("strace")
def test_without_fdatasync_the_same_cuts_lose_jobs(tmp_path: Path, file_system: MakeFileSystem) -> None:
    """A test of the test above: it can fail."""
    random, ledger, disk = Random(SEED), Ledger(), file_system()
    data = disk.folder / "kqs" / "data"
    strace = Strace(Path(os.devnull), ("fdatasync",), ("fdatasync:retval=0",))
    server = ServerProcess(tmp_path, CONFIG, data=data, under=tuple(strace.argv)).start()
    cut_under_load(server, disk, ledger, random)
    server = ServerProcess(tmp_path, CONFIG, data=data)
    server.spawn()
    try:
        if not server.serves():
            assert server.wait() == 2 and "journal damaged" in server.stderr.text
            return
        assert drain(server, ledger, random) != set() or ledger.wrong
    finally:
        server.discard()
