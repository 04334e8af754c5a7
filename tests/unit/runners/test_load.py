"""From a worker's settings to its runners: HTTP handlers and commands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kqs.core.outcome import OK
from kqs.errors import ConfigError
from kqs.runners.command import CommandRunner
from kqs.runners.http import HttpRunner
from kqs.runners.load import load
from kqs.runners.spec import HandlerSpec, WorkerSpec
from kqs.testing.runners import new_job
from tests.target import Exchange, Target


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    target.answers["/"] = Exchange.reply
    yield target
    target.close()


def spec(handler: HandlerSpec, **settings: dict[str, str]) -> WorkerSpec:
    return WorkerSpec("w", "default", {"t": handler}, **settings)  # type: ignore[arg-type]


def test_an_http_handler_has_its_settings(target: Target) -> None:
    handler = HandlerSpec(http=target.url("/"), secret="s", timeout=30.0, allow=("127.0.0.1",))
    runner = loaded(spec(handler))
    assert isinstance(runner, HttpRunner)

    async def call() -> None:
        assert await runner.arun(new_job(runner), b"null") == OK
        await runner.aclose()

    asyncio.run(call())
    assert target.seen[0].headers["kqs-signature"].startswith("v1=")


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "ftp://example.com/", "https://ann:pw@example.com/"])
def test_a_url_that_is_refused_names_its_handler(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^handlers\.t\.http: "):
        loaded(spec(HandlerSpec(http=url)))


def test_a_command_has_the_environment_of_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "not inherited")
    script = 'test "$POOL" = media && test "$HOME" = /pool && test -z "$OTHER" && test "$KQS_TYPE" = suite'
    handler = HandlerSpec(command=["sh", "-c", script])
    runner = loaded(spec(handler, env={"POOL": "media", "HOME": "/pool", "KQS_TYPE": "mine"}))
    assert isinstance(runner, CommandRunner)
    assert runner.run(new_job(runner), b"") == OK


def loaded(spec: WorkerSpec) -> object:
    """Its one runner."""
    runners, errors = load(spec)
    for error in errors:
        raise error
    return runners["t"]
