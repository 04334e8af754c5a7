"""What servers are told of jobs that came without one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from ..core.job import PRIOS, NewJob

#: Bytes of a notice; PostgreSQL takes less than 8,000.
_MOST: Final = 7000
#: Jobs named in one; of more the types are.
_NAMED: Final = 200

_Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_PrioNumber = Annotated[int, Meta(ge=0, lt=len(PRIOS))]


class Arrived(Struct, omit_defaults=True):
    """A notice of new jobs.

    Attributes:
        jobs: number, prio, type and fairness key of each that is ready.
        types: of which jobs are ready, where there are too many to name; ``*``: of any.
        due: when the first of the others is due, microseconds; 0: none is.
    """

    jobs: list[tuple[_Number, _PrioNumber, str, str]] = []
    types: list[str] = []
    due: _Number = 0


def notice(fresh: Sequence[tuple[NewJob, int]], now: int) -> str:
    """The notice of new jobs and their numbers.

    Args:
        fresh: at least one.
        now: microseconds.
    """
    due = min(_moments(fresh, now), default=0)
    ready = [(number, job.prio, job.type, job.options.fair or "") for job, number in fresh if not job.delay]
    if len(ready) <= _NAMED:
        text = msgspec.json.encode(Arrived(ready, due=due))
        if len(text) <= _MOST:
            return text.decode()
    text = msgspec.json.encode(Arrived(types=sorted({job[2] for job in ready}), due=due))
    if len(text) > _MOST:
        text = msgspec.json.encode(Arrived(types=["*"], due=due))
    return text.decode()


def _moments(fresh: Iterable[tuple[NewJob, int]], now: int) -> Iterable[int]:
    for job, _number in fresh:
        if job.delay:
            yield now + job.delay
        if job.options.expires:
            yield now + job.options.expires
