"""The ready jobs a server knows of, in its scheduler: hints, which the claim in the database decides.

Of each lane the first jobs are known. A lane that has more than that is marked with the last one known; what
comes after it is loaded when the known ones are used up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from msgspec import Struct

from ...core.fairshare import Scheduler
from ...core.lanes import Lane
from .database import Database

#: Jobs known of a lane after a load, and when more are loaded.
KNOWN: Final = 5000
_FEW: Final = 1000

#: The first jobs of every lane, by skipping through the index from lane to lane.
_HEADS: Final = """
WITH RECURSIVE lane AS (
    (SELECT type, fair FROM job WHERE state = 2 ORDER BY type, fair LIMIT 1)
    UNION ALL
    SELECT n.type, n.fair FROM lane, LATERAL (
        SELECT type, fair FROM job WHERE state = 2 AND (type, fair) > (lane.type, lane.fair)
        ORDER BY type, fair LIMIT 1) AS n
)
SELECT h.id, lane.type, lane.fair, h.prio FROM lane, LATERAL (
    SELECT id, prio FROM job WHERE state = 2 AND type = lane.type AND fair = lane.fair
    ORDER BY prio, id LIMIT %s) AS h
"""


class Held(Struct, gc=False):
    """A lease this server gave, in its books."""

    number: int
    lane: Lane
    prio: int
    charged: float
    leased: int
    expires: int
    ttr: int
    holder: str
    receipt: str


class Candidates:
    """Known ready jobs and the leases that were given here.

    Args:
        now: microseconds.

    Attributes:
        leases: by receipt.
        dirty: whether the database may have jobs that are not known.
        freed: whether a lease under a limit ended, which other servers may wait for; whoever tells them
            unsets it.
    """

    def __init__(self, now: int) -> None:
        self.scheduler = Scheduler(now)
        self.leases: dict[str, Held] = {}
        self.dirty = True
        self.freed = False
        self._known: dict[int, tuple[int, Lane]] = {}
        self._taken: dict[int, tuple[int, Lane]] = {}
        self._cut: dict[Lane, tuple[int, int]] = {}
        self._count: dict[Lane, int] = {}

    def add(self, number: int, prio: int, type_: str, fair: str | None) -> bool:
        """A job is ready; returns whether that is news."""
        if number in self._known:
            if self._known[number][0] == prio:
                return False
            self.drop(number)
        lane = self.scheduler.lane(type_, fair)
        if (cut := self._cut.get(lane)) is not None and (prio, number) > cut:
            return False
        if cut is None and self._count.get(lane, 0) >= 4 * KNOWN:
            self._cut[lane] = max((k[0], n) for n, k in self._known.items() if k[1] is lane)
            return self.add(number, prio, type_, fair)
        self._known[number] = (prio, lane)
        self._count[lane] = self._count.get(lane, 0) + 1
        lane.live += 1
        self.scheduler.push(prio, lane, number)
        return True

    def drop(self, number: int) -> None:
        """A job is not ready any more, or was never there."""
        if (found := self._known.pop(number, None)) is not None:
            self._uncount(found[1])
            self._leave(found[1])

    def _uncount(self, lane: Lane) -> None:
        self._count[lane] -= 1
        if self._count[lane] < _FEW and lane in self._cut:
            self.dirty = True
        if not self._count[lane]:
            del self._count[lane]

    def _leave(self, lane: Lane) -> None:
        lane.live -= 1
        if not lane.live:
            self._cut.pop(lane, None)
            self.scheduler.leave(lane)

    def take(self, types: Collection[str], limit: int, now: int) -> list[int]:
        """The next jobs to claim; each is then :meth:`claimed` or :meth:`missed`."""
        seen: set[int] = set()

        def still_ready(number: int, prio: int) -> bool:
            found = self._known.get(number)
            if found is None or found[0] != prio or number in seen or number in self._taken:
                return False
            seen.add(number)
            return True

        taken = self.scheduler.take(types, limit, now, still_ready)
        self._taken.update((number, self._known[number]) for number in taken)
        return taken

    def lane_of(self, number: int) -> Lane:
        """The lane of a job that was taken."""
        return self._taken[number][1]

    def claimed(self, number: int, held: tuple[int, int, int, str, str]) -> Held:
        """A job was leased: ``leased, expires, ttr, holder, receipt``."""
        prio, lane = self._taken.pop(number)
        if self._known.pop(number, None) is None:  # dropped meanwhile
            lane.live += 1
        else:
            self._uncount(lane)
        leased, expires, ttr, holder, receipt = held
        lease = self.leases[receipt] = Held(
            number, lane, prio, lane.charge, leased, expires, ttr, holder, receipt
        )
        return lease

    def missed(self, number: int, *, keep: bool = False) -> None:
        """A job that was taken is not leased: another server has it, or, to ``keep``, nobody could ask."""
        prio, lane = self._taken.pop(number)
        self.scheduler.untaken(lane, prio)
        if number not in self._known:  # dropped meanwhile
            self.scheduler.leave(lane)
        elif keep:
            self.scheduler.push(prio, lane, number)
        else:
            self.drop(number)

    def adopt(
        self, number: int, type_: str, fair: str | None, prio: int, held: tuple[int, int, int, str, str]
    ) -> None:
        """A lease that was given before this server's life is in its books now."""
        lane = self.scheduler.lane(type_, fair)
        lane.live += 1
        self.scheduler.resumed(lane)
        leased, expires, ttr, holder, receipt = held
        self.leases[receipt] = Held(number, lane, prio, 0.0, leased, expires, ttr, holder, receipt)

    def ended(self, receipt: str, cost: int) -> None:
        """A lease is over; its lane is charged."""
        if (held := self.leases.pop(receipt, None)) is not None:
            self.scheduler.ended(held.lane, held.prio, held.charged, cost, learn=cost > 0)
            self.freed = self.freed or bool(held.lane.limits)
            self._leave(held.lane)

    def types(self) -> set[str]:
        """Types of known ready jobs."""
        return {lane.type for lane in self._count}

    async def load(self, database: Database) -> set[str]:
        """Know the first jobs of every lane; returns types of which some are news."""
        self.dirty = False
        rows = await database.rows(_HEADS, [KNOWN], soon=True)
        return self.loaded(rows)

    def loaded(self, rows: Iterable[tuple[int, str, str, int]]) -> set[str]:
        """The rows of a load."""
        counts: dict[Lane, tuple[int, tuple[int, int]]] = {}
        news: set[str] = set()
        self._cut.clear()
        for number, type_, fair, prio in rows:
            if self.add(number, prio, type_, fair or None):
                news.add(type_)
            lane = self.scheduler.lane(type_, fair or None)
            counts[lane] = (counts.get(lane, (0,))[0] + 1, (prio, number))
        for lane, (count, last) in counts.items():
            if count >= KNOWN:
                self._cut[lane] = last
        return news
