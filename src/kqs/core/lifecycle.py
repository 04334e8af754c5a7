"""A job's states and the one table of what may happen in each.

Every change of a job, live or in replay, goes through :func:`step`. An event the table does not have raises
and changes nothing. The diagram in docs/explanation/lifecycle.md is made from the same table.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from ..errors import Conflict


class State(IntEnum):
    """Where a job is. The values are journaled: never renumber."""

    DELAYED = 1
    READY = 2
    RESERVED = 3
    BURIED = 4
    DONE = 5


class Event(IntEnum):
    """What can happen to a job. The values are the journal's entry kinds: never renumber."""

    LEASE = 2
    ACK = 4
    RETRY = 5
    BURY = 6
    RELEASE = 7
    KICK = 8
    DELETE = 9
    RESCUE = 10
    CANCEL = 12
    #: Never journaled: a delay that is over is told by the due time.
    DUE = 255


#: (state, event) -> the state that follows. RETRY, RELEASE and RESCUE lead to DELAYED instead of READY when
#: they carry a due time that is still to come; :func:`step` decides that.
TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.DELAYED, Event.DUE): State.READY,
    (State.DELAYED, Event.KICK): State.READY,
    (State.DELAYED, Event.BURY): State.BURIED,
    (State.DELAYED, Event.DELETE): State.DONE,
    (State.READY, Event.LEASE): State.RESERVED,
    (State.READY, Event.BURY): State.BURIED,
    (State.READY, Event.DELETE): State.DONE,
    (State.RESERVED, Event.ACK): State.DONE,
    (State.RESERVED, Event.RETRY): State.READY,
    (State.RESERVED, Event.RELEASE): State.READY,
    (State.RESERVED, Event.RESCUE): State.READY,
    (State.RESERVED, Event.BURY): State.BURIED,
    (State.RESERVED, Event.DELETE): State.DONE,
    #: The job ends with its lease, unless that is acked first.
    (State.RESERVED, Event.CANCEL): State.RESERVED,
    (State.BURIED, Event.KICK): State.READY,
    (State.BURIED, Event.DELETE): State.DONE,
}

_DELAYABLE: Final = frozenset({Event.RETRY, Event.RELEASE, Event.RESCUE})


def step(state: State, event: Event, *, delayed: bool = False) -> State:
    """The state after an event.

    Args:
        state: the state now.
        event: what happens.
        delayed: whether the event carries a due time that is still to come.

    Raises:
        Conflict: the table has no such transition; nothing changes.
    """
    after = TABLE.get((state, event))
    if after is None:
        raise Conflict(f"a {state.name.lower()} job cannot take {event.name.lower()}")
    if delayed and event in _DELAYABLE:
        return State.DELAYED
    return after
