"""When a job runs again: bounds that hold for any policy, attempt and chance."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core.retry import RetryPolicy, attempts_left, retry_delay

seconds = st.floats(0, 3_153_600_000)
policies = st.builds(
    RetryPolicy,
    backoff=st.sampled_from(["exponential", "linear", "fixed"]),
    base=seconds,
    cap=seconds,
    jitter=st.floats(0, 1),
)
#: Up to what the journal's 32 bits hold, and far beyond.
attempts = st.integers(1, 2**32) | st.integers(1, 10**300) | st.sampled_from([1, 2, 64, 65, 66, 1024, 1025])
chances = st.floats(0, 1, exclude_max=True)


@given(policies, attempts, chances)
def test_never_negative_and_never_above_the_cap(policy: RetryPolicy, attempt: int, chance: float) -> None:
    wait = retry_delay(policy, attempt, chance)
    assert math.isfinite(wait)
    assert 0 <= wait <= policy.cap


@given(policies, attempts, chances)
def test_jitter_only_shortens_and_by_its_share(policy: RetryPolicy, attempt: int, chance: float) -> None:
    longest = retry_delay(policy, attempt, 0.0)
    wait = retry_delay(policy, attempt, chance)
    assert longest * (1 - policy.jitter) <= wait * (1 + 1e-12) + 1e-300
    assert wait <= longest
    if policy.jitter == 0:
        assert wait == longest


@given(policies, st.integers(1, 10**6), chances)
def test_later_attempts_never_wait_less(policy: RetryPolicy, attempt: int, chance: float) -> None:
    assert retry_delay(policy, attempt, chance) <= retry_delay(policy, attempt + 1, chance)


@given(policies, attempts)
def test_the_whole_range_of_the_jitter_is_used(policy: RetryPolicy, attempt: int) -> None:
    nearly_one = math.nextafter(1.0, 0.0)
    longest, shortest = retry_delay(policy, attempt, 0.0), retry_delay(policy, attempt, nearly_one)
    assert shortest == pytest.approx(longest * (1 - policy.jitter), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (RetryPolicy(jitter=0), [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600]),
        (RetryPolicy("linear", 5, 17, 0), [5, 10, 15, 17, 17]),
        (RetryPolicy("fixed", 5, 17, 0), [5, 5, 5]),
        (RetryPolicy("fixed", 50, 17, 0), [17, 17]),
        (RetryPolicy(base=0, jitter=0), [0, 0, 0]),
        (RetryPolicy(cap=0, jitter=0), [0, 0, 0]),
    ],
)
def test_how_waits_grow(policy: RetryPolicy, waits: list[float]) -> None:
    assert [retry_delay(policy, attempt, 0.5) for attempt in range(1, len(waits) + 1)] == waits


def test_jitter_of_one_half() -> None:
    policy = RetryPolicy(base=8, jitter=0.5)
    assert [retry_delay(policy, 1, chance) for chance in (0.0, 0.5)] == [8, 6]


@pytest.mark.parametrize(
    ("maximum", "attempt", "left"),
    [(0, 1, True), (0, 2**32, True), (1, 1, False), (3, 1, True), (3, 2, True), (3, 3, False), (3, 4, False)],
)
def test_attempts_left(maximum: int, attempt: int, left: bool) -> None:
    assert attempts_left(maximum, attempt) is left


@given(policies)
def test_a_policy_survives_json(policy: RetryPolicy) -> None:
    assert msgspec.json.decode(msgspec.json.encode(policy), type=RetryPolicy) == policy


@pytest.mark.parametrize(
    "bad", [{"backoff": "no"}, {"base": -1}, {"cap": math.inf}, {"jitter": 1.5}, {"jiter": 0}, {"base": True}]
)
def test_other_policies_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, RetryPolicy)
