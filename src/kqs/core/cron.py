"""When a cron's runs are, and which of them are due. Pure: time and time zone are arguments.

Expressions are Debian's, as the library cronsim evaluates them, daylight saving time included: a run at a set
hour that the change leaves out comes right after it, and one that it repeats comes once; runs of every few
minutes follow the clock on the wall.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from itertools import takewhile
from typing import Final, Literal

from cronsim import CronSim, CronSimError

from .job import SECOND

#: What becomes of runs that nobody was there for: none of them, one for all, or each.
Missed = Literal["skip", "one", "all"]
#: A run that is late by this much, in microseconds, is missed; a quick restart is shorter.
LATE: Final = 30 * SECOND
#: The most runs that are made up for.
MOST: Final = 1000
#: An expression is tried from here on, so that whether it is accepted does not depend on the day.
_TRIED_FROM: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


class Schedule:
    """The times of an expression in a time zone. All times are microseconds since 1970 UTC.

    Args:
        expression: minute, hour, day of month, month, day of week.
        zone: where its hours are those of the clock on the wall.

    Raises:
        ValueError: it is none, or its time never comes.
    """

    def __init__(self, expression: str, zone: dt.tzinfo) -> None:
        self.expression = expression
        self.zone = zone
        fields = len(expression.split())
        if fields != 5:
            raise ValueError(f"has {fields} field{'s' * (fields != 1)}, not five")
        try:
            first = next(CronSim(expression, _TRIED_FROM), None)
        except CronSimError as error:
            raise ValueError(f"has a {str(error).lower()}") from None
        if first is None:
            raise ValueError("never comes within 50 years")

    def after(self, at: int) -> Iterator[int]:
        """The runs later than a time, in order; at an end when there is none for 50 years."""
        latest = at
        for run in CronSim(self.expression, dt.datetime.fromtimestamp(at // SECOND, self.zone)):
            moment = int(run.timestamp()) * SECOND
            if moment > latest:  # begun in an hour that comes twice, cronsim gives runs of its first time
                latest = moment
                yield moment

    def next(self, at: int) -> int | None:
        """The first run later than a time."""
        return next(self.after(at), None)

    def latest(self, after: int, upto: int, most: int) -> list[int]:
        """The last ``most`` runs that are later than ``after`` and not later than ``upto``."""
        span = 3600 * SECOND
        while True:  # from near the end: years of minutes would take seconds to count
            start = max(after, upto - span)
            runs = list(takewhile(lambda run: run <= upto, self.after(start)))
            if start == after or len(runs) >= most:
                return runs[-most:]
            span *= 4


def due(schedule: Schedule, decided: int, now: int, missed: Missed) -> list[int]:
    """The runs to make now, in order.

    Args:
        schedule: when they are.
        decided: all runs up to here are taken care of.
        now: the time; when it is before ``decided``, because a clock was set back, nothing is due.
        missed: what becomes of runs that are late by more than :data:`LATE`.
    """
    if missed == "skip":
        return schedule.latest(max(decided, now - LATE - 1), now, MOST)
    return schedule.latest(decided, now, 1 if missed == "one" else MOST)
