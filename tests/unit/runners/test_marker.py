"""The pages a worker shares with its supervisor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kqs.runners.marker import HELD, Held, Marker


@pytest.fixture
def pages() -> Iterator[tuple[Marker, Marker]]:
    """The worker's and the supervisor's."""
    supervisor = Marker(slots=3)
    worker = Marker(3, os.dup(supervisor.fd))
    yield worker, supervisor
    worker.close()
    supervisor.close()


def test_the_supervisor_sees_what_runs(pages: tuple[Marker, Marker]) -> None:
    worker, supervisor = pages
    assert supervisor.running() == []
    worker.set(0, "a")
    worker.set(2, "a-longer-receipt")
    assert supervisor.running() == ["a", "a-longer-receipt"]
    worker.set(0, "")
    worker.set(2, "c")
    assert supervisor.running() == ["c"]


def test_cells_are_apart(pages: tuple[Marker, Marker]) -> None:
    worker, supervisor = pages
    for slot in range(3):
        worker.set(slot, f"running {slot}")
    worker.wait("waiting")
    worker.block("blocking")
    worker.hold([Held("r", "i", "t")])
    for slot in range(3):
        supervisor.cancel(f"running {slot}")
    assert supervisor.running() == ["running 0", "running 1", "running 2"]
    assert (supervisor.waiting(), supervisor.blocking()) == ("waiting", "blocking")
    assert supervisor.held() == [Held("r", "i", "t")]
    supervisor.clear()
    assert (worker.running(), worker.waiting(), worker.blocking(), worker.held()) == ([], "", "", [])


def test_only_the_attempt_that_was_meant_is_cancelled(pages: tuple[Marker, Marker]) -> None:
    worker, supervisor = pages
    worker.set(1, "one")
    supervisor.cancel("one")
    supervisor.cancel("gone long ago")
    assert worker.cancelled(1, "one")
    assert not worker.cancelled(0, "one")
    worker.set(1, "two")
    assert not worker.cancelled(1, "two")


def test_what_is_held_is_told_as_far_as_it_fits(pages: tuple[Marker, Marker]) -> None:
    worker, supervisor = pages
    leases = [Held(f"receipt {n}", f"id {n}", 'tÿpe "quoted"\n' * 10) for n in range(5000)]
    worker.hold(leases)
    told = supervisor.held()
    assert told == leases[: len(told)]
    assert HELD // 400 < len(told) < 5000
    worker.hold([])
    assert supervisor.held() == []
