"""Settings of the scheduler: weights and limits of job types, classes and fairness keys."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal, Protocol

from msgspec import UNSET, Meta, Struct, UnsetType

from ..core.job import JobSettings
from ..core.shares import NO_SHARE, Share
from ..errors import ConfigError

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Weight = Annotated[float, Meta(gt=0, le=1_000_000)]
Concurrency = Annotated[int, Meta(ge=0)]
Rate = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?/[smhd]$")]
Burst = Annotated[int, Meta(ge=1)]


class SchedulerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Which job is next.

    Attributes:
        order: among jobs of one priority, ``fair``: every lane (job type and fairness key) gets its part of
            the worker time; ``fifo``: the oldest job, whoever it belongs to.
        priority: ``strict``: a job waits while there is one of a higher priority; ``weighted``: the
            priorities get worker time as 16:8:4:2:1, so that none ever starves.
    """

    order: Literal["fair", "fifo"] = "fair"
    priority: Literal["strict", "weighted"] = "strict"


class ShareSettings(Protocol):
    """A table with weight and limits."""

    @property
    def weight(self) -> float | UnsetType: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def rate(self) -> str | UnsetType: ...
    @property
    def burst(self) -> int | UnsetType: ...


class JobTypeConfig(JobSettings, frozen=True, kw_only=True, omit_defaults=True):
    """Settings of job types, with weight and limits.

    Attributes:
        weight: part of the worker time of each type, beside that of others, which is 1 where nothing is said.
        concurrency: jobs that may run at a time, of all types here together; 0 for no limit.
        rate: jobs that may begin in a time, of all types here together: ``"100/s"``, ``"10/m"``, ``"5/h"`` or
            ``"1/d"``.
        burst: jobs that may begin at once when none began for a while; a tenth of a second's where ``rate``
            is given and this is not, 1 at least.
    """

    weight: Weight | UnsetType = UNSET
    concurrency: Concurrency = 0
    rate: Rate | UnsetType = UNSET
    burst: Burst | UnsetType = UNSET


class FairConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a fairness key, all job types together. The name is the key, or a pattern: each key that
    matches it has this part, and limits of its own.

    Attributes:
        weight: part of the worker time of each of its lanes; the weight of the job type is multiplied by it.
        concurrency: jobs of the key that may run at a time; 0 for no limit.
        rate: jobs of the key that may begin in a time: ``"100/s"``, ``"10/m"``, ``"5/h"`` or ``"1/d"``.
        burst: as in ``[classes.NAME]``.
    """

    weight: Weight | UnsetType = UNSET
    concurrency: Concurrency = 0
    rate: Rate | UnsetType = UNSET
    burst: Burst | UnsetType = UNSET


def share_of(table: ShareSettings, weight: float = 1.0) -> Share:
    """A table as the scheduler needs it.

    Args:
        table: weight and limits.
        weight: when it has none.
    """
    return Share(
        weight if isinstance(table.weight, UnsetType) else table.weight,
        table.concurrency,
        _per_second(table.rate),
        0 if isinstance(table.burst, UnsetType) else table.burst,
    )


def _per_second(rate: str | UnsetType) -> float:
    if isinstance(rate, UnsetType):
        return 0.0
    count, unit = rate.split("/")
    return float(count) / _SECONDS[unit]


def check_share(where: str, settings: ShareSettings) -> None:
    """Refuse what contradicts itself.

    Raises:
        ConfigError: names the setting.
    """
    if settings.rate is UNSET:
        if settings.burst is not UNSET:
            raise ConfigError(f'{where}.burst: goes with rate only; add rate = "10/s", or remove it')
    elif not _per_second(settings.rate):
        raise ConfigError(f"{where}.rate: is 0, so nothing would ever run; to stop a type use 'kqs pause'")


def shares_of_keys(fair: Mapping[str, FairConfig]) -> Callable[[str], Share]:
    """Finds the share of a fairness key: the one of its name, else of the first pattern that matches."""
    exact = {key: share_of(config) for key, config in fair.items()}
    globs = [
        (re.compile(fnmatch.translate(key)).match, share)
        for key, share in exact.items()
        if re.search(r"[*?[]", key)
    ]

    def find(key: str) -> Share:
        found = exact.get(key)
        if found is None:
            found = next((share for matches, share in globs if matches(key)), NO_SHARE)
        return found

    return find
