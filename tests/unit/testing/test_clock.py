"""The clock that moves when told."""

import pytest

from kqs.testing.clock import EPOCH, VirtualClock


def test_time_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock()
    assert clock.now() == clock.now() == EPOCH
    clock.advance(1.5)
    assert clock.now() == EPOCH + 1_500_000


def test_time_does_not_pass_backwards() -> None:
    clock = VirtualClock(10)
    with pytest.raises(ValueError, match="cannot pass by -1"):
        clock.advance(-1)
    assert clock.now() == 10


def test_the_wall_clock_can_be_set_back_between_runs() -> None:
    clock = VirtualClock()
    clock.jump(-3600)
    assert clock.now() == EPOCH - 3_600_000_000
