"""What the engine tells of its jobs."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec import Raw

from ...core import record
from ...core.job import SECOND
from ...core.lifecycle import State
from ...errors import NotFound
from ...ports import BulkStore
from ..rules import iso
from .index import DONE
from .job import LiveJob, load
from .ledger import Ledger
from .results import Result, decode_result
from .show import shown

#: Most jobs looked at by one ``jobs`` call between two turns of the loop.
_SCAN: Final = 20_000


class Inspector:
    """Answers ``job``, ``jobs`` and the jobs' part of ``stats``.

    Args:
        ledger: the books.
        bulk: where oversize payloads lie.
    """

    def __init__(self, ledger: Ledger, bulk: BulkStore | None) -> None:
        self._ledger = ledger
        self._bulk = bulk

    async def job(self, id: str, *, data: bool = False) -> dict[str, Any]:
        try:
            job = self._ledger.find(id)
        except NotFound:
            number = self._ledger.number_of(id)
            if number is None or (result := await self._result(number)) is None:
                raise
            return {**_remembered(result, id), "result": result.value}
        payload = None
        if data and job.state is not DONE:
            bulk = job.options.bulk
            if bulk is None:
                payload = load(self._ledger.entry(self._ledger.index.row(job.number)), job.place).payload
            elif self._bulk is not None:
                payload = await self._bulk.get(bulk)
        view = shown(job, self._ledger.id_of(job.number), payload)
        if job.state is DONE and (result := await self._result(job.number)) is not None:
            view["result"] = result.value
        return view

    async def _result(self, number: int) -> Result | None:
        """A job's kept result, while its time is not over."""
        kept = self._ledger.index.results.get(number)
        if kept is None or kept.until <= self._ledger.now():
            return None
        result = kept.pending or decode_result(record.decode_data(self._ledger.read(kept.place, kept.size)))
        if result.bulk is not None and self._bulk is not None:
            return msgspec.structs.replace(result, value=Raw(await self._bulk.get(result.bulk)))
        return result

    async def jobs(
        self, *, state: str | None, type: str | None, fair: str | None = None, limit: int, after: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        start = self._number_after(after)
        if state == "done":
            return self._done_jobs(start, type, fair, limit)
        found: list[LiveJob] = []
        index = self._ledger.index
        wanted = None if state is None else State[state.upper()]
        while True:
            rows = list(islice(index.table.rows(start), _SCAN))
            for row in rows:
                lane = index.lane_of(row)
                if (
                    (wanted is None or index.state_of(row) is wanted)
                    and (type is None or lane.type == type)
                    and (fair is None or lane.key == fair)
                ):
                    if len(found) == limit:
                        return self._page(found), self._ledger.id_of(found[-1].number)
                    found.append(self._ledger.job(row))
            if len(rows) < _SCAN:
                return self._page(found), None
            start = rows[-1].chunk.number[rows[-1].at] + 1
            await asyncio.sleep(0)  # a sparse page must not hold up everybody else

    def _done_jobs(
        self, start: int, type: str | None, fair: str | None, limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        latest = {found.number: found for found in self._ledger.index.history.values()}
        numbers = sorted(number for number in latest if number >= start)
        found: list[LiveJob] = []
        for number in numbers:
            job = self._ledger.ended(latest[number])
            if (
                job is not None
                and (type is None or job.type == type)
                and (fair is None or job.options.fair == fair)
            ):
                if len(found) == limit:
                    return self._page(found), self._ledger.id_of(found[-1].number)
                found.append(job)
        return self._page(found), None

    def _page(self, jobs: list[LiveJob]) -> list[dict[str, Any]]:
        return [shown(job, self._ledger.id_of(job.number)) for job in jobs]

    def _number_after(self, after: str | None) -> int:
        if after is None:
            return 0
        number = self._ledger.number_of(after)
        if number is None:
            raise NotFound(f"after: {after!r} is no id of this server", field="after")
        return number + 1

    def counts(self, type: str | None) -> dict[str, Any]:
        """``jobs``, ``types`` and ``oldest_ready_age``, of one type or of all."""
        names = ("delayed", "ready", "reserved", "buried", "done")
        counts = self._ledger.index.counts
        types = {
            name: dict(zip(names, values[1:], strict=True))
            for name, values in counts.items()
            if type is None or name == type
        }
        totals = dict.fromkeys(names, 0)
        for values in types.values():
            for name in names:
                totals[name] += values[name]
        oldest = self._ledger.index.oldest_ready()
        age = None if oldest is None else max(0, self._ledger.now() - oldest.chunk.due[oldest.at]) / SECOND
        return {"jobs": totals, "types": types, "oldest_ready_age": age}


def _remembered(result: Result, id: str) -> dict[str, Any]:
    """What is known of a job that is forgotten but for its result."""
    return {
        "id": id,
        "type": result.type,
        "state": "done",
        "outcome": "ok",
        "finished_at": iso(result.at),
    }
