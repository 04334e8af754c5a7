"""Live jobs as they would be inserted: what it takes to move them to another engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from ...core.job import NO_OPTIONS, NewJob
from ...core.lifecycle import State
from ...core.record import FLAG_BINARY

if TYPE_CHECKING:
    from .ledger import Ledger


class Kept(Struct, frozen=True):
    """A live job.

    Attributes:
        id: as its inserter was told.
        state: where it is.
        job: what to insert so that it goes on from here; its attempts count anew.
    """

    id: str
    state: State
    job: NewJob


def live(ledger: Ledger, now: int) -> Iterator[Kept]:
    """All live jobs in the order they were inserted; nothing may change meanwhile.

    Args:
        ledger: the books.
        now: microseconds since 1970: delays and expiries count from here.

    Raises:
        DamagedJournal, Damaged, Newer: one cannot be read.
    """
    index = ledger.index
    for row in index.table.rows(0):
        number = row.chunk.number[row.at]
        loaded = index.load(row, ledger.entry(row, keep=False))
        job = index.leased.get(number) or loaded.job
        options = job.options
        if options.expires:
            left = job.inserted + options.expires - now if number in index.expires else 0
            options = msgspec.structs.replace(options, expires=max(1, left) if left else 0)
        if options == NO_OPTIONS:
            options = NO_OPTIONS
        state = index.state_of(row)
        delay = max(0, job.due - now) if state is State.DELAYED else 0
        binary = bool(job.flags & FLAG_BINARY)
        new = NewJob(job.type, loaded.payload, binary, index.prio_of(row), delay, job.ttr, options)
        yield Kept(ledger.id_of(number), state, new)
