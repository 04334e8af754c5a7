"""The settings of the scheduler: what is said when nothing is said."""

from __future__ import annotations

import pytest

from kqs.core.shares import NO_SHARE, Share, Shares


@pytest.mark.parametrize(
    ("share", "limited"),
    [
        (NO_SHARE, False),
        (Share(weight=3), False),
        (Share(burst=5), False),
        (Share(concurrency=1), True),
        (Share(rate=0.001), True),
    ],
)
def test_a_weight_is_no_limit(share: Share, limited: bool) -> None:
    assert share.limited is limited


def test_without_settings_all_have_the_same_and_no_limits() -> None:
    shares = Shares()
    assert (shares.order, shares.priority) == ("fair", "strict")
    assert shares.of_type("any") == (None, NO_SHARE)
    assert shares.of_key("any") == NO_SHARE == Share(weight=1, concurrency=0, rate=0, burst=0)
