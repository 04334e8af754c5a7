"""What lanes may have: weights and limits, as the scheduler needs the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from msgspec import Struct


class Share(Struct, frozen=True):
    """Weight and limits of a job type, a class or a fairness key.

    Attributes:
        weight: its part of the worker time, beside others'.
        concurrency: jobs that may run at a time; 0 for no limit.
        rate: jobs that may begin in a second; 0 for no limit.
        burst: jobs that may begin at once after a pause, when there is a rate; 0 for a tenth of a second's.
    """

    weight: float = 1.0
    concurrency: int = 0
    rate: float = 0.0
    burst: int = 0

    @property
    def limited(self) -> bool:
        return bool(self.concurrency or self.rate)


NO_SHARE: Final = Share()


class Shares(Struct, frozen=True):
    """All settings of the scheduler.

    Attributes:
        order: ``fair``, or ``fifo`` for the oldest first whoever it belongs to.
        priority: ``strict``, or ``weighted`` so that each priority gets its part.
        of_type: the name of a type's class (or None) and its own share; the weight is that of its class where
            it has none of its own.
        classes: shares by class.
        of_key: the share of each fairness key.
    """

    order: Literal["fair", "fifo"] = "fair"
    priority: Literal["strict", "weighted"] = "strict"
    of_type: Callable[[str], tuple[str | None, Share]] = lambda type_: (None, NO_SHARE)
    classes: Mapping[str, Share] = {}
    of_key: Callable[[str], Share] = lambda key: NO_SHARE
