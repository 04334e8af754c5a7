"""What is known of a job and of a lease, from outside the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .peer import Sent


@dataclass(eq=False)
class Job:
    """A job that was sent once or, with a key, several times.

    Attributes:
        call: number of the first insert call it was part of.
        doubt: inserts of it that are not answered, or that were answered with "unknown".
        id: its id, once known.
        inserts: replies that gave its id as a new job.
        earliest: the least time of the server's clock at which it was sent.
        due: it is never handed out before, by the clock of life ``due_since`` and later; None for at once.
        released: whether a release was ever sent: then attempts do not only count up.
        floor: least attempt the next lease may have.
        acks, fails: settlements of this kind that may or may not have been done.
    """

    payload: str
    type: str
    prio: str
    delay: float
    ttr: float
    max_attempts: int
    key: str | None
    call: int
    doubt: int = 0
    id: str | None = None
    inserts: int = 0
    answered: bool = False
    due: int | None = None
    due_since: int = 0
    earliest: int = 1 << 63
    released: bool = False
    floor: int = 1
    acks: int = 0
    fails: int = 0
    done: bool = False
    buried: bool = False
    last: Lease | None = None

    @property
    def may_be_buried(self) -> bool:
        return self.buried or self.fails > 0 or self.max_attempts > 0

    def inserted(self) -> dict[str, Any]:
        """The job as it stands in an insert."""
        job: dict[str, Any] = {"type": self.type, "data": self.payload, "prio": self.prio, "ttr": self.ttr}
        if self.delay:
            job["delay"] = self.delay
        if self.max_attempts:
            job["max_attempts"] = self.max_attempts
        if self.key is not None:
            job["key"] = self.key
        return job


@dataclass(eq=False)
class Lease:
    """A lease whose receipt somebody got.

    Attributes:
        since: when it was asked for, or renewed, the last time; on the timeline.
        expires: it lasts until then at least, by the server's clock.
        durable: the same, as far as a crash cannot take it back; None when the whole lease may be gone.
        vague: whether it cannot be told from outside if it is current.
        outcomes: when each outcome was first sent for it, by the least time of the server's clock.
        sends: how many settlements were sent for it.
        answered: the outcome that was confirmed, by the server's life ``answered_in``.
        over: whether a later lease of the job was seen.
        before: the lease that was over when this one was seen.
    """

    receipt: str
    job: Job
    attempt: int
    sent: Sent
    came: Sent
    since: int
    expires: int
    durable: int | None = None
    vague: bool = False
    outcomes: dict[str, Sent] = field(default_factory=dict)
    sends: int = 0
    answered: str | None = None
    answered_in: int = 0
    over: bool = False
    before: Lease | None = None
