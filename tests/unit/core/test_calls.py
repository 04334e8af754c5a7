"""Calls: which role may make which (deny by default), and what their arguments may be."""

from __future__ import annotations

import json
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Struct

from kqs.core import calls, wire
from kqs.core.calls import ALLOWED, ROLES, Role
from kqs.core.job import DefaultsTable, JobFields, NewJob, check_job, parse_job
from kqs.errors import CallError

#: docs: "Roles": insert, work, read; admin may make all.
TABLE: dict[str, set[str]] = {
    "insert": {"ping", "echo", "auth", "insert", "job", "wait"},
    "work": {"ping", "echo", "auth", "reserve", "settle", "renew"},
    "read": {"ping", "echo", "auth", "stats", "health", "job", "jobs", "watch", "why", "cron"},
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


def test_what_is_for_nobody_but_admin() -> None:
    assert {call for call, roles in ALLOWED.items() if not roles} == {
        *("kick", "bury", "delete", "cancel", "purge", "pause", "resume", "drain", "cron_run", "quit")
    }


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
        (calls.JobsArgument, b"{}", calls.JobsArgument(UNSET, UNSET, UNSET, 50, UNSET)),
        (
            calls.JobsArgument,
            b'{"state":"buried","type":"t","fair":"k","limit":1000,"after":"x"}',
            calls.JobsArgument("buried", "t", "k", 1000, "x"),
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


# -- the hot path --------------------------------------------------------------------------------

LINES = st.sampled_from(
    [
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t"}}',
        b'{"v":1,"id":"\\u00e9\\"","n":"insert","m":{"type":"t","data":{"a":[1,2.50]}}}',
        '{"n":"insert","id":"\u00e9","m":{"type":"\u00e9","data":"\u00e9"},"more":{"n":1}}'.encode(),
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t"}}\r',
        b'{"v":1,"id":"1","n":"insert","b":null,"m":{"type":"t"}}',
        b'{"v":1,"id":"2","id":"1","n":"ping","n":"insert","m":{"type":"a","type":"t"}}',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t","data":{"type":"Buffer","data":[1]}}}',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"%b"}}' % (b"x" * 198),
        # all that follow are not for the hot path
        b'{"v":1,"id":1,"n":"insert","m":{"type":"t"}}',
        b'{"v":1,"n":"insert","m":{"type":"t"}}',
        b'{"v":2,"id":"1","n":"insert","m":{"type":"t"}}',
        b'{"v":1,"id":"1","n":"ping"}',
        b'{"v":1,"id":"1","n":"insert","m":[{"type":"t"}]}',
        b'{"v":1,"id":"1","n":"insert","m":undefined}',
        b'{"v":1,"b":4,"id":"1","n":"insert","m":{"type":"t"},"b":"AAAA"}',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t","auth":{"usr":"u","pwd":"p"}}}',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t","data":"\xff"}}',
        b'{"v":1,"id":"1",\n"n":"insert","m":{"type":"t"}}',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t"}}' * 2,
        b"x",
        b"",
    ]
)


def _job(fields: JobFields | bytes) -> NewJob | dict[str, Any]:
    """A job or what it is refused with."""
    try:
        if isinstance(fields, bytes):
            return parse_job(fields, DefaultsTable(), frozenset())
        return check_job(fields, DefaultsTable(), frozenset())
    except CallError as error:
        return error.to_wire()


@given(st.lists(LINES, max_size=4))
def test_what_the_hot_path_takes_is_what_the_other_makes_of_it(lines: list[bytes]) -> None:
    block = b"".join(line + b"\n" for line in lines)
    singles = calls.decode_singles(block)
    if singles is None:
        return
    requests = [wire.decode_request(line) for line in wire.lines(block)]
    assert [request.n for request in requests] == ["insert"] * len(singles)
    assert all(request.b is None for request in requests)
    assert [json.loads(bytes(request.id)) for request in requests] == [single.id for single in singles]
    assert [_job(single.m) for single in singles] == [_job(bytes(request.m)) for request in requests]
    parts = wire.string_ids([single.id for single in singles])
    for part, request in zip(parts, requests, strict=True):
        assert json.loads(b"{%b}" % part[:-1]) == json.loads(b"{%b}" % wire.reply_id(request.id)[:-1])


@pytest.mark.parametrize("count", [1, 500])
def test_the_hot_path_is_taken_for_what_it_is_there_for(count: int) -> None:
    line = b'{"v":1,"id":"1","n":"insert","m":{"type":"t","data":{"a":1}}}\n'
    singles = calls.decode_singles(line * count)
    assert singles is not None
    assert len(singles) == count


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t"}} {"v":1,"id":"2","n":"insert","m":{"type":"t"}}\n',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t"}}' * 2 + b"\n\n",
        b'{"v":1,"id":"1",\n"n":"insert","m":{"type":"t"}}\n',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t"}}\n\n',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"t","data":%b}}\n' % (b"[" * 100_000),
    ],
    ids=["empty", "two on a line", "two and none", "one on two", "blank", "deep"],
)
def test_the_hot_path_leaves_the_unusual_alone(block: bytes) -> None:
    assert calls.decode_singles(block) is None
