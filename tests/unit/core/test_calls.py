"""Calls: which role may make which (deny by default), and what their arguments may be."""

from __future__ import annotations

import typing

import msgspec
import pytest
from msgspec import UNSET, Struct

from kqs.core import calls
from kqs.core.calls import ALLOWED, ROLES, Role

#: docs: "Roles": insert, work, read; admin may make all.
TABLE: dict[str, set[str]] = {
    "insert": {"ping", "echo", "auth", "insert", "job"},
    "work": {"ping", "echo", "auth", "reserve", "settle", "renew"},
    "read": {"ping", "echo", "auth", "stats", "health", "job", "jobs"},
}
ARGUMENTS = [
    value
    for value in vars(calls).values()
    if isinstance(value, type) and issubclass(value, Struct) and value not in (Struct, calls.SingleInsert)
]


@pytest.mark.parametrize("role", TABLE)
@pytest.mark.parametrize("call", ALLOWED)
def test_every_call_and_role(call: str, role: Role) -> None:
    assert (role in ALLOWED[call]) is (call in TABLE[role])


def test_every_call_of_the_table_exists() -> None:
    assert set().union(*TABLE.values()) <= set(ALLOWED)


def test_no_role_that_does_not_exist() -> None:
    assert set(ROLES) == set(typing.get_args(Role)) == {*TABLE, "admin"}
    assert all(roles <= set(ROLES) for roles in ALLOWED.values())


def test_quit_is_for_nobody_but_admin() -> None:
    assert ALLOWED["quit"] == frozenset()


@pytest.mark.parametrize("struct", ARGUMENTS, ids=lambda struct: struct.__name__)
def test_every_argument_refuses_unknown_members(struct: type[Struct]) -> None:
    assert struct.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize(
    ("struct", "text", "made"),
    [
        (calls.ReserveArgument, b"{}", calls.ReserveArgument(UNSET, UNSET, 1, 0, UNSET)),
        (
            calls.ReserveArgument,
            b'{"types":["a"],"pool":"p","max":10000,"wait":3600,"worker":"w"}',
            calls.ReserveArgument(["a"], "p", 10_000, 3600, "w"),
        ),
        (calls.RenewArgument, b'{"receipts":[]}', calls.RenewArgument([])),
        (
            calls.RenewArgument,
            b'{"receipts":["a"],"progress":{"fraction":1,"message":"m"}}',
            calls.RenewArgument(["a"], calls.Progress(1, "m")),
        ),
        (calls.JobArgument, b'{"id":"7"}', calls.JobArgument("7", False)),
        (calls.JobArgument, b'{"id":"7","data":true}', calls.JobArgument("7", True)),
        (calls.JobsArgument, b"{}", calls.JobsArgument(UNSET, UNSET, 50, UNSET)),
        (
            calls.JobsArgument,
            b'{"state":"buried","type":"t","limit":1000,"after":"x"}',
            calls.JobsArgument("buried", "t", 1000, "x"),
        ),
        (calls.StatsArgument, b'{"type":"t"}', calls.StatsArgument("t")),
        (calls.HealthArgument, b"{}", calls.HealthArgument()),
        (calls.QuitArgument, b"{}", calls.QuitArgument(30)),
        (calls.QuitArgument, b'{"grace":0}', calls.QuitArgument(0)),
        (calls.AuthArgument, b'{"token":"t"}', calls.AuthArgument("t")),
        (calls.SeedAuth, b'{"usr":"u","pwd":"p"}', calls.SeedAuth("u", "p")),
    ],
)
def test_arguments_taken(struct: type[Struct], text: bytes, made: Struct) -> None:
    assert msgspec.json.decode(text, type=struct) == made


@pytest.mark.parametrize(
    ("struct", "text"),
    [
        (calls.ReserveArgument, b'{"max":0}'),
        (calls.ReserveArgument, b'{"max":10001}'),
        (calls.ReserveArgument, b'{"max":true}'),
        (calls.ReserveArgument, b'{"max":1.5}'),
        (calls.ReserveArgument, b'{"max":1e999}'),
        (calls.ReserveArgument, b'{"wait":-1}'),
        (calls.ReserveArgument, b'{"wait":3600.1}'),
        (calls.ReserveArgument, b'{"wait":"1"}'),
        (calls.ReserveArgument, b'{"types":"a"}'),
        (calls.ReserveArgument, b'{"types":[""]}'),
        (calls.ReserveArgument, b'{"types":[1]}'),
        (calls.ReserveArgument, b'{"types":null}'),
        (calls.ReserveArgument, b'{"worker":"%b"}' % (b"w" * 201)),
        (calls.RenewArgument, b"{}"),
        (calls.RenewArgument, b'{"receipts":[1]}'),
        (calls.RenewArgument, b'{"receipts":[%b]}' % b",".join([b'"r"'] * 10_001)),
        (calls.RenewArgument, b'{"receipts":[],"progress":{"fraction":1.1}}'),
        (calls.RenewArgument, b'{"receipts":[],"progress":{"fraction":-0.1}}'),
        (calls.RenewArgument, b'{"receipts":[],"progress":{"message":"%b"}}' % (b"m" * 1001)),
        (calls.JobArgument, b"{}"),
        (calls.JobArgument, b'{"id":7}'),
        (calls.JobArgument, b'{"id":"7","data":1}'),
        (calls.JobsArgument, b'{"state":"Ready"}'),
        (calls.JobsArgument, b'{"limit":0}'),
        (calls.JobsArgument, b'{"limit":1001}'),
        (calls.JobsArgument, b'{"after":7}'),
        (calls.QuitArgument, b'{"grace":-1}'),
        (calls.QuitArgument, b'{"grace":null}'),
        (calls.AuthArgument, b"{}"),
        (calls.AuthArgument, b'{"token":null}'),
    ],
)
def test_arguments_refused(struct: type[Struct], text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=struct)


def test_given() -> None:
    assert calls.given(UNSET) is None
    assert calls.given("") == ""
    assert calls.given(0) == 0
