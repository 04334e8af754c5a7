"""A command's output, however its end falls in with the reading of it."""

from __future__ import annotations

import pytest

from kqs.core.outcome import OK
from kqs.runners import command
from kqs.runners.command import CommandRunner
from kqs.testing.runners import new_job


def test_what_was_said_just_before_the_end_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the end is noticed before anything was read."""
    monkeypatch.setattr(command._Pipes, "converse", lambda pipes: pipes._process.wait())
    runner = CommandRunner(
        ["sh", "-c", "head -c 50000 /dev/zero | tr '\\0' x; echo bad >&2; exit $KQS_ATTEMPT"]
    )
    attempted = runner.run(new_job(runner, attempt=1), b"")
    assert attempted.reason is not None and attempted.reason.traceback == "bad"
    attempted = runner.run(new_job(runner, attempt=0, wants_result=True), b"")
    assert attempted.result == b'"' + b"x" * 50_000 + b'"'


def test_a_descriptor_that_survives_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left behind, and cannot be killed before the pipes are read, writes for ever."""
    monkeypatch.setattr(command, "_LEFT_OVER", 1000)
    runner = CommandRunner(["sh", "-c", "yes & exit 0"])
    assert runner.run(new_job(runner), b"") == OK
