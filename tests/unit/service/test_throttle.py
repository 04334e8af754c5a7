"""Wrong tokens from an address: how long it is not heard."""

from __future__ import annotations

import itertools

import pytest

from kqs.service.throttle import FIRST, FORGET, FREE, LONGEST, MOST, Throttle

HERE = "192.0.2.1"


def guess(throttle: Throttle, times: int, address: str | None = HERE, now: float = 0.0) -> list[float]:
    """The pauses that so many different wrong tokens cost."""
    return [throttle.wrong(address, f"{now} {number}", now) for number in range(times)]


def test_the_first_few_cost_nothing_then_each_doubles_the_pause() -> None:
    pauses = guess(Throttle(), FREE + 20)
    assert pauses[: FREE - 1] == [0.0] * (FREE - 1)
    assert pauses[FREE - 1] == FIRST
    for before, after in itertools.pairwise(pauses[FREE - 1 :]):
        assert after == min(LONGEST, before * 2)
    assert pauses[-1] == LONGEST


def test_a_pause_ends() -> None:
    throttle = Throttle()
    guess(throttle, FREE)
    assert throttle.pause(HERE, 0.0) == FIRST
    assert throttle.pause(HERE, FIRST / 2) == FIRST / 2
    assert throttle.pause(HERE, FIRST) == 0.0
    guess(throttle, 1, now=FIRST)
    assert throttle.pause(HERE, FIRST) == 2 * FIRST


def test_other_addresses_are_heard() -> None:
    throttle = Throttle()
    guess(throttle, 100)
    assert throttle.pause("192.0.2.2", 0.0) == 0.0
    assert throttle.pause(None, 0.0) == 0.0


def test_the_unix_socket_is_never_held_up() -> None:
    throttle = Throttle()
    assert guess(throttle, 100, None) == [0.0] * 100
    assert throttle.pause(None, 0.0) == 0.0


def test_the_same_wrong_token_again_is_no_guess() -> None:
    throttle = Throttle()
    assert [throttle.wrong(HERE, "old", 0.0) for _ in range(1000)] == [0.0] * 1000
    pauses = guess(throttle, FREE - 1)
    assert (pauses[-1], throttle.wrong(HERE, "old", 0.0)) == (FIRST, FIRST)


def test_after_a_quiet_while_an_address_begins_anew() -> None:
    throttle = Throttle()
    guess(throttle, 100)
    assert guess(throttle, 1, now=FORGET) == [LONGEST]
    assert guess(throttle, 1, now=2 * FORGET + 1) == [0.0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    throttle = Throttle()
    guess(throttle, FREE, one)
    assert (throttle.pause(other, 0.0) > 0) is same


def test_the_table_is_bounded_and_forgets_the_oldest() -> None:
    throttle = Throttle()
    guess(throttle, FREE, "192.0.2.1")
    guess(throttle, FREE, "192.0.2.2")
    guess(throttle, 1, "192.0.2.1")
    for number in range(MOST - 1):
        guess(throttle, 1, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert throttle.pause("192.0.2.1", 0.0) > 0
    assert throttle.pause("192.0.2.2", 0.0) == 0.0
