"""What both kinds of worker do with a lease: make the job its handler gets."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import psutil
from msgspec import UNSET

from ..core.handler import Job, JobLink
from ..core.outcome import Attempted, Reason
from . import log
from .link import Leased
from .spec import WorkerSpec

#: A lease held longer than this before its job starts is renewed first, seconds: it may be lost by then.
FRESH = 0.05
#: Leases that were not come to are given back when the attempt before them is this old, seconds.
REVOKE = 0.1
#: Longest wait of a reserve, seconds; then it is asked again.
WAIT = 60.0
MAX_HELD = 1000
#: Progress is sent at most this often, seconds; a last word (1.0) always.
PROGRESS_EVERY = 0.2
#: Exit status of a worker that did what its pool lets one process do; another takes its place.
EXIT_RECYCLED = 5
#: How often a worker looks at its memory, seconds.
_WEIGH = 0.1


class Unreadable(Exception):
    """The payload is JSON that Python can't read.

    Attributes:
        attempted: what its attempt came to.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        # Valid JSON, but 1e999 or nested too deep: it will be no better the next time.
        self.attempted = Attempted("fail", None, Reason(f"the payload cannot be read: {error}", "payload"))


def job_of(lease: Leased, payload: bytes, link: JobLink, *, decodes: bool) -> Job:
    """The job as its handler sees it.

    Args:
        lease: as it was answered.
        payload: its payload.
        link: how the job reaches the server.
        decodes: whether ``data`` is the decoded JSON; else it is the payload.

    Raises:
        Unreadable: it can't be decoded.
    """
    data: Any = payload
    if decodes and lease.data is not UNSET:
        try:
            data = msgspec.json.decode(payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Unreadable(error) from None
    return Job(
        id=lease.id,
        type=lease.type,
        data=data,
        attempt=lease.attempt,
        prio=lease.prio,
        inserted_at=dt.datetime.fromisoformat(lease.inserted_at),
        deadline=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=lease.ttr),
        log=log.of(lease),
        link=link,
        binary=lease.data is UNSET,
        wants_result=lease.result,
    )


class Usual:
    """How long an attempt usually takes, and so how many make up the time a worker may hold ahead.

    Args:
        prefetch: that time, seconds.
    """

    def __init__(self, prefetch: float) -> None:
        self._prefetch = prefetch
        self._seconds = 0.0

    def took(self, seconds: float) -> None:
        """An attempt ended; a long one counts at once, short ones little by little."""
        usual = self._seconds
        self._seconds = seconds if not usual else max(seconds, 0.9 * usual + 0.1 * seconds)

    @property
    def ahead(self) -> int:
        """Jobs worth the prefetch time; 0 until an attempt was measured."""
        return min(MAX_HELD, int(self._prefetch / self._seconds)) if self._seconds else 0


def limited(fraction: float | None) -> float | None:
    """A share of the work as the server takes it."""
    return None if fraction is None else min(max(fraction, 0.0), 1.0)


class Recycling:
    """When a worker has done what its pool lets one process do.

    Args:
        spec: its limits.

    Attributes:
        due: whether it has.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._left = spec.max_jobs
        self._memory = spec.memory
        self._weighed = 0.0
        self.due = False

    def done(self, now: float) -> None:
        """An attempt ended.

        Args:
            now: seconds, monotonic.
        """
        if self._left:
            self._left -= 1
            self.due = self.due or not self._left
        if self._memory and now - self._weighed >= _WEIGH:
            self._weighed = now
            self.due = self.due or psutil.Process().memory_info().rss > self._memory
