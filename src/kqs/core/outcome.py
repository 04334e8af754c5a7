"""What an attempt came to, as a value, and the exceptions a handler says it with."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ..errors import KQSError
from .retry import Seconds

OutcomeName = Literal["ok", "again", "fail", "release"]


class Again(KQSError):
    """Raised by a handler: run this job again.

    Args:
        reason: kept on the job as its last error.
        delay: seconds to wait, or None for the job's retry policy.
    """

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = delay


class Fail(KQSError):
    """Raised by a handler: this job can never succeed; bury it.

    Args:
        reason: kept on the job as its last error.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Reason(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Why an attempt did not succeed; shown as the job's ``last_error``.

    Attributes:
        message: one line.
        kind: the exception's class, or exit, signal, http, network, result, ttr, worker_died (alone) or
            suspect (with others).
        traceback: the handler's own frames, or None.
    """

    message: str
    kind: str | None = None
    traceback: str | None = None


class Attempted(Struct, frozen=True):
    """What one attempt came to: a runner's answer, mapped to a settlement in one place.

    Attributes:
        outcome: ok, again or fail.
        delay: seconds until it may run again, or None for the job's retry policy.
        reason: why not ok.
        result: JSON text of what the handler returned, or None; only made when the job wants one.
    """

    outcome: OutcomeName
    delay: float | None = None
    reason: Reason | None = None
    result: bytes | None = None

    def settlement(self, receipt: str, took: float) -> Settlement:
        """What to tell the server.

        Args:
            receipt: of the lease.
            took: seconds the attempt ran.
        """
        result = UNSET if self.result is None else Raw(self.result)
        return Settlement(
            receipt, self.outcome, result=result, delay=self.delay, reason=self.reason, took=round(took, 6)
        )


OK = Attempted("ok")


class Settlement(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One element of a ``settle`` call.

    Attributes:
        receipt: the lease it settles.
        outcome: ok, again, fail, or release (not run; costs no attempt).
        result: JSON value the handler returned; kept when the job has a ``result_ttl``.
        delay: seconds until it may run again (again, release).
        prio: new priority (again, release).
        reason: why not ok: a text, or ``{message, kind?, traceback?}``.
        took: seconds the attempt ran, which its lane is charged (ok, again, fail); when not given, those
            since the lease began.
    """

    receipt: str
    outcome: OutcomeName
    result: Raw | UnsetType = UNSET
    delay: Seconds | None = None
    prio: Literal["urgent", "high", "normal", "low", "bulk"] | None = None
    reason: Annotated[str, Meta(max_length=65536)] | Reason | None = None
    took: Seconds | None = None


def exit_outcome(status: int) -> tuple[OutcomeName, str | None]:
    """The outcome of a command's exit status, and why (DESIGN section 8).

    Args:
        status: exit status, or minus the signal number, as ``subprocess`` gives it.
    """
    if status == 0:
        return "ok", None
    if status < 0:
        return "again", f"killed by signal {-status}"
    if status == 100:
        return "fail", "exit status 100 (failed for good)"
    if status in (75, 111):
        return "again", f"exit status {status} (try again later)"
    return "again", f"exit status {status}"


#: Statuses below 500 that pass: request timeout, too early, too many requests.
_PASSING = (408, 425, 429)


def status_outcome(status: int) -> tuple[OutcomeName, str | None]:
    """The outcome of an HTTP response's status, and why (DESIGN section 8).

    A redirect is a failure: it is not followed, and the payload was not taken.

    Args:
        status: of the final response.
    """
    if 200 <= status < 300:
        return "ok", None
    try:
        reason = f"HTTP status {status} ({HTTPStatus(status).phrase})"
    except ValueError:
        reason = f"HTTP status {status}"
    if 300 <= status < 400:
        return "fail", f"{reason}: redirects are not followed"
    return "again" if status in _PASSING or status >= 500 else "fail", reason
