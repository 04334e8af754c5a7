"""The calls: who may make them and what their arguments are. Source: docs/reference/calls.md."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .job import JobFields
from .retry import Seconds
from .wire import check_text, one_a_line

Role = Literal["insert", "work", "read", "admin"]
ROLES: Final[tuple[Role, ...]] = ("insert", "work", "read", "admin")

#: Which roles may make a call; admin may make all.
ALLOWED: Final[dict[str, frozenset[Role]]] = {
    "ping": frozenset({"insert", "work", "read"}),
    "echo": frozenset({"insert", "work", "read"}),
    "auth": frozenset({"insert", "work", "read"}),
    "insert": frozenset({"insert"}),
    "job": frozenset({"insert", "read"}),
    "wait": frozenset({"insert"}),
    "watch": frozenset({"read"}),
    "why": frozenset({"read"}),
    "kick": frozenset(),
    "bury": frozenset(),
    "delete": frozenset(),
    "cancel": frozenset(),
    "purge": frozenset(),
    "pause": frozenset(),
    "resume": frozenset(),
    "drain": frozenset(),
    "cron": frozenset({"read"}),
    "cron_run": frozenset(),
    "reserve": frozenset({"work"}),
    "settle": frozenset({"work"}),
    "renew": frozenset({"work"}),
    "jobs": frozenset({"read"}),
    "stats": frozenset({"read"}),
    "health": frozenset({"read"}),
    "quit": frozenset(),
}

Wait = Annotated[float, Meta(ge=0, le=3600)]
StateName = Literal["delayed", "ready", "reserved", "buried", "done"]
WaitingState = Literal["delayed", "ready", "reserved", "buried"]
TypeName = Annotated[str, Meta(min_length=1, max_length=197)]


class SingleInsert(Struct, gc=False):
    """A whole ``insert`` of one job, nothing unusual about it, decoded in one go: the hot path.

    Attributes:
        m: the job.
        id: the caller's id, a string.
        b: a call with a binary part is none of these.
    """

    n: Literal["insert"]
    m: JobFields
    id: str
    b: None = None
    v: Literal[1] = 1


_singles = msgspec.json.Decoder(SingleInsert)


def decode_singles(block: bytes) -> list[SingleInsert] | None:
    """The calls of a block of lines, when every one of them is a :class:`SingleInsert`.

    None says nothing about what is wrong, or whether anything is: take the block apart with wire.py.
    """
    if b'"insert"' not in block[:256]:
        return None  # not worth trying
    try:
        check_text(block)
        inserts = _singles.decode_lines(block)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return inserts if one_a_line(block, len(inserts)) else None


class AuthArgument(Struct, forbid_unknown_fields=True):
    """``auth``: a token."""

    token: str


class SeedAuth(Struct, forbid_unknown_fields=True):
    """``auth`` inside another call's argument, the seed's way: ``pwd`` is the token."""

    usr: str = ""
    pwd: str = ""


class ReserveArgument(Struct, forbid_unknown_fields=True):
    """``reserve``: lease ready jobs.

    Attributes:
        types: job types wanted; all when absent.
        pool: the pool the worker belongs to, for its name only.
        max: most jobs, 1..10,000.
        wait: seconds to wait for the first one.
        worker: the worker's name, as shown.
    """

    types: Annotated[list[TypeName], Meta(max_length=20_000)] | UnsetType = UNSET
    pool: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    max: Annotated[int, Meta(ge=1, le=10_000)] = 1
    wait: Wait = 0
    worker: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET


class Progress(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How far a job is."""

    fraction: Annotated[float, Meta(ge=0, le=1)] | None = None
    message: Annotated[str, Meta(max_length=1000)] = ""


class RenewArgument(Struct, forbid_unknown_fields=True):
    """``renew``: start the ttr of leases anew."""

    receipts: Annotated[list[str], Meta(max_length=10_000)]
    progress: Progress | UnsetType = UNSET


class JobArgument(Struct, forbid_unknown_fields=True):
    """``job``: one job, with its payload when ``data``."""

    id: str
    data: bool = False


class WhyArgument(Struct, forbid_unknown_fields=True):
    """``why``: one job."""

    id: str


class JobsArgument(Struct, forbid_unknown_fields=True):
    """``jobs``: a page of jobs in insertion order; ``after`` is the ``next`` of the page before."""

    state: StateName | UnsetType = UNSET
    type: TypeName | UnsetType = UNSET
    fair: Annotated[str, Meta(min_length=1, max_length=255)] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    after: str | UnsetType = UNSET


class ControlArgument(Struct, forbid_unknown_fields=True):
    """``kick``, ``bury``, ``delete``, ``cancel``: jobs by id, or all of a type and state.

    Attributes:
        id, ids: which jobs; all of them or none.
        type: all jobs of this type.
        state: in this state; when absent, buried for kick, otherwise those that wait (or run, for cancel).
        limit: at most so many, the oldest first.
    """

    id: str | UnsetType = UNSET
    ids: Annotated[list[str], Meta(max_length=10_000)] | UnsetType = UNSET
    type: TypeName | UnsetType = UNSET
    state: WaitingState | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1)] | UnsetType = UNSET


class PurgeArgument(Struct, forbid_unknown_fields=True):
    """``purge``: delete all jobs of a type in a state; ``older``: inserted so many seconds ago, at least."""

    type: TypeName
    state: WaitingState = "ready"
    older: Seconds | UnsetType = UNSET


class PauseArgument(Struct, forbid_unknown_fields=True):
    """``pause``, ``resume``: hand out no jobs of a type, or do again."""

    type: TypeName


class DrainArgument(Struct, forbid_unknown_fields=True):
    """``drain``: this server hands out no jobs, or does again."""

    on: bool = True


class CronArgument(Struct, forbid_unknown_fields=True):
    """``cron`` takes nothing."""


class CronRunArgument(Struct, forbid_unknown_fields=True):
    """``cron_run``: a cron's job, now."""

    name: str


class WaitArgument(Struct, forbid_unknown_fields=True):
    """``wait``: for a job to be done or buried, so many seconds at most."""

    id: str
    timeout: Wait = 30


class WatchArgument(Struct, forbid_unknown_fields=True):
    """``watch``: what happens to a job, to those of a type, or to all."""

    id: str | UnsetType = UNSET
    type: TypeName | UnsetType = UNSET


class StatsArgument(Struct, forbid_unknown_fields=True):
    """``stats``: of one type, or of all."""

    type: TypeName | UnsetType = UNSET


class HealthArgument(Struct, forbid_unknown_fields=True):
    """``health`` takes nothing."""


class QuitArgument(Struct, forbid_unknown_fields=True):
    """``quit``: seconds running jobs may take to finish."""

    grace: Wait = 30


def given(value: Any) -> Any:
    """A member's value, or None when the caller left it out."""
    return None if value is UNSET else value
