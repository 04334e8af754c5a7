"""The bounded memory: at least the latest ``size`` keys, at most twice as many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kqs.core.recent import Recent


@given(size=st.integers(1, 6), keys=st.lists(st.integers(0, 15), max_size=60))
def test_against_everything_ever_set(size: int, keys: list[int]) -> None:
    recent: Recent[int, int] = Recent(size)
    everything: dict[int, int] = {}
    for time, key in enumerate(keys):
        recent[key] = time
        everything.pop(key, None)
        everything[key] = time
        latest = list(everything)[-size:]
        assert [recent.get(key) for key in latest] == [everything[key] for key in latest]
        held = {key: value for key in range(16) if (value := recent.get(key)) is not None}
        assert len(held) <= 2 * size
        assert all(everything[key] == value for key, value in held.items())
        values = list(recent.values())
        if len(everything) == time + 1:
            assert values == sorted(values)
        assert set(held.values()) <= set(values)
        assert len(values) <= 2 * size


def test_unknown_is_none() -> None:
    recent: Recent[str, int] = Recent(2)
    assert recent.get("a") is None
    recent["a"] = 0
    assert recent.get("a") == 0
    assert list(recent.values()) == [0]


def test_the_oldest_go_first() -> None:
    recent: Recent[int, str] = Recent(2)
    for number in range(5):
        recent[number] = str(number)
    assert recent.get(0) is None
    assert list(recent.values()) == ["2", "3", "4"]
