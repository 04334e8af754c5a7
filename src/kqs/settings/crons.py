"""Settings of crons: jobs that the server inserts at set times."""

from __future__ import annotations

import datetime as dt
import difflib
import json
import re
import zoneinfo
from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ..core.cron import Missed, Schedule
from ..core.job import (
    NEEDS,
    DefaultsTable,
    Expires,
    JobDefaults,
    JobFields,
    JobSettings,
    Key,
    MaxAttempts,
    NewJob,
    Prio,
    Ttr,
    check_job,
)
from ..core.retry import RetryPolicy
from ..errors import CallError, ConfigError
from .jobtypes import check_coherent

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DEFAULTS: Final = DefaultsTable()
#: Settings of a cron that are its job's.
_JOB: Final = ("prio", "ttr", "max_attempts", "retry", "expires", "fair")


class CronConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A job that the server inserts at set times.

    Attributes:
        schedule: when: minute, hour, day of month, month, day of week, as in a crontab.
        timezone: where its hours are those of the clock on the wall, as ``Europe/Berlin``.
        type: the jobs' type.
        data: their payload, as JSON; null when not given. Dates and times become text.
        missed: what becomes of runs that no server was there for: ``skip`` them, make ``one`` for all of
            them, or make ``all``, the latest 1,000 at most.
        prio, ttr, max_attempts, retry, expires, fair: as in an insert; where not given, as the type has it.
    """

    schedule: str
    timezone: str = "UTC"
    type: Annotated[str, Meta(min_length=1)]
    data: Any = None
    missed: Missed = "one"
    prio: Prio | UnsetType = UNSET
    ttr: Ttr | UnsetType = UNSET
    max_attempts: MaxAttempts | UnsetType = UNSET
    retry: RetryPolicy | UnsetType = UNSET
    expires: Expires | UnsetType = UNSET
    fair: Key | UnsetType = UNSET


class Cron(Struct, frozen=True):
    """A cron, ready to run.

    Attributes:
        config: as it is set.
        schedule: when it runs.
        job: what it inserts.
    """

    config: CronConfig
    schedule: Schedule
    job: NewJob

    @property
    def when(self) -> tuple[str, str]:
        """Its schedule and time zone, as they are set."""
        return self.config.schedule, self.config.timezone


def plan(
    crons: Mapping[str, CronConfig], table: DefaultsTable, capabilities: frozenset[str], path: str = ""
) -> dict[str, Cron]:
    """Crons by name, ready to run.

    Args:
        crons: the table ``[cron]`` of a config.
        table: settings of job types.
        capabilities: what the engine can do.
        path: what messages begin with.

    Raises:
        ConfigError: one line: the setting, what to do.
    """
    if crons and "cron" not in capabilities:
        raise ConfigError(f"{path}cron: needs an engine with cron, which this one has not; remove it")
    return {
        name: Cron(
            cron,
            _schedule(f"{path}cron.{name}", cron),
            _job(f"{path}cron.{name}", cron, table, capabilities),
        )
        for name, cron in crons.items()
    }


def check(path: str, crons: Mapping[str, CronConfig], threshold: int) -> None:
    """Refuse crons that could not be run.

    Args:
        path: what messages begin with.
        crons: the table ``[cron]``.
        threshold: bytes above which a payload is oversize.

    Raises:
        ConfigError: one line: the setting, what to do.
    """
    for name in crons:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{path}cron.{name!r}: a name has 1 to 64 of A-Z a-z 0-9 _ . - ; choose another"
            )
    for name, cron in plan(crons, _DEFAULTS, frozenset({"cron", *NEEDS.values()}), path).items():
        where = f"cron.{name}"
        size = len(cron.job.data)
        if size > threshold:
            raise ConfigError(
                f"{path}{where}.data: is {size} bytes as JSON, more than bulk.threshold ({threshold}); name "
                "the place where it lies instead, or raise bulk.threshold"
            )
        own = JobSettings(retry=cron.config.retry)
        check_coherent(path, [(where, own)], own.over(JobDefaults()))


def _schedule(where: str, cron: CronConfig) -> Schedule:
    try:
        return Schedule(cron.schedule, _zone(f"{where}.timezone", cron.timezone))
    except ValueError as error:
        raise ConfigError(
            f"{where}.schedule: {cron.schedule!r} {error}; give minute, hour, day of month, month and day of "
            "week as in a crontab: '30 4 * * MON-FRI'"
        ) from None


def _zone(where: str, name: str) -> dt.tzinfo:
    if name == "UTC":
        return dt.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        close = difflib.get_close_matches(name, zoneinfo.available_timezones(), 1)
        hint = f"did you mean {close[0]!r}?" if close else "give an IANA name, as 'Europe/Berlin'"
        raise ConfigError(f"{where}: there is no time zone {name!r}; {hint}") from None


def _job(where: str, cron: CronConfig, table: DefaultsTable, capabilities: frozenset[str]) -> NewJob:
    settings = {name: getattr(cron, name) for name in _JOB}
    try:
        data = json.dumps(cron.data, ensure_ascii=False, allow_nan=False, default=_iso, separators=(",", ":"))
    except ValueError:
        raise ConfigError(f"{where}.data: JSON has no nan and no inf; remove them") from None
    try:
        return check_job(JobFields(cron.type, Raw(data.encode()), **settings), table, capabilities)
    except CallError as error:
        raise ConfigError(f"{where}{f'.{error.field}' if error.field else ''}: {error}") from None


def _iso(value: dt.date | dt.time) -> str:
    """TOML's dates and times; JSON has none."""
    return value.isoformat()
