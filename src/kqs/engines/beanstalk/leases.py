"""The jobs that are out: reservations on our connections. beanstalkd ends them when this process ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from heapq import heappop, heappush
from typing import Final

from msgspec import Struct

from ...core.job import JobOptions
from ...core.recent import Recent
from ...ports import Expired
from .client import Connection

#: Receipts that are remembered with their outcome, so that a settlement that comes again is no error.
SETTLED: Final = 50_000
#: Corrections of what beanstalkd counts that are remembered.
_CORRECTED: Final = 100_000


class Reserved(Struct, gc=False, eq=False):
    """A job that is out.

    Attributes:
        receipt: what settles it.
        id: the job's.
        number: what its server calls it.
        connection: where it is reserved.
        type, attempt, deaths: as shown.
        priority: beanstalkd's number.
        ttr: milliseconds.
        options: the job's.
        holder: the worker's name.
        expires: when the lease ends, microseconds since 1970.
    """

    receipt: str
    id: str
    number: int
    connection: Connection
    type: str
    attempt: int
    deaths: int
    priority: int
    ttr: int
    options: JobOptions
    holder: str
    expires: int

    @property
    def place(self) -> tuple[str, int]:
        """The server process it is in, and its number there: another process begins to count anew."""
        return self.connection.instance, self.number


class Corrections:
    """What beanstalkd does not count, or counts otherwise, by the job's id.

    Attributes:
        unrun: reservations that were no attempts, as their jobs were released unrun.
        deaths: workers that died running it.
        acked: the jobs that are done.
    """

    def __init__(self) -> None:
        self.unrun: Recent[str, int] = Recent(_CORRECTED)
        self.deaths: Recent[str, int] = Recent(_CORRECTED)
        self.acked: Recent[str, bool] = Recent(SETTLED)

    def not_run(self, id: str) -> None:
        """A reservation of a job was no attempt."""
        self.unrun[id] = (self.unrun.get(id) or 0) + 1


class Leases:
    """All of them, by receipt and by holder, and when they end."""

    def __init__(self) -> None:
        self._by_receipt: dict[str, Reserved] = {}
        self._by_place: dict[tuple[str, int], Reserved] = {}
        self._holders: dict[str, dict[str, None]] = {}
        self._ends: list[tuple[int, str]] = []
        self._holding: Counter[Connection] = Counter()
        self.settled: Recent[str, str] = Recent(SETTLED)

    def __len__(self) -> int:
        return len(self._by_receipt)

    def get(self, receipt: str) -> Reserved | None:
        """The lease with a receipt, if it is out."""
        return self._by_receipt.get(receipt)

    def add(self, lease: Reserved) -> Reserved | None:
        """A job goes out; returns the lease of it that beanstalkd had ended, if there was one."""
        if (former := self._by_place.get(lease.place)) is not None:
            self.remove(former)
        self._by_place[lease.place] = lease
        self._by_receipt[lease.receipt] = lease
        self._holders.setdefault(lease.holder, {})[lease.receipt] = None
        self._holding[lease.connection] += 1
        heappush(self._ends, (lease.expires, lease.receipt))
        return former

    def remove(self, lease: Reserved) -> None:
        """A lease is over."""
        del self._by_receipt[lease.receipt]
        del self._by_place[lease.place]
        self._holding[lease.connection] -= 1
        if not self._holding[lease.connection]:
            del self._holding[lease.connection]
        held = self._holders[lease.holder]
        del held[lease.receipt]
        if not held:
            del self._holders[lease.holder]

    def renew(self, lease: Reserved, expires: int) -> None:
        """A lease lasts longer."""
        if expires != lease.expires:  # else it would be told twice
            lease.expires = expires
            heappush(self._ends, (expires, lease.receipt))

    def held_by(self, holder: str) -> list[str]:
        """Receipts of what a worker holds, in the order it was given."""
        return list(self._holders.get(holder, ()))

    def pop_expired(self, now: int) -> list[Expired]:
        """The leases whose time is over, each once."""
        found = []
        while self._ends and self._ends[0][0] <= now:
            expires, receipt = heappop(self._ends)
            lease = self._by_receipt.get(receipt)
            if lease is not None and lease.expires == expires:
                found.append(Expired(receipt, lease.id, lease.holder, lease.ttr / 1000))
        return found

    def next_end(self) -> int | None:
        """When the next lease ends, microseconds."""
        while self._ends:
            expires, receipt = self._ends[0]
            lease = self._by_receipt.get(receipt)
            if lease is not None and lease.expires == expires:
                return expires
            heappop(self._ends)
        return None

    def lost(self) -> list[Reserved]:
        """The leases whose connection is gone: beanstalkd has their jobs ready again."""
        if all(connection.open for connection in self._holding):
            return []
        return [lease for lease in self._by_receipt.values() if not lease.connection.open]

    def connections(self) -> Collection[Connection]:
        """Those that hold a job."""
        return self._holding.keys()

    @property
    def longest_ttr(self) -> float:
        """Seconds; 0 when none is out."""
        return max((lease.ttr for lease in self._by_receipt.values()), default=0) / 1000
