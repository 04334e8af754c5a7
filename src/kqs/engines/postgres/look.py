"""What the engine tells of its jobs, read from the tables when it is asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw

from ...core.fairshare import Scheduler
from ...core.job import PRIOS, SECOND, BulkRef
from ...core.lifecycle import State
from ...errors import Busy, NotFound
from ...ports import BulkStore, Clock
from ..embedded.show import shown
from ..rules import iso, limit_text, reason
from .database import Database
from .feeder import Feeder
from .ids import Ids
from .rows import COLUMNS, DONE_COLUMNS, Row, job_of

_NAMES: Final = re.compile(r'"name":"([^"]+)"')
NAMES: Final = ("delayed", "ready", "reserved", "buried", "done")


class Look:
    """Reads jobs."""

    def __init__(
        self, database: Database, ids: Ids, clock: Clock, scheduler: Scheduler, bulk: BulkStore | None
    ) -> None:
        self._database, self._ids, self._clock, self._bulk = database, ids, clock, bulk
        self._scheduler = scheduler
        self.feeder: Feeder | None = None

    async def find(self, id: str) -> Row:
        """A job, live or finished lately.

        Raises:
            NotFound: there is none.
            Busy: it was accepted, and is not in the tables yet.
        """
        number = self._ids.number(id)
        if number is not None:
            late = self.feeder is not None and not await self.feeder.arrived(number)
            try:
                if (job := await self._find(number)) is not None:
                    return job
            except Busy:
                if not late:
                    raise
            if late:
                raise Busy(f"job {id} is accepted, and not in PostgreSQL yet: ask again")
        raise NotFound(f"no job {id!r} here; finished jobs are forgotten after a while", field="id")

    async def _find(self, number: int) -> Row | None:
        for columns, table in ((COLUMNS, "job"), (DONE_COLUMNS, "done")):
            rows = await self._database.rows(f"SELECT {columns} FROM {table} WHERE id = %s", [number])
            if rows:
                return job_of(rows[0])
        return None

    async def job(self, id: str, data: bool) -> dict[str, Any]:
        number = self._ids.number(id)
        try:
            job = await self.find(id)
        except NotFound:
            if number is None or (kept := await self._result(number)) is None:
                raise
            type_, at, value = kept
            ended = {"id": id, "type": type_, "state": "done", "outcome": "ok", "finished_at": iso(at)}
            return {**ended, "result": value}
        payload = None
        if data and job.state is not State.DONE:
            if job.options.bulk is None:
                rows = await self._database.rows("SELECT data FROM job WHERE id = %s", [job.number])
                payload = rows[0][0] if rows else None
            elif self._bulk is not None:
                payload = await self._bulk.get(job.options.bulk)
        view = shown(job, id, payload)
        if job.state is State.DONE and (kept := await self._result(job.number)) is not None:
            view["result"] = kept[2]
        return view

    async def _result(self, number: int) -> tuple[str, int, Raw] | None:
        rows = await self._database.rows(
            "SELECT type, at, value, bulk FROM result WHERE id = %s AND until > %s",
            [number, self._clock.now()],
        )
        if not rows:
            return None
        type_, at, text, bulk = rows[0]
        if bulk is not None and self._bulk is not None:
            return type_, at, Raw(await self._bulk.get(msgspec.json.decode(bulk, type=BulkRef)))
        return type_, at, Raw(text.encode())

    async def jobs(
        self, state: str | None, type_: str | None, fair: str | None, limit: int, after: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        start = 0
        if after is not None:
            number = self._ids.number(after)
            if number is None:
                raise NotFound(f"after: {after!r} is no id of this server", field="after")
            start = number
        done = state == "done"
        wheres: list[str] = ["id > %s"]
        values: list[Any] = [start]
        if state is not None and not done:
            wheres.append("state = %s")
            values.append(int(State[state.upper()]))
        for column, value in (("type", type_), ("fair", fair)):
            if value is not None:
                wheres.append(f"{column} = %s")
                values.append(value)
        columns, table = (DONE_COLUMNS, "done") if done else (COLUMNS, "job")
        query = f"SELECT {columns} FROM {table} WHERE {' AND '.join(wheres)} ORDER BY id LIMIT %s"
        rows = await self._database.rows(query, [*values, limit + 1])
        page = [shown(job, self._ids.of(job.number)) for job in map(job_of, rows[:limit])]
        return page, page[-1]["id"] if len(rows) > limit else None

    async def counts(self, type_: str | None, done: dict[str, int]) -> dict[str, Any]:
        """``jobs``, ``types`` and ``oldest_ready_age``."""
        rows = await self._database.rows(
            "SELECT type, state, count(*), min(due) FROM job"
            " WHERE %s::text IS NULL OR type = %s GROUP BY 1, 2",
            [type_, type_],
        )
        types: dict[str, dict[str, int]] = {}
        oldest: int | None = None
        for name, state, count, due in rows:
            types.setdefault(name, dict.fromkeys(NAMES, 0))[NAMES[state - 1]] = count
            if state == State.READY:
                oldest = due if oldest is None else min(oldest, due)
        for name, count in done.items():
            if type_ is None or name == type_:
                types.setdefault(name, dict.fromkeys(NAMES, 0))["done"] = count
        totals = {name: sum(values[name] for values in types.values()) for name in NAMES}
        age = None if oldest is None else max(0, self._clock.now() - oldest) / SECOND
        return {"jobs": totals, "types": types, "oldest_ready_age": age}

    async def ready_types(self, among: Callable[[str], bool] | None) -> Iterator[tuple[str, int]]:
        """Types with ready jobs that may be handed out, and how many, sorted."""
        rows = await self._database.rows(
            "SELECT type, count(*) FROM job WHERE state = 2 AND type NOT IN (SELECT type FROM pause)"
            " GROUP BY type ORDER BY type"
        )
        held_back = self._scheduler.held_back
        return iter([(t, n) for t, n in rows if (among is None or among(t)) and not held_back(t)])

    async def bulk_names(self) -> set[str]:
        """Payloads in the bulk store that rows name, also a row that does not read."""
        rows = await self._database.rows(
            "SELECT options FROM job WHERE options LIKE '%%\"bulk\"%%' UNION ALL"
            " SELECT bulk FROM result WHERE bulk IS NOT NULL"
        )
        return {name for row in rows for name in _NAMES.findall(row[0])}

    async def why(self, id: str) -> dict[str, Any]:
        job = await self.find(id)
        now = self._clock.now()
        paused = []
        if job.state in (State.DELAYED, State.READY):
            for by, at in await self._database.rows("SELECT by, at FROM pause WHERE type = %s", [job.type]):
                who = f" by {by}" if by else ""
                ends = f"'kqs resume {job.type}' ends it"
                text = f"type {job.type} is paused{who} since {iso(at)}; {ends}"
                paused.append(reason("paused", text, by=by, since=iso(at)))
        reasons: list[dict[str, Any]]
        if job.state is State.DELAYED:
            due, left = iso(job.due), round(max(0, job.due - now) / SECOND, 3)
            if job.attempt and job.error is not None:
                ended = f"attempt {job.attempt} ended ({job.error['message']})"
                text = f"{ended}; it is run again {due}, in {left:g} s"
                reasons = [reason("retrying", text, due_at=due, seconds=left, last_error=job.error)]
            else:
                text = f"it is not due before {due}, in {left:g} s"
                reasons = [reason("delayed", text, due_at=due, seconds=left)]
            reasons += paused
        elif job.state is State.READY:
            reasons = paused + self._place(job)
        elif job.state is State.RESERVED:
            started, expires = iso(job.leased), iso(job.expires)
            who = job.holder or "a worker"
            text = f"{who} has it since {started}, attempt {job.attempt}; the lease ends {expires}"
            reasons = [
                reason("running", text, leased_by=job.holder, started_at=started, lease_expires_at=expires)
            ]
            if job.cancelled:
                reasons.append(reason("cancelling", "it was cancelled and ends with this attempt"))
        elif job.state is State.BURIED:
            error = job.error or {"message": "no reason is known", "kind": "unknown"}
            text = f"it was buried: {error['message']}; 'kqs kick' brings it back"
            reasons = [reason("buried", text, last_error=error)]
        else:
            at = iso(job.finished)
            text = f"it is over: {job.outcome} at {at}"
            reasons = [reason("done", text, outcome=job.outcome, finished_at=at)]
        return {"id": id, "type": job.type, "state": job.state.name.lower(), "reasons": reasons}

    def _place(self, job: Row) -> list[dict[str, Any]]:
        """Who comes first, as this server's scheduler has it."""
        lane = self._scheduler.lane(job.type, job.options.fair)
        reasons = [
            reason("limit", limit_text(limit), limit=limit) for limit in self._scheduler.closed_limits(lane)
        ]
        place = self._scheduler.place(lane, job.prio, job.number)
        if higher := place["higher"]:
            text = f"jobs of {higher} lanes with a higher priority than {PRIOS[job.prio]} go first"
            reasons.append(reason("priority", text, lanes=higher))
        if ahead := place["ahead"]:
            name = lane.type if lane.key is None else f"{lane.type}, {lane.key}"
            figures: dict[str, Any] = {"ahead": ahead, "running": lane.running}
            text = f"{ahead} jobs are before it in its lane ({name})"
            if place["rate"] is not None:
                figures["seconds"] = round(ahead / place["rate"], 3)
                text += f"; at the rate of late it is its turn in {figures['seconds']:g} s"
            reasons.append(reason("behind", text, **figures))
        if before := place["before"]:
            text = f"it is the turn of {before} other lanes of its type first: they had less worker time"
            reasons.append(reason("turn", text, lanes=before))
        return reasons
