"""Jobs as they are inserted: every field, its limits, and the error that names it."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core.job import (
    NEEDS,
    NO_OPTIONS,
    PRIO_NUMBER,
    PRIOS,
    DefaultsTable,
    JobDefaults,
    JobOptions,
    NewJob,
    parse_job,
)
from kqs.core.retry import RetryPolicy
from kqs.errors import BadRequest, CallError, TooLarge, UnknownField, Unsupported

PLAIN = DefaultsTable()
EVERYTHING = frozenset(NEEDS.values())


def obj(*members: str) -> str:
    """A job's JSON."""
    return "{" + ",".join(('"type":"t"', *members)) + "}"


def m(field: str, value: str) -> str:
    """A member of it, ``value`` being JSON or not."""
    return f'"{field}":{value}'


def parse(
    text: str | bytes, table: DefaultsTable = PLAIN, *, can: frozenset[str] = EVERYTHING, **more: Any
) -> NewJob:
    return parse_job(text.encode() if isinstance(text, str) else text, table, can, **more)


def refused(text: str | bytes, **more: Any) -> CallError:
    """The error a job is refused with."""
    with pytest.raises(CallError) as caught:
        parse(text, **more)
    return caught.value


# -- what a job comes to -------------------------------------------------------------------------


def test_the_defaults() -> None:
    job = parse('{"type":"t"}')
    assert job == NewJob("t", b"null", False, PRIO_NUMBER["normal"], 0, 30_000, NO_OPTIONS)


FIELDS: list[tuple[str, str, Any]] = [
    ('"data":{"a":1}', "data", b'{"a":1}'),
    ('"data64":"AAE="', "data", b"\x00\x01"),
    ('"prio":"urgent"', "prio", 0),
    ('"prio":"high"', "prio", 1),
    ('"prio":"normal"', "prio", 2),
    ('"prio":"low"', "prio", 3),
    ('"prio":"bulk"', "prio", 4),
    ('"delay":0', "delay", 0),
    ('"delay":-0.0', "delay", 0),
    ('"delay":1.5', "delay", 1_500_000),
    ('"delay":0.000001', "delay", 1),
    ('"delay":4.35', "delay", 4_350_000),
    ('"delay":3153600000', "delay", 3_153_600_000_000_000),
    ('"ttr":60', "ttr", 60_000),
    ('"ttr":1.001', "ttr", 1001),
    ('"ttr":2.3', "ttr", 2300),
    ('"ttr":0.0001', "ttr", 1),
    ('"ttr":2592000', "ttr", 2_592_000_000),
    ('"max_attempts":0', "options", JobOptions(0, RetryPolicy())),
    ('"max_attempts":3', "options", JobOptions(3, RetryPolicy())),
    ('"max_attempts":1000000', "options", JobOptions(1_000_000, RetryPolicy())),
    ('"retry":{}', "options", JobOptions(0, RetryPolicy())),
    (
        '"retry":{"backoff":"linear","base":2,"cap":9,"jitter":0}',
        "options",
        JobOptions(0, RetryPolicy("linear", 2, 9, 0)),
    ),
    ('"retry":{"backoff":"fixed","jitter":1}', "options", JobOptions(0, RetryPolicy("fixed", jitter=1))),
]


@pytest.mark.parametrize(("member", "field", "value"), FIELDS)
def test_a_field_alone_changes_only_itself(member: str, field: str, value: Any) -> None:
    job, plain = parse(obj(member)), parse('{"type":"t"}')
    assert getattr(job, field) == value
    assert job.binary is ("data64" in member)
    for other in NewJob.__struct_fields__:
        if other not in (field, "binary"):
            assert getattr(job, other) == getattr(plain, other)


def test_all_fields_together_in_any_order() -> None:
    members = [
        '"type":"t"',
        '"data":[1]',
        '"prio":"low"',
        '"delay":2',
        '"ttr":3',
        '"max_attempts":4',
        '"retry":{"cap":5}',
    ]
    expected = NewJob("t", b"[1]", False, 3, 2_000_000, 3000, JobOptions(4, RetryPolicy(cap=5)))
    assert parse("{" + ",".join(members) + "}") == expected
    assert parse("{ " + " , ".join(reversed(members)) + " }\r\n") == expected


def test_duplicate_keys_the_last_wins() -> None:
    job = parse('{"type":"a","data":1,"delay":5,"type":"b","data":[2],"delay":0}')
    assert (job.type, job.data, job.delay) == ("b", b"[2]", 0)


@given(st.floats(0, 1e6))
def test_a_delay_is_never_early(delay: float) -> None:
    micros = parse(obj(m("delay", repr(delay)))).delay
    assert micros >= Fraction(delay) * 1_000_000 - Fraction(1, 1000)
    assert micros - delay * 1_000_000 < 1.001


@given(st.integers(1, 2_592_000_000))
def test_a_ttr_in_whole_milliseconds_is_kept(millis: int) -> None:
    assert parse(obj(m("ttr", repr(millis / 1000)))).ttr == millis


# -- type ----------------------------------------------------------------------------------------

EURO, FACE = "\u20ac", "\U0001f600"


@pytest.mark.parametrize(
    "type_",
    [
        "t",
        " ",
        "\0",
        "a" * 197,
        "\u00e9" * 98,
        "\u00e9" * 98 + "a",
        EURO * 65 + "ab",
        FACE * 49,
        FACE * 49 + "a",
    ],
)
def test_type_of_up_to_197_bytes(type_: str) -> None:
    assert parse(json.dumps({"type": type_})).type == type_
    assert parse(json.dumps({"type": type_}, ensure_ascii=False)).type == type_


@pytest.mark.parametrize(
    "type_",
    ["a" * 198, "\u00e9" * 99, EURO * 65 + "abc", EURO * 66, FACE * 49 + "ab", FACE * 50, "x" * 100_000],
)
def test_type_over_197_bytes(type_: str) -> None:
    error = refused(json.dumps({"type": type_}), index=4)
    assert isinstance(error, TooLarge)
    assert (error.field, error.index, error.limit) == ("type", 4, 197)


# -- refusals ------------------------------------------------------------------------------------

BAD: list[tuple[str, str | None]] = [
    # not a job at all
    ("null", None),
    ("1", None),
    ('"t"', None),
    ("[]", None),
    ("", None),
    ("{", None),
    ('{"type":"t"', None),
    ('{"type":"t"} x', None),
    ('{"type":"t",}', None),
    ("{type:1}", None),
    # type
    ("{}", "type"),
    ('{"data":1}', "type"),
    ('{"type":""}', "type"),
    ('{"type":null}', "type"),
    ('{"type":1}', "type"),
    ('{"type":["t"]}', "type"),
    # numbers
    *(
        (obj(m(field, value)), field)
        for field in ("delay", "ttr", "expires", "result_ttl")
        for value in (
            "-1",
            "-0.000001",
            "1e999",
            "-1e999",
            "1e300",
            "9" * 400,
            "true",
            "false",
            "null",
            '"1"',
            "[1]",
            "{}",
        )
    ),
    *((obj(m(field, value)), field) for field in ("ttr", "expires") for value in ("0", "-0.0")),
    ('{"type":"t","ttr":2592000.001}', "ttr"),
    ('{"type":"t","delay":3153600000.001}', "delay"),
    *(
        (obj(m("max_attempts", value)), "max_attempts")
        for value in ("-1", "1000001", "1.0", "1.5", "1e2", "1e999", "9" * 30, "true", "null", '"3"', "[]")
    ),
    # words
    *(
        (obj(m("prio", value)), "prio")
        for value in ('"Normal"', '""', '"urgent "', "0", "null", "true", '["low"]')
    ),
    *(
        (obj(m(field, value)), field)
        for field in ("key", "unique", "fair")
        for value in ('""', '"%s"' % ("k" * 256), "1", "null", "true", "[]")
    ),
    # retry
    *((obj(m("retry", value)), "retry") for value in ("null", "true", "[]", '"linear"', "5")),
    *(
        (obj(m("retry", "{" + m(field, value) + "}")), f"retry.{field}")
        for field, value in (
            ("backoff", '"Linear"'),
            ("backoff", "null"),
            ("base", "-1"),
            ("base", "1e999"),
            ("cap", "true"),
            ("cap", "3153600001"),
            ("jitter", "1.01"),
            ("jitter", "-0.1"),
            ("jitter", '"0"'),
        )
    ),
    # data64
    *(
        (obj(m("data64", value)), "data64")
        for value in (
            "null",
            "1",
            '["AA=="]',
            '"A"',
            '"AAE"',
            '"AAE=\\n"',
            '"AA-_"',
            '"AA E="',
            '"\u00e9==="',
        )
    ),
]


@pytest.mark.parametrize(("text", "field"), BAD, ids=lambda case: str(case)[:60])
def test_bad_values_are_refused_by_name(text: str, field: str | None) -> None:
    error = refused(text, index=7)
    assert type(error) is BadRequest
    assert (error.field, error.index, error.code) == (field, 7, "bad_request")
    assert error.message.startswith((field or "job", f"job needs {field!r}"))
    assert "jSON" not in error.message


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "nan", "1.", ".5", "+1", "01"])
@pytest.mark.parametrize("field", ["delay", "ttr", "max_attempts", "data"])
def test_numbers_json_does_not_have(field: str, value: str) -> None:
    error = refused(obj(m(field, value)))
    assert type(error) is BadRequest
    assert "malformed" in error.message


UNKNOWN: list[tuple[str, str, str]] = [
    ('"typ":"b"', "typ", "did you mean 'type'?"),
    ('"dealy":1', "dealy", "did you mean 'delay'?"),
    ('"priority":"low"', "priority", "did you mean 'prio'?"),
    ('"Data":1', "Data", "did you mean 'data'?"),
    ('"retries":3', "retries", "did you mean 'retry'?"),
    ('"zzz":1', "zzz", "known are type, data, data64, prio"),
    ('"":1', "", "known are type"),
    ('"a`b":1', "a`b", "known are type"),
    ('"\u00e9":1', "\u00e9", "known are type"),
    (m("fifo", "[" * 100_000 + "]" * 100_000), "fifo", "known are type"),
    ('"retry":{"backof":"fixed"}', "retry.backof", "did you mean 'backoff'?"),
    ('"retry":{"zzz":1}', "retry.zzz", "known are backoff, base, cap, jitter"),
]


@pytest.mark.parametrize(("member", "field", "hint"), UNKNOWN, ids=[case[1] for case in UNKNOWN])
def test_unknown_fields_are_refused_with_a_suggestion(member: str, field: str, hint: str) -> None:
    error = refused(obj(member), index=0)
    assert type(error) is UnknownField
    assert (error.code, error.field, error.index) == ("unknown_field", field, 0)
    assert hint in error.message


@pytest.mark.parametrize("name", NEEDS)
def test_a_field_the_engine_cannot_keep_is_unsupported(name: str) -> None:
    value = "5" if name in ("expires", "result_ttl") else '"k"'
    text = obj(m(name, value))
    error = refused(text, can=EVERYTHING - {NEEDS[name]}, index=2)
    assert isinstance(error, Unsupported)
    assert (error.field, error.index) == (name, 2)
    assert NEEDS[name] in error.message
    assert parse(text, can=frozenset({NEEDS[name]})).type == "t"
    assert parse('{"type":"t"}', can=frozenset()).type == "t"


def test_a_key_goes_with_the_job() -> None:
    job = parse(obj(m("key", '"order-7"')), can=frozenset({NEEDS["key"]}))
    assert job.options == JobOptions(0, RetryPolicy(), key="order-7")
    table = DefaultsTable({"t": JobDefaults(max_attempts=4, retry=RetryPolicy("fixed"))})
    job = parse(obj(m("key", '"%s"' % ("k" * 255))), table)
    assert job.options == JobOptions(4, RetryPolicy("fixed"), key="k" * 255)


# -- settings of types ---------------------------------------------------------------------------


def test_settings_come_from_the_job_then_its_type_then_the_defaults() -> None:
    own = JobDefaults("high", 5.5, 2, RetryPolicy("fixed"))
    rest = JobDefaults("bulk", 7, 0, RetryPolicy(cap=1))
    table = DefaultsTable({"own": own}, rest)
    assert table.get("own").defaults is own
    assert table.get("other").defaults is rest
    job = parse('{"type":"own"}', table)
    assert (job.prio, job.ttr, job.options) == (1, 5500, JobOptions(2, RetryPolicy("fixed")))
    job = parse('{"type":"other"}', table)
    assert (job.prio, job.ttr, job.options) == (4, 7000, JobOptions(0, RetryPolicy(cap=1)))
    text = '{"type":"own","prio":"normal","ttr":1,"max_attempts":0,"retry":{"backoff":"linear"}}'
    job = parse(text, table)
    assert (job.prio, job.ttr, job.options) == (2, 1000, JobOptions(0, RetryPolicy("linear")))
    job = parse('{"type":"own","max_attempts":9}', table)
    assert job.options == JobOptions(9, RetryPolicy("fixed"))


def test_the_table_is_a_copy() -> None:
    given_table: dict[str, JobDefaults] = {}
    table = DefaultsTable(given_table)
    given_table["t"] = JobDefaults("low")
    assert table.get("t").defaults == JobDefaults()


def test_priorities_are_numbered_from_urgent() -> None:
    assert [PRIO_NUMBER[name] for name in PRIOS] == [0, 1, 2, 3, 4]
