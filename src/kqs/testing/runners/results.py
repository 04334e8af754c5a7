"""What a handler returns is kept when the job wants it: JSON on one line, whole, or the attempt failed."""

from __future__ import annotations

import msgspec
import pytest

from kqs.core.outcome import OK

from .harness import WORDS, Attempt, Behaviour, Cases, RunnerHarness


class ResultCases(Cases):
    @pytest.mark.parametrize("behaviour", ["quiet", "echo", "words", "flood", "unfit"])
    def test_none_is_made_when_none_is_wanted(self, attempt: Attempt, behaviour: Behaviour) -> None:
        assert attempt(behaviour) == OK

    def test_nothing_said_is_null(self, attempt: Attempt) -> None:
        assert attempt.value("quiet") is None

    def test_a_text_is_a_text(self, attempt: Attempt) -> None:
        assert attempt.value("words") == WORDS

    def test_a_large_one_comes_back_whole(self, harness: RunnerHarness, attempt: Attempt) -> None:
        value = "x" * (harness.max_result - 100)
        assert attempt.value("echo", msgspec.json.encode(value)) == value

    @pytest.mark.parametrize("behaviour", ["flood", "unfit"])
    def test_what_cannot_be_kept_fails(self, attempt: Attempt, behaviour: Behaviour) -> None:
        attempted = attempt(behaviour, result=True)
        assert (attempted.outcome, attempted.result) == ("fail", None)
        assert attempted.reason is not None
        assert (attempted.reason.kind, "result" in attempted.reason.message) == ("result", True)
