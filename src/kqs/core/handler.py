"""The job as a Python handler sees it."""

from __future__ import annotations

import datetime as dt
from typing import Any, Protocol


class JobLink(Protocol):
    """How a running job reaches the server it was leased from; the runner provides it."""

    def progress(self, fraction: float | None, message: str) -> None: ...

    def renew(self) -> bool: ...

    @property
    def cancelled(self) -> bool: ...


class Job:
    """One attempt of one job, given to its handler.

    Attributes:
        id: opaque, the same for every attempt.
        type: what routed it here.
        data: the decoded JSON payload, or ``bytes`` when the payload is binary.
        attempt: 1 for the first run.
        prio: urgent, high, normal, low or bulk.
        inserted_at: when it was accepted (aware, UTC).
        deadline: when the lease ends, unless renewed (aware, UTC).
        log: a logger whose lines carry the job's id and type.
        binary: whether the payload is bytes, not JSON.
        wants_result: whether what the handler returns is kept.
    """

    __slots__ = (
        "_link",
        "attempt",
        "binary",
        "data",
        "deadline",
        "id",
        "inserted_at",
        "log",
        "prio",
        "type",
        "wants_result",
    )

    def __init__(
        self,
        *,
        id: str,
        type: str,
        data: Any,
        attempt: int,
        prio: str,
        inserted_at: dt.datetime,
        deadline: dt.datetime,
        log: Any,
        link: JobLink,
        binary: bool = False,
        wants_result: bool = False,
    ) -> None:
        self.id = id
        self.type = type
        self.data = data
        self.attempt = attempt
        self.prio = prio
        self.inserted_at = inserted_at
        self.deadline = deadline
        self.log = log
        self.binary = binary
        self.wants_result = wants_result
        self._link = link

    def progress(self, fraction: float | None = None, message: str = "") -> None:
        """Say how far it is; shown by ``kqs job``. Never blocks.

        Args:
            fraction: 0..1, or None when unknown.
            message: a short text.
        """
        self._link.progress(fraction, message)

    def renew(self) -> bool:
        """Start the lease's ttr anew. False: the lease is lost, stop working on it."""
        return self._link.renew()

    @property
    def cancelled(self) -> bool:
        """Whether the lease was lost or the job cancelled; a long handler should look now and then."""
        return self._link.cancelled

    def __repr__(self) -> str:
        return f"<Job {self.id} type={self.type!r} attempt={self.attempt}>"
