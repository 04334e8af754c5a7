"""What people do to jobs by hand: kick, bury, delete, cancel, pause and resume."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Final

import msgspec

from ...core import record
from ...core.job import SECOND
from ...core.lifecycle import Event, State
from ...errors import Conflict
from ...ports import Revoked, Selection
from ..marks import Pause, Paused
from ..rules import VERBS, error_of
from .index import DONE, RESERVED
from .job import LiveJob
from .ledger import Ledger
from .replay import EventOptions
from .settle import Settler

#: Jobs changed in one append, and looked at between two turns of the loop.
_AT_ONCE: Final = 1000
_SCAN: Final = 20_000


class Controller:
    """Changes by hand.

    Args:
        ledger: the books.
        settler: ends jobs.
    """

    def __init__(self, ledger: Ledger, settler: Settler) -> None:
        self._ledger = ledger
        self._settler = settler

    async def control(self, verb: str, selection: Selection) -> int:
        if selection.ids is None:
            return await self._matching(verb, selection)
        jobs = list({job.number: job for job in map(self._ledger.find, selection.ids)}.values())
        for job in jobs:
            if job.state is DONE:
                raise Conflict(f"job {self._ledger.id_of(job.number)} is done already", field="id")
            if job.state not in VERBS[verb][1]:
                raise Conflict(f"a {job.state.name.lower()} job can't take {verb}", field="id")
        if verb == "kick" and (clash := self._ledger.index.unique.clash(job.number for job in jobs)):
            own, other = map(self._ledger.named, clash)
            raise Conflict(f"{own} can't be kicked: {other} has the same unique key", field="id")
        return await self._do(verb, jobs)

    async def _matching(self, verb: str, selection: Selection) -> int:
        """By type, state and age: some at a time, so that a million of them hold nobody up."""
        usual, allowed = VERBS[verb]
        states = usual
        if selection.state is not None:
            states = frozenset({State[selection.state.upper()]})
            if not states <= allowed:
                raise Conflict(f"a {selection.state} job can't take {verb}", field="state")
        count, start = 0, 0
        while selection.limit is None or count < selection.limit:
            numbers, start = self._find(selection, states, start, count)
            jobs = [self._ledger.job(self._ledger.index.row(number)) for number in numbers]
            count += await self._do(verb, jobs)
            if start < 0:
                break
            await asyncio.sleep(0)
        return count

    def _find(
        self, selection: Selection, states: frozenset[State], start: int, count: int
    ) -> tuple[list[int], int]:
        """The next jobs that fit, and where to go on; -1 at the end."""
        index, most = self._ledger.index, _AT_ONCE
        if selection.limit is not None:
            most = min(most, selection.limit - count)
        before = None if selection.older is None else self._ledger.now() - int(selection.older * SECOND)
        found: list[int] = []
        for row in islice(index.table.rows(start), _SCAN):
            number = row.chunk.number[row.at]
            start = number + 1
            if index.state_of(row) not in states or selection.type not in (None, index.type_of(row)):
                continue
            if before is not None and self._ledger.job(row).inserted > before:
                continue
            found.append(number)
            if len(found) == most:
                return found, start
        return found, start if next(index.table.rows(start), None) is not None else -1

    async def _do(self, verb: str, jobs: list[LiveJob]) -> int:
        """Apply a verb to jobs that can take it; returns when that is durable, with how many they were.

        A unique job is not kicked while another one with its key stands.
        """
        ledger, now = self._ledger, self._ledger.now()
        parts: list[bytes] = []
        ready: dict[str, None] = {}
        revoked: list[Revoked] = []
        first = ledger.journal.next_sequence
        for job in jobs:
            sequence = first + len(parts)
            if job.state is RESERVED:
                revoked.append(Revoked(job.receipt, job.holder))
            if verb == "cancel" and job.state is RESERVED:
                parts.append(ledger.event(Event.CANCEL, sequence, job, now, now))
                ledger.index.cancel(job)
                if ledger.watchers:
                    ledger.happened("cancelling", job)
            elif verb in ("delete", "cancel"):
                outcome = "deleted" if verb == "delete" else "cancelled"
                options = msgspec.json.encode(EventOptions(outcome=outcome))
                parts.append(ledger.event(Event.DELETE, sequence, job, now, now, options))
                self._settler.finish(job, Event.DELETE, now, outcome)
            elif verb == "bury":
                error = error_of("buried by hand", now, "bury")
                parts.append(ledger.move(job, Event.BURY, sequence, now, error=error))
            elif not ledger.index.unique.other(job.number):
                parts.append(ledger.move(job, Event.KICK, sequence, now))
                ready[job.type] = None
        if revoked:
            ledger.revoked(revoked)
        await ledger.append(parts, ready)
        return len(parts)

    # -- pauses ---------------------------------------------------------------------------------

    async def pause(self, type: str, paused: bool, by: str) -> None:
        """Hand out no job of a type, or do again; durable."""
        ledger, now = self._ledger, self._ledger.now()
        if paused:
            ledger.index.pause(type, Paused(by, now, ledger.journal.open_segment))
        else:
            ledger.index.resume(type)
        await self._write(Pause(type, paused, by, now))
        if not paused:
            ledger.notify([type])

    async def _write(self, pause: Pause) -> None:
        first = self._ledger.journal.next_sequence

        def placed(place: int) -> None:
            if (paused := self._ledger.index.paused.get(pause.type)) is not None:
                paused.segment = place >> 32

        self._ledger.when_placed(first, placed)
        await self._ledger.append([record.encode_data(record.PAUSE, first, msgspec.json.encode(pause))])

    async def carry(self, segments: list[int]) -> None:
        """Write the pauses that stand in these segments again."""
        for type, paused in list(self._ledger.index.paused.items()):
            if paused.segment in segments:
                await self._write(Pause(type, True, paused.by, paused.at))
