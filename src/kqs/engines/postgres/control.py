"""Changes by hand: kick, bury, delete, cancel, pause."""

from __future__ import annotations

from typing import Final

from ...core.job import SECOND
from ...core.lifecycle import State
from ...errors import Conflict
from ...ports import Clock, Revoked, Selection
from ..rules import VERBS, error_of
from .changes import Changed, Changes
from .database import Connection, Database
from .look import Look
from .presence import Presence, Told
from .rows import Row
from .settle import Decider

#: Jobs changed in one transaction.
_AT_ONCE: Final = 1000


class Controller:
    """Changes by hand.

    Args:
        database, clock: where, and time.
        changes: applies them.
        look: finds jobs.
        presence: tells other servers.
    """

    def __init__(
        self, database: Database, clock: Clock, changes: Changes, look: Look, presence: Presence
    ) -> None:
        self._database, self._clock, self._changes = database, clock, changes
        self._look, self._presence = look, presence
        self._candidates, self._ids = changes.candidates, changes.ids
        self._paused: set[str] = set()

    async def control(self, verb: str, selection: Selection) -> int:
        usual, allowed = VERBS[verb]
        if selection.ids is not None:
            numbers = []
            for id in selection.ids:
                job = await self._look.find(id)
                if job.state is State.DONE:
                    raise Conflict(f"job {id} is done already", field="id")
                numbers.append(job.number)
            return await self._do(verb, numbers, allowed, exact=True)
        states = usual
        if selection.state is not None:
            states = frozenset({State[selection.state.upper()]})
            if not states <= allowed:
                raise Conflict(f"a {selection.state} job can't take {verb}", field="state")
        before = None if selection.older is None else self._clock.now() - int(selection.older * SECOND)
        count = after = 0
        while selection.limit is None or count < selection.limit:
            most = _AT_ONCE
            if selection.limit is not None:
                most = min(most, selection.limit - count)
            rows = await self._database.rows(
                "SELECT id FROM job WHERE id > %s AND state = ANY(%s) AND (%s::text IS NULL OR type = %s)"
                " AND (%s::bigint IS NULL OR inserted <= %s) ORDER BY id LIMIT %s",
                [after, [int(s) for s in states], selection.type, selection.type, before, before, most],
            )
            if not rows:
                break
            after = rows[-1][0]
            count += await self._do(verb, [row[0] for row in rows], states, exact=False)
        return count

    async def _do(self, verb: str, numbers: list[int], states: frozenset[State], *, exact: bool) -> int:
        revoked: list[tuple[Revoked, int]] = []
        cancelling: list[Row] = []

        async def decide(connection: Connection, decider: Decider, rows: dict[int, Row]) -> list[Changed]:
            revoked.clear()
            cancelling.clear()
            changed: list[Changed] = []
            kicked: dict[tuple[str, str], int] = {}
            for number in dict.fromkeys(numbers):
                job = rows.get(number)
                if job is None or job.state not in states:
                    if not exact:
                        continue
                    if job is None:
                        raise Conflict(f"job {self._ids.of(number)} is done already", field="id")
                    raise Conflict(f"a {job.state.name.lower()} job can't take {verb}", field="id")
                if verb == "kick" and (unique := job.options.unique) is not None:
                    other = await _standing(connection, job) or kicked.get((job.type, unique.key))
                    if other is not None and other != number:
                        if not exact:
                            continue
                        own, name = self._ids.of(number), self._ids.of(other)
                        raise Conflict(
                            f"job {own} can't be kicked: job {name} has the same unique key", field="id"
                        )
                    kicked[job.type, unique.key] = number
                receipt = job.receipt
                if receipt:
                    revoked.append((Revoked(receipt, job.holder), number))
                if verb == "cancel" and job.state is State.RESERVED:
                    job.cancelled = True
                    cancelling.append(job)
                    continue
                if verb in ("delete", "cancel"):
                    event = decider.finish(job, "deleted" if verb == "delete" else "cancelled", "")
                elif verb == "bury":
                    event = decider.bury(job, error_of("buried by hand", decider.now, "bury"))
                else:
                    job.state, job.due, job.overdue, event = State.READY, decider.now, 0, "kicked"
                changed.append(Changed(job, receipt, -1, event))
            if cancelling:
                await connection.execute(
                    "UPDATE job SET cancelled = true WHERE id = ANY(%s)", [[job.number for job in cancelling]]
                )
            return changed

        changed = await self._changes.change(numbers, decide)
        if revoked:
            own = [lease for lease, _n in revoked]
            self._changes.revoked(own)
            self._presence.tell(Told(revoked=[(lease.receipt, lease.holder) for lease in own]))
        self._changes.happened(("cancelling", job) for job in cancelling)
        return len(changed) + len(cancelling)

    async def pause(self, type: str, paused: bool, *, by: str = "") -> None:
        if paused:
            await self._database.rows(
                "INSERT INTO pause VALUES (%s, %s, %s) ON CONFLICT (type) DO UPDATE SET by = excluded.by,"
                " at = excluded.at",
                [type, by, self._clock.now()],
            )
        else:
            await self._database.rows("DELETE FROM pause WHERE type = %s", [type])
        self._set_paused(self._paused | {type} if paused else self._paused - {type})
        if not paused:
            self._candidates.dirty = True
            self._changes.tell_ready([type])
        self._presence.tell(Told(pauses=True))

    def _set_paused(self, types: set[str]) -> set[str]:
        """Have the scheduler know of pauses; returns the types that were resumed."""
        scheduler = self._candidates.scheduler
        resumed = self._paused - types
        for type_ in types - self._paused:
            scheduler.pause(type_)
        for type_ in resumed:
            scheduler.resume(type_)
        self._paused = types
        return resumed

    async def load_pauses(self) -> None:
        resumed = self._set_paused({row[0] for row in await self._database.rows("SELECT type FROM pause")})
        if resumed:
            self._candidates.dirty = True
            self._changes.notify(sorted(resumed))

    async def paused(self) -> list[str]:
        return sorted(row[0] for row in await self._database.rows("SELECT type FROM pause"))


async def _standing(connection: Connection, job: Row) -> int | None:
    assert job.options.unique is not None
    cursor = await connection.execute(
        "SELECT id FROM job WHERE type = %s AND unique_key = %s AND id <> %s"
        " AND (state IN (1, 2) OR (state = 3 AND NOT unique_queued))",
        [job.type, job.options.unique.key, job.number],
    )
    row = await cursor.fetchone()
    return None if row is None else int(row[0])
