"""A real server that runs short of file descriptors."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from kqs.errors import Busy
from kqs.service.host import OWN_FILES
from tests.support import ServerProcess, Wire, until

#: Nothing of the payloads stays in memory.
CONFIG = """
[journal]
segment_size = 65536
payload_window = 0
"""


def forbid_more_files(pid: int) -> tuple[int, int]:
    """Make every further open of a process fail with EMFILE; returns the limit as it was."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(taken) + 1)) - taken), before[1]))
    return before


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_jobs_whose_segment_cannot_be_opened_wait_and_are_not_buried(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, CONFIG).start()
    try:
        client = server.client()
        payloads = [f"{number} {'x' * 2000}" for number in range(100)]
        ids = [client.insert("work", data) for data in payloads]
        assert client.stats()["journal"]["segments"] > 1
        before = forbid_more_files(server.pid)
        assert client.call("reserve", {"max": 100, "types": ["work"], "wait": 0.2}) == {"jobs": []}
        jobs = client.stats()["jobs"]
        assert (jobs["ready"], jobs["buried"]) == (100, 0)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
        taken = client.call("reserve", {"max": 100, "types": ["work"], "wait": 60})["jobs"]
        assert [(job["id"], job["data"], job["attempt"]) for job in taken] == [
            (id, data, 1) for id, data in zip(ids, payloads, strict=True)
        ]
        server.stop()
    finally:
        server.discard()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_job_whose_bulk_file_cannot_be_opened_waits_and_that_is_no_attempt(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path).start()
    try:
        client = server.client()
        payload = "y" * 100_000
        id = client.insert("work", payload, max_attempts=1)
        before = forbid_more_files(server.pid)
        assert client.call("reserve", {"max": 1, "types": ["work"]}) == {"jobs": []}
        with pytest.raises(Busy):
            client.insert("work", payload)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
        [job] = client.call("reserve", {"max": 1, "types": ["work"], "wait": 60})["jobs"]
        assert (job["id"], job["data"], job["attempt"]) == (id, payload, 1)
        server.stop()
    finally:
        server.discard()


@pytest.mark.service("prlimit")
def test_connections_leave_the_journal_its_descriptors(tmp_path: Path) -> None:
    limit = OWN_FILES + 50
    server = ServerProcess(tmp_path, CONFIG, under=("prlimit", f"--nofile={limit}:{limit}")).start()
    crowd: list[Wire] = []
    try:
        [warning] = [line for line in server.logged() if line["level"] == "warning"]
        assert (warning["connections"], warning["configured"]) == (50, 10_000)
        canary = server.client()
        assert canary.ping() == "pong"
        crowd = [Wire(("127.0.0.1", server.port)) for _ in range(limit + 50)]
        assert crowd[0].call("ping")["m"] == "pong"
        assert crowd[-1].closed()
        for number in range(20):  # new segments all the time
            canary.insert_many([{"type": "work", "data": f"{number} {'x' * 2000}"} for _ in range(50)])
        assert canary.stats()["connections"]["open"] == 50
        for wire in crowd:
            wire.close()
        until(
            lambda: canary.stats()["connections"]["open"] == 2, "the crowd to be gone"
        )  # the worker of ping
        assert server.client().ping() == "pong"
        server.stop()
    finally:
        for wire in crowd:
            wire.close()
        server.discard()
