"""``@app.job``: a function becomes a job type and stays a function; data becomes arguments or an error."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import math
import uuid
from typing import Any

import pytest

from kqs import App, Fail, Job
from kqs.core.job import JobSettings
from kqs.core.retry import RetryPolicy
from kqs.errors import ConfigError

from .handlers import EVERYTHING, THEN, Colour, Point, Size, a_job, everything

EURO = "\u20ac"


# -- declaring -----------------------------------------------------------------------------------


def test_it_stays_a_function(app: App) -> None:
    @app.job("math.add")
    def add(a: int, b: int = 2) -> int:
        """Adds."""
        return a + b

    assert add(1) == 3
    assert add(1, b=5) == 6
    assert (add.__name__, add.__doc__) == ("add", "Adds.")
    assert list(inspect.signature(add).parameters) == ["a", "b"]
    assert (add.type, repr(add)) == ("math.add", "<JobFunction 'math.add'>")
    assert app.jobs == {"math.add": add}


def test_ways_to_declare(app: App) -> None:
    @app.job
    def plain() -> None: ...

    @app.job()
    def called() -> None: ...

    @app.job(ttr=5, prio="high")
    def settings_only() -> None: ...

    @app.job("named", max_attempts=3, retry={"backoff": "fixed", "base": 2})
    def with_everything() -> None: ...

    assert list(app.jobs) == ["plain", "called", "settings_only", "named"]
    assert plain.settings == called.settings == JobSettings()
    assert settings_only.settings == JobSettings(prio="high", ttr=5.0)
    assert with_everything.settings == JobSettings(max_attempts=3, retry=RetryPolicy("fixed", 2))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prio": "top"}, "urgent, high, normal, low, bulk"),
        ({"ttr": 0}, "ttr"),
        ({"ttr": -1}, "ttr"),
        ({"ttr": True}, "ttr"),
        ({"ttr": "30"}, "ttr"),
        ({"ttr": math.inf}, "ttr"),
        ({"ttr": math.nan}, "ttr"),
        ({"ttr": 2_592_001}, "ttr"),
        ({"max_attempts": -1}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"max_attempts": 1_000_001}, "max_attempts"),
        ({"retry": {"jiter": 1}}, "jiter"),
        ({"retry": {"jitter": 2}}, "retry.jitter"),
        ({"retry": RetryPolicy(jitter=2)}, "retry.jitter"),
        ({"retry": "fixed"}, "retry"),
        ({"expires": -1}, "expires"),
        ({"max_runtime": "long"}, "max_runtime"),
    ],
)
def test_wrong_settings_are_told_when_declared(app: App, settings: Any, says: str) -> None:
    with pytest.raises(ConfigError, match="job 't'") as caught:
        app.job("t", **settings)
    assert says in str(caught.value)
    assert not app.jobs


@pytest.mark.parametrize("type_", ["", "x" * 198, EURO * 66])
def test_a_type_of_the_wrong_length(app: App, type_: str) -> None:
    with pytest.raises(ConfigError, match="1 to 197 bytes"):
        app.job(type_)(lambda: None)
    assert not app.jobs


def test_a_type_of_197_bytes(app: App) -> None:
    type_ = EURO * 65 + "ab"
    assert app.job(type_)(lambda: None).type == type_


def test_a_type_is_declared_once(app: App) -> None:
    app.job("t")(lambda: None)
    with pytest.raises(ConfigError, match="declared twice"):
        app.job("t")(lambda: None)


def test_parameters_that_cannot_be_given_by_name_are_told_when_declared(app: App) -> None:
    def positional(a: int, /) -> None: ...

    def many(*numbers: int) -> None: ...

    for function in (positional, many):
        with pytest.raises(ConfigError, match=r"job 't': parameter '(a|numbers)' can't be given by name"):
            app.job("t")(function)
    assert not app.jobs


def test_an_annotation_that_does_not_exist(app: App) -> None:
    @app.job("t")
    def handler(a: NoSuchName) -> None:  # type: ignore[name-defined]  # noqa: F821
        ...

    with pytest.raises(ConfigError, match=r"job 't': .*NoSuchName"):
        handler.arguments({"a": 1})


# -- data to arguments ---------------------------------------------------------------------------


def test_arguments_are_converted(app: App) -> None:
    function = app.job("t")(everything)
    assert function.run(a_job(EVERYTHING)) == {
        "number": 1,
        "share": 2.0,
        "text": "\u00e9",
        "at": THEN,
        "id": uuid.UUID(int=7),
        "colour": Colour.RED,
        "point": Point(1, 0),
        "size": Size(2.5),
        "names": ["a"],
        "table": {5: True},
        "pair": (1, "b"),
        "small": 9,
        "maybe": None,
        "anything": "default",
        "raw": b"",
        "untyped": "u",
    }
    more = {"maybe": 5, "anything": [1], "raw": "AP8=", "untyped": {}}
    made = function.run(a_job({**EVERYTHING, **more}))
    assert {name: made[name] for name in more} == {**more, "raw": b"\x00\xff"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"number": "1"}, "number"),
        ({"number": True}, "number"),
        ({"number": 1.5}, "number"),
        ({"number": None}, "number"),
        ({"share": "2"}, "share"),
        ({"text": 1}, "text"),
        ({"at": "yesterday"}, "at"),
        ({"id": "7"}, "id"),
        ({"colour": "blue"}, "colour"),
        ({"point": {"y": 1}}, "point"),
        ({"point": {"x": "1"}}, "point.x"),
        ({"size": {}}, "size"),
        ({"names": [1]}, "names"),
        ({"names": "a"}, "names"),
        ({"table": {"x": True}}, "table"),
        ({"pair": [1]}, "pair"),
        ({"small": 10}, "small"),
        ({"raw": "not base64"}, "raw"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_mismatch_fails_the_job_for_good_and_names_the_field(
    app: App, change: dict[str, Any], field: str
) -> None:
    function = app.job("t")(everything)
    with pytest.raises(Fail, match="t: ") as caught:
        function.run(a_job({**EVERYTHING, **change}))
    assert caught.value.reason.startswith("t: ")
    assert field in caught.value.reason
    with pytest.raises(TypeError) as told:
        function.arguments({**EVERYTHING, **change})
    assert str(told.value) == caught.value.reason


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_missing_argument_is_named(app: App, name: str) -> None:
    data = {key: value for key, value in EVERYTHING.items() if key != name}
    with pytest.raises(Fail, match=f"missing required field `{name}`"):
        app.job("t")(everything).run(a_job(data))


@pytest.mark.parametrize("data", [1, "text", [1], [], True, 0, "", False])
def test_data_that_is_no_object(app: App, data: Any) -> None:
    function = app.job("t")(lambda: None)
    with pytest.raises(Fail, match="data must be an object"):
        function.run(a_job(data))


@pytest.mark.parametrize("data", [None, {}])
def test_no_data_is_no_arguments(app: App, data: Any) -> None:
    assert app.job("t")(lambda: "ran").run(a_job(data)) == "ran"


def test_a_default_is_the_object_python_would_give(app: App) -> None:
    default: list[int] = []

    @app.job("t")
    def handler(numbers: list[int] = default) -> list[int]:
        return numbers

    assert handler.run(a_job({})) is default
    assert handler.run(a_job({"numbers": [1]})) == [1]


def test_an_error_of_the_function_is_its_own(app: App) -> None:
    """Only a payload that does not fit is for good: a TypeError inside is as any other exception."""

    @app.job("t")
    def handler() -> None:
        raise TypeError("inside")

    with pytest.raises(TypeError, match="inside"):
        handler.run(a_job({}))


async def test_an_async_function_gives_its_coroutine(app: App) -> None:
    @app.job("t")
    async def handler(a: int) -> int:
        await asyncio.sleep(0)
        return a + 1

    assert await handler.run(a_job({"a": 1})) == 2
    assert await handler(5) == 6
    with pytest.raises(Fail):
        handler.run(a_job({"a": "x"}))


# -- the job itself, bytes, and the rest -----------------------------------------------------------


def test_a_parameter_for_the_job(app: App) -> None:
    @app.job("t")
    def handler(me: Job, a: int = 1) -> tuple[str, int]:
        return me.id, a

    job = a_job({"a": 5})
    assert handler.run(job) == ("7", 5)
    assert job.data == {"a": 5}
    with pytest.raises(Fail, match="me"):
        handler.run(a_job({"me": "someone else"}))


@pytest.mark.parametrize("payload", [b"", b"\x00\xff", b'{"a":1}'])
def test_a_parameter_for_bytes(app: App, payload: bytes) -> None:
    @app.job("t")
    def handler(blob: bytes) -> bytes:
        return blob

    @app.job("u")
    def with_job(job: Job, blob: bytes) -> bytes:
        return blob

    assert handler.run(a_job(payload)) == payload
    assert with_job.run(a_job(payload)) == payload
    assert handler.run(a_job({"blob": "AP8="})) == b"\x00\xff"


def test_bytes_for_a_function_that_takes_none(app: App) -> None:
    def text(blob: str) -> None: ...

    def two(blob: bytes, name: str = "") -> None: ...

    def none() -> None: ...

    def rest(**rest: Any) -> None: ...

    for function in (text, two, none, rest):
        with pytest.raises(Fail, match="the payload is bytes"):
            app.job(function.__name__)(function).run(a_job(b"x"))


def test_the_rest_of_the_members(app: App) -> None:
    @app.job("t")
    def handler(job: Job, n: int, at: dt.datetime | None = None, **rest: Any) -> dict[str, Any]:
        return {"n": n, "at": at, **rest}

    data = {"n": 1, "at": "2024-01-02T00:00:00Z", "a b": [1], "class": None}
    job = a_job(dict(data))
    assert handler.run(job) == {"n": 1, "at": THEN, "a b": [1], "class": None}
    assert job.data == data
    assert handler.run(a_job({"n": 2})) == {"n": 2, "at": None}
    bad_data: list[tuple[dict[str, Any], str]] = [
        ({"n": "1"}, "n"),
        ({}, "n"),
        ({"n": 1, "at": "x"}, "at"),
        ({"n": 1, "job": 2}, "job"),
    ]
    for bad, field in bad_data:
        with pytest.raises(Fail, match=field):
            handler.run(a_job(bad))


def test_the_rest_may_be_annotated(app: App) -> None:
    @app.job("t")
    def handler(**sizes: float) -> dict[str, float]:
        return sizes

    assert handler.run(a_job({"a": 1, "b": 2.5})) == {"a": 1.0, "b": 2.5}
    with pytest.raises(Fail, match="b"):
        handler.run(a_job({"a": 1, "b": "2"}))
