"""What a server believes of ready jobs in PostgreSQL, when that changes while a claim is under way."""

from __future__ import annotations

from kqs.engines.postgres.candidates import Candidates


def lease(number: int) -> tuple[int, int, int, str, str]:
    return (0, 10, 10, "w", f"{number}-1-1")


def test_a_job_that_is_taken_is_claimed_or_missed() -> None:
    candidates = Candidates(0)
    for number in (1, 2, 3):
        assert candidates.add(number, 2, "t", None)
        assert not candidates.add(number, 2, "t", None)
    assert candidates.take((), 2, 0) == [1, 2]
    candidates.claimed(1, lease(1))
    candidates.missed(2, keep=True)
    assert candidates.take((), 5, 0) == [2, 3]
    candidates.missed(2)
    candidates.claimed(3, lease(3))
    assert candidates.take((), 5, 0) == []
    for number in (1, 3):
        candidates.ended(f"{number}-1-1", 5)
    assert candidates.leases == {}
    assert candidates.scheduler.lane("t").live == candidates.scheduler.lane("t").running == 0


def test_a_job_that_is_dropped_while_it_is_claimed() -> None:
    """A load that was late made it known once more, and its lease ended meanwhile."""
    candidates = Candidates(0)
    for number in (1, 2):
        candidates.add(number, 2, "t", "key")
    lane = candidates.scheduler.lane("t", "key")
    assert candidates.take((), 2, 0) == [1, 2]
    candidates.drop(1)
    candidates.drop(2)
    candidates.missed(1)
    candidates.claimed(2, lease(2))
    assert (lane.live, lane.running) == (1, 1)
    candidates.ended("2-1-1", 5)
    assert (lane.live, lane.running) == (0, 0)
    assert candidates.add(1, 2, "t", "key")
    assert candidates.take((), 5, 0) == [1]
