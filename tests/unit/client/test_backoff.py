"""How long a client waits before it connects again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.client.backoff import Backoff


@given(
    st.floats(0.001, 1),
    st.floats(0.001, 10),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=60),
)
def test_between_half_and_all_of_a_capped_doubling_wait(base: float, cap: float, draws: list[float]) -> None:
    left = iter(draws)
    backoff = Backoff(lambda: next(left), base, cap)
    for tries in range(len(draws)):
        longest = min(cap, base * 2.0**tries)
        assert longest / 2 <= backoff.next() <= longest


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.5), (0.5, 0.75)])
def test_the_chance_decides(chance: float, share: float) -> None:
    backoff = Backoff(lambda: chance, base=1, cap=3)
    assert [backoff.next() for _ in range(4)] == [1 * share, 2 * share, 3 * share, 3 * share]


def test_starts_anew_after_it_worked() -> None:
    backoff = Backoff(lambda: 0.5, base=1, cap=100)
    first = backoff.next()
    assert backoff.next() > first
    backoff.reset()
    assert backoff.next() == first


def test_many_tries_do_not_overflow() -> None:
    backoff = Backoff(lambda: 0.5)
    assert max(backoff.next() for _ in range(5000)) <= 2.0
