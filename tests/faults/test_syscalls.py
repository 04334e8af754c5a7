"""System calls of a real server that fail, one after the other (RELIABILITY T4, with the real kernel).

``strace`` makes the nth call of a kind fail with EIO, in every thread of the server. ``KQS_CALLS`` sets how
many n are tried for each kind (3).
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from random import Random

import pytest

from tests.support import PATIENCE, ServerProcess, until

from .ledger import Ledger, drain, under_load
from .machine import Strace

MOST = int(os.environ.get("KQS_CALLS", "3"))
#: Small segments and a low threshold, so that the files of a life are made and unmade within moments.
CONFIG = """
[journal]
segment_size = 65536

[bulk]
threshold = 20000
"""
SYNCS = ("fdatasync", "fsync")
#: What strace calls them: some machines have only the newer ones.
CALLS = {"rename": "/^rename(at2?)?$", "unlink": "/^unlink(at)?$"}
#: What fails, and at which of its calls in a thread. The first ones are met by the start, later ones by the
#: journal's thread or the bulk store's.
CASES = [
    (call, number)
    for call, numbers in {
        "pwrite64": (1, 2, 4, 9, 30),
        "fdatasync": (1, 2, 3, 7, 25),
        "fsync": (1, 2, 3, 5, 9),
        "rename": (1, 2, 3, 4, 6),
        "unlink": (1, 2, 3, 5, 8),
        "openat": (1, 2, 4, 8, 12),
        "fallocate": (1, 2, 3, 4, 5),
    }.items()
    for number in numbers[:MOST]
]

pytestmark = pytest.mark.service("strace")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A data directory with jobs in several segments, and the jobs' payloads by id."""
    folder = tmp_path_factory.mktemp("template")
    server = ServerProcess(folder, CONFIG).start()
    payloads = [f"before {number} {'x' * 2000}" for number in range(60)] + ["before 61 " + "y" * 30_000]
    ids = server.client().insert_many([{"type": "work", "data": data} for data in payloads])
    server.stop()
    (server.data / "kqs.sock").unlink()
    return server.data, dict(zip(ids, payloads, strict=True))


def files_of(data: Path) -> tuple[Path, ...]:
    """The files of a data directory that a server opens by name."""
    journal = data / "journal"
    names = [f"{number:010d}.seg{new}" for number in range(1, 60) for new in ("", ".new")]
    names += [f"spare-{number}" for number in range(1, 10)] + ["ballast"]
    return (data / "manifest", data / "manifest.new", journal, data, *(journal / name for name in names))


def stops(line: str) -> bool:
    """Whether a server must stop for this call's failure: the file was the journal's."""
    return "/data/" in line and "/data/bulk" not in line


def synced_again(lines: list[str]) -> list[str]:
    """Files that were synced although a sync of theirs had failed."""
    failed: set[str] = set()
    again = []
    for line in lines:
        found = re.search(r"\b(?:fdatasync|fsync)\(\d+<([^>]*)>", line)
        if found is None:
            continue
        if found[1] in failed:
            again.append(line)
        if "(INJECTED)" in line:
            failed.add(found[1])
    return again


@pytest.mark.parametrize(("call", "number"), CASES)
def test_a_call_that_fails_loses_nothing(
    tmp_path: Path, template: tuple[Path, dict[str, str]], call: str, number: int
) -> None:
    before, jobs = template
    shutil.copytree(before, tmp_path / "data")
    ledger, random = Ledger(accepted=dict(jobs), sent=set(jobs.values())), Random(number)
    strace = Strace(
        tmp_path / "strace",
        (CALLS.get(call, call), *SYNCS),
        (f"{CALLS.get(call, call)}:error=EIO:when={number}",),
        files_of(tmp_path / "data") if call == "openat" else (),
    )
    server = ServerProcess(tmp_path, CONFIG, under=tuple(strace.argv))
    server.spawn()
    try:
        if server.serves():

            def until_it_fails() -> None:
                until(lambda: any("/data/" in line for line in strace.injected()), "the fault", 4 * PATIENCE)
                if any(map(stops, strace.injected())):
                    server.wait()
                else:
                    assert server.client().call("ping") == "pong"

            under_load(server, ledger, random, until_it_fails)
        lines = strace.ended(server.pid)
    finally:
        server.discard()
    assert synced_again(lines) == []
    if any(map(stops, strace.injected())):
        assert server.process.returncode in (1, 2)
        assert "Input/output error" in server.stderr.text
        assert "Traceback" not in server.stderr.text
    server = ServerProcess(tmp_path, CONFIG).start()
    try:
        assert drain(server, ledger, random) == set()
        assert ledger.wrong == []
        server.stop()
    finally:
        server.discard()
