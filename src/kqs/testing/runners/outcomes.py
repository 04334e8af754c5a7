"""Whatever a handler does, the attempt ends with a value that says it."""

from __future__ import annotations

from kqs.core.outcome import OK

from .harness import Attempt, Cases, RunnerHarness


class OutcomeCases(Cases):
    def test_success_is_ok_and_nothing_else(self, attempt: Attempt) -> None:
        assert attempt("quiet") == OK

    def test_again_is_said_with_its_delay(self, harness: RunnerHarness, attempt: Attempt) -> None:
        attempted = attempt("again")
        assert (attempted.outcome, attempted.delay) == ("again", harness.delay)
        assert attempted.reason is not None and attempted.reason.message

    def test_fail_is_said_with_its_reason(self, attempt: Attempt) -> None:
        attempted = attempt("fail")
        assert (attempted.outcome, attempted.delay, attempted.result) == ("fail", None, None)
        assert attempted.reason is not None
        assert "no such picture" in f"{attempted.reason.message} {attempted.reason.traceback}"

    def test_an_error_is_again_when_the_retry_policy_says(self, attempt: Attempt) -> None:
        attempted = attempt("crash")
        assert (attempted.outcome, attempted.delay, attempted.result) == ("again", None, None)
        assert attempted.reason is not None and attempted.reason.message and attempted.reason.kind
        assert "\n" not in attempted.reason.message
        assert "out of paper" in (attempted.reason.traceback or "")

    def test_a_wanted_result_changes_no_other_outcome(self, attempt: Attempt) -> None:
        for behaviour in ("again", "fail", "crash"):
            assert attempt(behaviour, result=True) == attempt(behaviour)

    def test_one_attempt_leaves_nothing_to_the_next(self, harness: RunnerHarness, attempt: Attempt) -> None:
        """The same worker runs them one after the other."""
        for behaviour in ("crash", "flood", "unfit", "fail", "again"):
            attempt(behaviour)
            assert attempt("quiet") == OK
        assert attempt.value("echo", b'{"a":1}') == {"a": 1}
