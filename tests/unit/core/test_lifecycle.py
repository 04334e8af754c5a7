"""The one table of states and events: what it has leads on, what it has not changes nothing."""

from __future__ import annotations

import itertools

import pytest

from kqs.core.lifecycle import TABLE, Event, State, step
from kqs.errors import Conflict

PAIRS = list(itertools.product(State, Event))

#: What may happen, told apart from the table: state -> {event: state after}.
EXPECTED: dict[str, dict[str, str]] = {
    "DELAYED": {"DUE": "READY", "KICK": "READY", "BURY": "BURIED", "DELETE": "DONE"},
    "READY": {"LEASE": "RESERVED", "BURY": "BURIED", "DELETE": "DONE"},
    "RESERVED": {
        "ACK": "DONE",
        "RETRY": "READY",
        "RELEASE": "READY",
        "RESCUE": "READY",
        "BURY": "BURIED",
        "DELETE": "DONE",
        "CANCEL": "RESERVED",
    },
    "BURIED": {"KICK": "READY", "DELETE": "DONE"},
    "DONE": {},
}
MAY_WAIT = {"RETRY", "RELEASE", "RESCUE"}


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda part: part.name)
def test_every_pair(state: State, event: Event, delayed: bool) -> None:
    before = dict(TABLE)
    after = EXPECTED[state.name].get(event.name)
    if after is None:
        with pytest.raises(Conflict, match=f"a {state.name.lower()} job cannot take {event.name.lower()}"):
            step(state, event, delayed=delayed)
    elif delayed and event.name in MAY_WAIT:
        assert step(state, event, delayed=delayed) is State.DELAYED
    else:
        assert step(state, event, delayed=delayed) is State[after]
    assert before == TABLE


def test_done_is_the_end_and_can_be_reached_from_everywhere() -> None:
    reached = {State.DONE}
    for _ in State:
        reached |= {state for (state, _event), after in TABLE.items() if after in reached}
    assert reached == set(State)
    assert not [pair for pair in TABLE if pair[0] is State.DONE]


def test_only_a_lease_leads_to_reserved_and_only_from_ready() -> None:
    before = {state for (state, _event), after in TABLE.items() if after is State.RESERVED is not state}
    assert before == {State.READY}


def test_the_numbers_are_those_in_journals() -> None:
    """They are on disk: a change here is a new journal format."""
    assert {state.name: state.value for state in State} == {
        "DELAYED": 1,
        "READY": 2,
        "RESERVED": 3,
        "BURIED": 4,
        "DONE": 5,
    }
    assert {event.name: event.value for event in Event} == {
        "LEASE": 2,
        "ACK": 4,
        "RETRY": 5,
        "BURY": 6,
        "RELEASE": 7,
        "KICK": 8,
        "DELETE": 9,
        "RESCUE": 10,
        "CANCEL": 12,
        "DUE": 255,
    }
