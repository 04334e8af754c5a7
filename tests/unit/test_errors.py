"""The error tree: stable codes, and every error the same on both sides of the wire."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from kqs import errors
from kqs.core import outcome, wire
from kqs.errors import (
    CallError,
    CallTimeout,
    ConfigError,
    ConnectionFailed,
    DamagedJournal,
    DataDirError,
    Internal,
    KQSError,
    from_wire,
)

#: The codes clients match on; one may be added, none may change.
CODES = {
    "BadRequest": "bad_request",
    "UnknownField": "unknown_field",
    "TooLarge": "too_large",
    "Busy": "busy",
    "DiskFull": "disk_full",
    "Unauthorized": "unauthorized",
    "Forbidden": "forbidden",
    "NotFound": "not_found",
    "StaleReceipt": "stale_receipt",
    "Unsupported": "unsupported",
    "Conflict": "conflict",
    "ShuttingDown": "shutting_down",
    "Internal": "internal",
}
CALL_ERRORS: list[type[CallError]] = [getattr(errors, name) for name in CODES]
ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, KQSError)]


def test_codes_are_stable() -> None:
    there = {cls.__name__: cls.code for cls in ALL if issubclass(cls, CallError) and cls is not CallError}
    assert there == CODES


@pytest.mark.parametrize("cls", CALL_ERRORS, ids=CODES)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"field": "prio"},
        {"index": 0},
        {"limit": 0},
        {"field": "", "index": 9999, "limit": 197},
        {"limit": 1.5},
    ],
)
def test_round_trip(cls: type[CallError], more: dict[str, Any]) -> None:
    error = cls('a "message" \u00e9\nof two lines', **more)
    assert error.to_wire() == {"message": error.message, "code": CODES[cls.__name__], **more}
    again = from_wire(msgspec.json.decode(msgspec.json.encode(error.to_wire())))
    assert type(again) is cls
    assert str(again) == again.message == error.message
    assert (again.field, again.index, again.limit) == (error.field, error.index, error.limit)


@pytest.mark.parametrize("cls", CALL_ERRORS, ids=CODES)
def test_every_class_is_caught_as_what_the_tree_says(cls: type[CallError]) -> None:
    with pytest.raises(CallError):
        raise cls("x")
    assert cls.__mro__[1] is (errors.BadRequest if cls is errors.UnknownField else CallError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """A reader learns the tree there; it must not drift."""
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    line_of: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"([| ]*\+-- |(?=KQSError$))(\w+)", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        while line_of and line_of[-1][0] >= depth:
            line_of.pop()
        if line_of:
            drawn[name] = line_of[-1][1]
        line_of.append((depth, name))
    assert drawn == {cls.__name__: cls.__mro__[1].__name__ for cls in ALL if cls is not KQSError}


def test_errors_elsewhere_stand_in_the_tree() -> None:
    assert issubclass(wire.BadLine, errors.BadRequest)
    assert issubclass(outcome.Again, KQSError)
    assert issubclass(outcome.Fail, KQSError)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("text", "text"),
        (None, "None"),
        (5, "5"),
        (["a"], "['a']"),
        ({}, ""),
        ({"message": "m", "code": "of_tomorrow"}, "m"),
        ({"message": "m", "code": 7}, "m"),
        ({"message": "m", "code": None}, "m"),
        ({"message": "m", "code": ["bad_request"]}, "m"),
        ({"message": 5}, "5"),
        ({"code": "ENOENT", "errno": -2, "syscall": "open"}, ""),
    ],
)
def test_errors_of_other_servers_are_internal(given: Any, message: str) -> None:
    error = from_wire(given)
    assert type(error) is Internal
    assert error.message == message


def test_a_timeout_may_have_been_sent() -> None:
    assert issubclass(CallTimeout, ConnectionFailed)
    assert CallTimeout("x").sent
    assert not ConnectionFailed("x").sent
    assert ConnectionFailed("x", sent=True).sent


@pytest.mark.parametrize(("sequence", "says"), [(7, "from sequence 7"), (0, "from sequence 0"), (None, "")])
def test_damage_names_its_place(sequence: int | None, says: str) -> None:
    error = DamagedJournal("0000000003.seg", 4096, sequence, "the frame's checksum is wrong")
    assert isinstance(error, DataDirError)
    assert (error.segment, error.offset, error.sequence) == ("0000000003.seg", 4096, sequence)
    assert "0000000003.seg at byte 4096" in str(error)
    assert says in str(error)
    assert "checksum is wrong" in str(error)
    if sequence is None:
        assert "sequence" not in str(error)


def test_a_setting_is_no_call_error() -> None:
    assert not issubclass(ConfigError, CallError)
