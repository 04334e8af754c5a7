"""A wall clock that is set back or forward by years between two starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kqs.testing.faketime import faketime
from tests.support import ServerProcess

pytestmark = pytest.mark.service("faketime")
YEARS = 3650


def start(folder: Path, days: int) -> ServerProcess:
    """A server whose wall clock is off by some days."""
    return ServerProcess(folder, env=faketime(clock=f"{days:+}d")).start()


def test_ids_order_and_jobs_survive_a_clock_that_is_set_by_years(tmp_path: Path) -> None:
    ids: list[str] = []
    late: list[str] = []
    receipts: set[str] = set()
    for days in (0, -YEARS, YEARS, 0):
        server = start(tmp_path, days)
        try:
            client = server.client()
            ids += client.insert_many([{"type": "work", "data": days} for _ in range(3)])
            late.append(client.insert("late", days, delay=3600))
            # Handed out in the order of insertion, whatever the clock said; then given back.
            jobs = client.call("reserve", {"max": 100, "types": ["work"]})["jobs"]
            assert [job["id"] for job in jobs] == ids
            assert receipts.isdisjoint(job["receipt"] for job in jobs)
            receipts |= {job["receipt"] for job in jobs}
            release = [{"receipt": job["receipt"], "outcome": "release"} for job in jobs]
            assert client.call("settle", release)["refused"] == []
            # A delay ends early by as much as the clock was set forward, and late by as much as it was set
            # back: then it can be kicked (docs/guarantees.md).
            due = client.call("reserve", {"max": 100, "types": ["late"]})["jobs"]
            assert [job["id"] for job in due] == (late[:2] if days == YEARS else [])
            client.call("settle", [{"receipt": job["receipt"], "outcome": "ok"} for job in due])
            server.discard()
        finally:
            server.discard()
    assert len({*ids, *late}) == 16


def test_no_lease_lasts_for_years_because_the_clock_was_set_back(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path).start()
    try:
        client = server.client()
        id = client.insert("work", 1, ttr=1)
        [leased] = client.call("reserve", {"max": 1, "types": ["work"]})["jobs"]
        client.insert("other")  # its reply tells that the lease, too, is on the disk
        server.discard()
        server = start(tmp_path, -YEARS)
        [again] = server.client().call("reserve", {"max": 1, "types": ["work"], "wait": 60})["jobs"]
        assert (again["id"], again["attempt"]) == (id, 2)
        assert again["receipt"] != leased["receipt"]
        server.stop()
    finally:
        server.discard()
