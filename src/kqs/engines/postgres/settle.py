"""How attempts end, as decisions about rows: pure but for the job they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import structs

from ...core.job import PRIO_NUMBER, SECOND
from ...core.lifecycle import State
from ...core.outcome import Reason, Settlement
from ...core.retry import RetryPolicy, attempts_left, retry_delay
from ..rules import POISON_DEATHS, error_of
from .rows import Row

_DEATHS: Final = ("worker_died", "suspect")
_DEFAULT_RETRY: Final = RetryPolicy()


class Decider:
    """What follows an attempt.

    Args:
        now: microseconds.
        random: draws from [0, 1), for jitter.
    """

    def __init__(self, now: int, random: Callable[[], float]) -> None:
        self.now, self._random = now, random

    def settle(self, job: Row, settlement: Settlement) -> str:
        """Apply a settlement; returns the event, as watchers are told."""
        outcome, now = settlement.outcome, self.now
        if outcome == "ok":
            return self.finish(job, "ok", "ok")
        if job.cancelled:
            return self.finish(job, "cancelled", outcome)
        if outcome != "fail" and self.is_over(job):
            return self.expired(job, outcome)
        prio = job.prio if settlement.prio is None else PRIO_NUMBER[settlement.prio]
        if outcome == "release":
            job.attempt -= 1
            return self._back(
                job, "released", now + int((settlement.delay or 0) * SECOND), outcome, prio=prio
            )
        error = error_of(settlement.reason, now, "fail" if outcome == "fail" else "again")
        if outcome == "fail":
            return self.bury(job, error, outcome)
        if error["kind"] in _DEATHS:
            return self._died(job, error, error["kind"] == "worker_died", outcome)
        if attempts_left(job.options.max_attempts, job.attempt):
            due = now + self._retry_delay(job, settlement.delay)
            return self._back(job, "again", due, outcome, error, prio)
        error["message"] = f"attempt {job.attempt} of {job.options.max_attempts} failed: {error['message']}"
        return self.bury(job, error, outcome)

    def rescue(self, job: Row, *, died: bool, alone: bool, reason: str) -> str:
        """Apply a rescue; returns the event."""
        if job.cancelled:
            return self.finish(job, "cancelled", "")
        if self.is_over(job):
            return self.expired(job, "")
        if died:
            error = error_of(Reason(reason, "worker_died" if alone else "suspect"), self.now, "again")
            return self._died(job, error, alone, "")
        return self._retried(job, self.now, error_of(Reason(reason, "ttr"), self.now, "again"), "")

    def never_was(self, job: Row) -> str:
        """A lease whose worker died with its server is as if it had never been."""
        if job.cancelled:
            return self.finish(job, "cancelled", "")
        job.attempt -= 1
        return self._back(job, "released", self.now, "")

    def is_over(self, job: Row) -> bool:
        """Whether a job's time to run is over."""
        return 0 < job.overdue <= self.now

    def _retry_delay(self, job: Row, delay: float | None) -> int:
        if delay is None:
            delay = retry_delay(job.options.retry or _DEFAULT_RETRY, job.attempt, self._random())
        return int(delay * SECOND)

    def _died(self, job: Row, error: dict[str, Any], alone: bool, said: str) -> str:
        job.deaths = job.deaths + 1 if alone else max(job.deaths, 1)
        if job.deaths >= POISON_DEATHS and alone:
            error["message"] = f"buried as poison after {job.deaths} worker deaths: {error['message']}"
            return self.bury(job, error, said)
        return self._retried(job, self.now + self._retry_delay(job, None), error, said)

    def _retried(self, job: Row, due: int, error: dict[str, Any], said: str) -> str:
        if attempts_left(job.options.max_attempts, job.attempt):
            return self._back(job, "rescued", due, said, error)
        return self.bury(job, error, said)

    def _back(
        self,
        job: Row,
        event: str,
        due: int,
        said: str,
        error: dict[str, Any] | None = None,
        prio: int | None = None,
    ) -> str:
        """A job waits again."""
        self._leave(job, said)
        job.state = State.DELAYED if due > self.now else State.READY
        job.due = due
        job.error = error or job.error
        job.prio = job.prio if prio is None else prio
        return event

    def bury(self, job: Row, error: dict[str, Any], said: str = "") -> str:
        """A job is parked."""
        self._leave(job, said)
        job.state, job.due, job.error = State.BURIED, self.now, error
        return "buried"

    def expired(self, job: Row, said: str = "") -> str:
        """A job's time to run is over: it is buried."""
        last = f"; its last error: {job.error['message']}" if job.error is not None else ""
        message = f"expired {job.options.expires / SECOND:g} s after it was inserted{last}"
        job.attempt -= said == "release"
        return self.bury(job, error_of(Reason(message, "expired"), self.now, "expired"), said)

    def not_unique(self, job: Row, other: str) -> str:
        """A job that would wait beside another one with its unique key is buried."""
        message = f"job {other} has the same unique key and stands, so this one can't wait again"
        last = job.error
        if last is not None:
            message += f"; its last error: {last['message']}"
        traceback = None if last is None else last.get("traceback")
        return self.bury(
            job, error_of(Reason(message, "unique", traceback), self.now, "unique"), job.settled_as
        )

    def finish(self, job: Row, outcome: str, said: str) -> str:
        """A job ends."""
        self._leave(job, said)
        job.state, job.finished, job.outcome = State.DONE, self.now, outcome
        return "done" if outcome == "ok" else outcome

    @staticmethod
    def _leave(job: Row, said: str) -> None:
        if job.nonce:
            job.settled, job.settled_as = job.nonce, said
        job.nonce = job.expires = 0
        job.receipt = job.holder = ""
        job.local = job.cancelled = False
        job.progress = None


def copy_of(job: Row) -> Row:
    """A job as it was."""
    return structs.replace(job)
