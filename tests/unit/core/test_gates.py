"""Limits: how many run at a time, and how many begin in any span of time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core.gates import Limit
from kqs.core.job import SECOND
from kqs.core.shares import Share

RATES = [0.1, 1 / 3, 0.7, 1.0, 3.0, 7.0, 9.99, 10 / 60, 5 / 3600, 97.0, 1000 / 3, 123_457.0, 1e6]


def limit(share: Share, now: int = 0) -> Limit:
    return Limit("key", "k", share, now)


def greedy(bucket: Limit, times: Sequence[int]) -> list[int]:
    """As many starts as it lets through at each of these times."""
    started = []
    for now in times:
        while bucket.open_at(now):
            bucket.enter(now)
            bucket.running -= 1
            started.append(now)
            assert len(started) < 100_000
    return started


def most(share: Share, span: int) -> Fraction:
    burst = share.burst or max(1, round(share.rate / 10))
    return burst + Fraction(share.rate) * span / SECOND


@given(
    st.sampled_from(RATES),
    st.sampled_from([0, 1, 2, 5]),
    st.integers(0, 10**15),
    st.lists(st.floats(0, 4), max_size=40),
)
def test_in_any_span_no_more_begin_than_burst_and_rate_allow(
    rate: float, burst: int, start: int, gaps: list[float]
) -> None:
    share = Share(rate=rate, burst=burst)
    times = [start]
    for gap in gaps:  # in units of a token's time
        times.append(times[-1] + int(gap * SECOND / rate))
    if not burst and rate > 1000:
        return
    started = greedy(limit(share, start), times)
    for (i, first), (j, last) in combinations(enumerate(started), 2):
        assert j - i + 1 <= most(share, last - first)
    for j, last in enumerate(started):  # and the bucket was empty at the start
        assert j + 1 <= Fraction(rate) * (last - start) / SECOND


@pytest.mark.parametrize("rate", RATES)
def test_no_token_is_lost_to_rounding(rate: float) -> None:
    """Whoever asks at the time it gives gets its rate, but for a nanosecond and a microsecond each time."""
    bucket = limit(Share(rate=rate, burst=1), 7)
    now, count = 7, 200
    for _ in range(count):
        now = bucket.next_token()
        assert not bucket.open_at(now - 1)
        assert bucket.open_at(now)
        bucket.enter(now)
    exact = Fraction(SECOND) * count / Fraction(rate)
    assert exact <= now - 7 <= exact * (1 + Fraction(rate) / 10**9) + count + 1


def test_rates_that_divide_a_second_are_exact_for_ever() -> None:
    bucket = limit(Share(rate=8.0, burst=3))
    started = greedy(bucket, range(0, 100 * SECOND + 1, SECOND // 8))
    assert len(started) == 800


def test_a_full_bucket_holds_the_burst_and_no_more() -> None:
    bucket = limit(Share(rate=10.0, burst=4))
    assert greedy(bucket, [0]) == []
    assert greedy(bucket, [3600 * SECOND]) == [3600 * SECOND] * 4


@pytest.mark.parametrize(("rate", "burst"), [(0.5, 1), (9.0, 1), (100.0, 10)])
def test_without_a_burst_a_tenth_of_a_second_of_them_begin_at_once(rate: float, burst: int) -> None:
    bucket = limit(Share(rate=rate))
    assert bucket.burst == burst
    assert len(greedy(bucket, [10**10])) == burst


def test_at_most_so_many_at_a_time() -> None:
    bucket = limit(Share(concurrency=2))
    assert bucket.enter(0)
    assert not bucket.enter(0)
    assert bucket.closed and bucket.full_house() and not bucket.open_at(10**12)
    bucket.running -= 1
    assert bucket.open_at(0)


def test_both_limits_hold() -> None:
    bucket = limit(Share(concurrency=1, rate=1.0, burst=2))
    now = 10 * SECOND
    assert not bucket.enter(now)
    bucket.running -= 1
    assert bucket.open_at(now)
    bucket.enter(now)
    bucket.running -= 1
    assert not bucket.open_at(now)
    assert bucket.next_token() == now + SECOND


def test_a_lower_rate_keeps_the_bucket_within_its_size() -> None:
    bucket = limit(Share(rate=0.1, burst=1))
    bucket.change(Share(rate=10.0, burst=2), 5 * SECOND)
    assert bucket.next_token() == 5 * SECOND + SECOND // 10
    bucket.change(Share(rate=10.0, burst=1), 6 * SECOND)
    assert greedy(bucket, [6 * SECOND]) == [6 * SECOND]


def test_a_rate_that_is_new_begins_with_an_empty_bucket() -> None:
    bucket = limit(Share(concurrency=1), 3)
    bucket.change(Share(rate=1.0, burst=5), 100 * SECOND)
    assert greedy(bucket, [100 * SECOND, 101 * SECOND]) == [101 * SECOND]
    bucket.change(Share(concurrency=1), 102 * SECOND)
    bucket.change(Share(rate=1.0, burst=5), 103 * SECOND)
    assert not bucket.open_at(103 * SECOND)


def test_what_is_shown() -> None:
    bucket = limit(Share(concurrency=3, rate=2.0))
    bucket.running = 1
    assert bucket.shown(0) == {
        "kind": "key",
        "name": "k",
        "running": 1,
        "concurrency": 3,
        "rate": 2.0,
        "burst": 1,
        "next_in": 0.5,
    }
    assert limit(Share(concurrency=3)).shown(0) == {
        "kind": "key",
        "name": "k",
        "running": 0,
        "concurrency": 3,
    }
