"""An attempt that is ended from outside, at its ttr or when its job is cancelled, leaves nothing behind."""

from __future__ import annotations

import pytest

from kqs.core.outcome import OK

from .harness import Attempt, Cases, RunnerHarness, runs_async


class EndingCases(Cases):
    def test_ended_it_leaves_nothing_behind(self, harness: RunnerHarness, attempt: Attempt) -> None:
        harness.begin().end()
        harness.wait_gone()
        assert attempt("quiet") == OK

    def test_others_run_meanwhile(self, harness: RunnerHarness, attempt: Attempt) -> None:
        if not runs_async(harness.runner("quiet")):
            pytest.skip("this runner runs one attempt at a time")
        running = harness.begin()
        assert attempt("quiet") == OK
        assert attempt("crash").outcome == "again"
        running.end()
        harness.wait_gone()
