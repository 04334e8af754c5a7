"""When a job that did not succeed runs again."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

#: The longest duration anybody may give: 100 years.
MAX_SECONDS: Final = 3_153_600_000
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]


class RetryPolicy(Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait after attempt n before attempt n + 1.

    Attributes:
        backoff: how the wait grows: ``exponential`` base * 2**(n-1), ``linear`` base * n, ``fixed`` base.
        base: first wait, in seconds.
        cap: longest wait, in seconds, before jitter.
        jitter: 0..1, the share of the wait that is drawn at random (0.5: between half of it and all of it),
            so that jobs that failed together do not come back together.
    """

    backoff: Literal["exponential", "linear", "fixed"] = "exponential"
    base: Seconds = 1.0
    cap: Seconds = 3600.0
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.5


def retry_delay(policy: RetryPolicy, attempt: int, chance: float) -> float:
    """Seconds to wait after a failed attempt.

    Args:
        policy: the job's policy.
        attempt: number of the attempt that failed, from 1.
        chance: a random number in [0, 1).
    """
    if policy.backoff == "fixed":
        wait = policy.base
    elif policy.backoff == "linear":
        wait = policy.base * attempt
    else:
        wait = policy.base * 2.0 ** min(attempt - 1, 64)
    wait = min(wait, policy.cap)
    return wait * (1.0 - policy.jitter * chance)


def attempts_left(max_attempts: int, attempt: int) -> bool:
    """Whether a job whose attempt failed may run again (``max_attempts`` 0: always)."""
    return max_attempts == 0 or attempt < max_attempts
