"""A life of a journal, and the account of what it was told, kept outside of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from kqs.core import record
from kqs.errors import JournalFailed
from kqs.journal.log import Journal, Location
from kqs.testing.faults import PowerLost

from .rig import Rig, append

#: What ends a life of the journal when the disk fails.
ENDS = (PowerLost, JournalFailed, OSError)


@dataclass
class Ledger:
    """Calls (batches of payloads) that were tried, in order, and what came of them."""

    tried: list[tuple[bytes, ...]] = field(default_factory=list)
    acked: dict[int, Location] = field(default_factory=dict)
    #: Segments before this one may be gone: they were given up.
    dropped: int = 0
    #: No sequence up to this one may be given again.
    used: int = 0

    def next_call(self, size: int, count: int) -> tuple[bytes, ...]:
        """Payloads that tell which call they are of, noted as tried."""
        call = len(self.tried)
        payloads = tuple(b"%d/%d/%d:" % (call, n, count) + b"." * size for n in range(count))
        self.tried.append(payloads)
        return payloads

    async def write(self, journal: Journal, size: int, count: int = 1) -> None:
        call = len(self.tried)
        payloads = self.next_call(size, count)
        first = journal.next_sequence
        async with asyncio.timeout(10):
            self.acked[call] = await append(journal, *payloads)
        self.used = max(self.used, first + count - 1)

    def drop(self, journal: Journal, segment: int) -> None:
        self.dropped = max(self.dropped, segment)
        journal.drop_before(segment)

    def check(self, rig: Rig, journal: Journal) -> None:
        """What was recovered is what was tried, whole and in order, with everything that was acked."""
        recovered: list[int] = []
        left = list(rig.data)
        while left:
            call = int(left[0].split(b"/")[0])
            payloads = self.tried[call]
            assert tuple(left[: len(payloads)]) == payloads, f"call {call} is there in part"
            del left[: len(payloads)]
            recovered.append(call)
        assert recovered == sorted(set(recovered)), "calls are out of order"
        for call, location in self.acked.items():
            assert call in recovered or location.segment < self.dropped, f"acked call {call} is lost"
        sequences = [record.decode_accept(entry.entry).sequence for entry in rig.replayed]
        assert sequences == sorted(set(sequences))
        assert journal.next_sequence > max([self.used, *sequences])


async def live(rig: Rig, ledger: Ledger) -> None:
    """Everything a journal does: create, append, batch, rotate, give up segments, close, open again.

    Raises:
        One of :data:`ENDS`: the disk failed.
    """
    for _ in range(2):
        journal = rig.open()
        ledger.check(rig, journal)
        try:
            for number in range(6):
                await ledger.write(journal, 40 + 60 * number)
            await ledger.write(journal, 30, 8)
            await ledger.write(journal, 900)
            ledger.drop(journal, journal.open_segment - 1)
            await ledger.write(journal, 10)
            await ledger.write(journal, 200, 3)
            ledger.drop(journal, journal.open_segment)
            await ledger.write(journal, 10)
            await journal.sync()
        finally:
            await journal.close()


async def check_after(rig: Rig, ledger: Ledger) -> None:
    """The journal opens, holds what it must, and works."""
    rig.disk.inject = None
    journal = rig.open()
    ledger.check(rig, journal)
    await ledger.write(journal, 20)
    await journal.close()
    journal = rig.open()
    ledger.check(rig, journal)
    assert rig.data[-1] == ledger.tried[-1][-1]
    await journal.close()
