"""Gates: pauses and limits. A gate keeps lanes out of the line while it is closed.

A closed one costs nothing: what it keeps out is not looked at again until it opens.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Final

from .shares import Share

if TYPE_CHECKING:
    from .lanes import Fork, Node

#: Nanoseconds in a microsecond and in a second.
_NS: Final = 1000
_NS_SECOND: Final = 1_000_000_000


class Gate:
    """A pause.

    Attributes:
        closed: whether it lets nothing through.
        held: what it keeps out, and where that belongs.
    """

    __slots__ = ("closed", "held")

    def __init__(self) -> None:
        self.closed = True
        self.held: dict[tuple[Fork, Node], None] = {}

    def open(self) -> list[tuple[Fork, Node]]:
        """Let all through again; returns them, for their place in the line."""
        self.closed = False
        held = list(self.held)
        self.held = {}
        return held


class Limit(Gate):
    """How many jobs of a type, class or fairness key may run at a time, and begin in a second.

    The rate is a token bucket, kept as the time its last token comes back (the generic cell rate algorithm,
    ITU-T I.371): in any span of t seconds at most ``burst + rate * t`` jobs begin. Integers, so that nothing
    is lost to rounding.

    Args:
        kind: ``type``, ``class`` or ``key``.
        name: of what.
        share: the limits.
        empty: when the bucket was empty, microseconds: the start of the server, as nobody knows what began
            just before.

    Attributes:
        concurrency, rate, burst: as in the share; 0 for none.
        running: jobs that run now.
        elsewhere: jobs that other servers run under the same limit, as far as is known.
        full: when the bucket is full again, nanoseconds; may be past.
        new: the same had no job begun since the limit is known.
        lanes: that it is for, where somebody counts.
        wake: when somebody looks at it next, microseconds; None when nobody does.
    """

    __slots__ = (
        "_interval",
        "burst",
        "concurrency",
        "elsewhere",
        "full",
        "kind",
        "lanes",
        "name",
        "new",
        "rate",
        "running",
        "wake",
    )

    def __init__(self, kind: str, name: str, share: Share, empty: int) -> None:
        super().__init__()
        self.kind = kind
        self.name = name
        self.running = self.elsewhere = 0
        self.lanes = 0
        self.wake: int | None = None
        self.full = self.new = self._interval = 0
        self.change(share, empty)

    def change(self, share: Share, now: int) -> None:
        """Other settings; what runs, runs on. The bucket of a rate that is new is empty."""
        self.concurrency = share.concurrency
        self.rate = share.rate
        self.burst = (share.burst or max(1, round(share.rate / 10))) if share.rate else 0
        had_rate = self._interval > 0
        self._interval = -int(-_NS_SECOND // share.rate) if share.rate else 0
        empty = now * _NS + self.burst * self._interval
        self.full = min(self.full, empty) if had_rate else empty
        self.new = min(self.new, empty) if had_rate else empty
        self.closed = self.full_house()

    def next_token(self) -> int:
        """When the next job may begin as far as the rate goes, microseconds; may be past."""
        return -(-(self.full - (self.burst - 1) * self._interval) // _NS)

    def full_at(self) -> int:
        """When the bucket is full again, microseconds; may be past."""
        return -(-self.full // _NS)

    def full_house(self) -> bool:
        """Whether as many run as may."""
        return 0 < self.concurrency <= self.running + self.elsewhere

    def open_at(self, now: int) -> bool:
        """Whether a job may begin."""
        return not self.full_house() and (not self._interval or self.next_token() <= now)

    def enter(self, now: int) -> bool:
        """A job begins; returns whether another one may."""
        self.running += 1
        if self._interval:
            self.full = max(self.full, now * _NS) + self._interval
        self.closed = not self.open_at(now)
        return not self.closed

    def as_of(self, running: int, full: int) -> Limit:
        """The same limit, with what others know of it.

        Args:
            running: jobs that run anywhere.
            full: as the attribute.
        """
        limit = copy(self)
        limit.running, limit.elsewhere, limit.full, limit.held = running, 0, full, {}
        return limit

    def shown(self, now: int) -> dict[str, Any]:
        """As ``stats`` and ``why`` show it."""
        running = self.running + self.elsewhere
        view: dict[str, Any] = {"kind": self.kind, "name": self.name, "running": running}
        if self.concurrency:
            view["concurrency"] = self.concurrency
        if self.rate:
            view |= {
                "rate": self.rate,
                "burst": self.burst,
                "next_in": max(0, self.next_token() - now) / 1e6,
            }
        return view
