"""Why a job is not running: what the engine knows of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.job import PRIOS, SECOND
from ...core.lifecycle import State
from ..rules import iso, limit_text, reason
from .index import Index
from .job import LiveJob
from .ledger import Ledger


class Explainer:
    """Answers ``why``. Everything in it is looked up when asked.

    Args:
        ledger: the books.
        held_back: whether nothing is handed out at present, for want of space.
    """

    def __init__(self, ledger: Ledger, held_back: Callable[[], bool]) -> None:
        self._ledger = ledger
        self._held_back = held_back

    def why(self, id: str) -> dict[str, Any]:
        """See :meth:`kqs.ports.Engine.why`."""
        job = self._ledger.find(id)
        state = {
            State.DELAYED: self._delayed,
            State.READY: self._ready,
            State.RESERVED: self._reserved,
            State.BURIED: self._buried,
            State.DONE: self._done,
        }
        reasons = state[job.state](job)
        return {"id": id, "type": job.type, "state": job.state.name.lower(), "reasons": reasons}

    def _delayed(self, job: LiveJob) -> list[dict[str, Any]]:
        due, left = iso(job.due), _seconds(job.due - self._ledger.now())
        if job.error is not None and job.error["kind"] == "bulk":
            text = f"{job.error['message']}; it is tried again {due}, in {left:g} s"
            waits = reason("bulk", text, due_at=due, seconds=left, last_error=job.error)
        elif job.attempt and job.error is not None:
            text = (
                f"attempt {job.attempt} ended ({job.error['message']}); it is run again {due}, in {left:g} s"
            )
            waits = reason("retrying", text, due_at=due, seconds=left, last_error=job.error)
        else:
            waits = reason("delayed", f"it is not due before {due}, in {left:g} s", due_at=due, seconds=left)
        return [waits, *self._paused(job.type)]

    def _ready(self, job: LiveJob) -> list[dict[str, Any]]:
        index = self._ledger.index
        lane = index.lane_of(index.row(job.number))
        reasons = self._paused(job.type)
        if self._held_back():
            reasons.append(reason("disk_full", "the disk is full: nothing is handed out until space is free"))
        for limit in index.scheduler.closed_limits(lane):
            reasons.append(reason("limit", limit_text(limit), limit=limit))
        return reasons + self._place(index, job)

    def _paused(self, type_: str) -> list[dict[str, Any]]:
        pause = self._ledger.index.paused.get(type_)
        if pause is None:
            return []
        by = f" by {pause.by}" if pause.by else ""
        since = f" since {iso(pause.at)}" if pause.at else ""
        text = f"type {type_} is paused{by}{since}; 'kqs resume {type_}' ends it"
        return [reason("paused", text, by=pause.by, since=iso(pause.at) if pause.at else None)]

    @staticmethod
    def _place(index: Index, job: LiveJob) -> list[dict[str, Any]]:
        """Who comes first."""
        lane = index.lane_of(index.row(job.number))
        place = index.scheduler.place(lane, job.prio, job.number)
        ahead, before, higher, rate = place["ahead"], place["before"], place["higher"], place["rate"]
        name = lane.type if lane.key is None else f"{lane.type}, {lane.key}"
        reasons = []
        if higher:
            text = f"jobs of {higher} lanes with a higher priority than {PRIOS[job.prio]} go first"
            reasons.append(reason("priority", text, lanes=higher))
        if ahead:
            figures: dict[str, Any] = {"ahead": ahead, "running": lane.running}
            text = f"{ahead} jobs are before it in its lane ({name})"
            if rate is not None:
                figures["seconds"] = _seconds(ahead / rate * SECOND)
                text += f"; at the rate of late it is its turn in {figures['seconds']:g} s"
            reasons.append(reason("behind", text, **figures))
        if before:
            text = f"it is the turn of {before} other lanes of its type first: they had less worker time"
            reasons.append(reason("turn", text, lanes=before))
        return reasons

    def _reserved(self, job: LiveJob) -> list[dict[str, Any]]:
        text = (
            f"{job.holder or 'a worker'} has it since {iso(job.leased)}, attempt {job.attempt}; "
            f"the lease ends {iso(job.expires)}"
        )
        started, expires = iso(job.leased), iso(job.expires)
        reasons = [
            reason("running", text, leased_by=job.holder, started_at=started, lease_expires_at=expires)
        ]
        if job.cancelled:
            reasons.append(reason("cancelling", "it was cancelled and ends with this attempt"))
        return reasons

    @staticmethod
    def _buried(job: LiveJob) -> list[dict[str, Any]]:
        error = job.error or {"message": "no reason is known", "kind": "unknown"}
        text = f"it was buried: {error['message']}; 'kqs kick' brings it back"
        return [reason("buried", text, last_error=error)]

    @staticmethod
    def _done(job: LiveJob) -> list[dict[str, Any]]:
        at = iso(job.finished)
        return [reason("done", f"it is over: {job.outcome} at {at}", outcome=job.outcome, finished_at=at)]


def _seconds(microseconds: float) -> float:
    return round(max(0.0, microseconds) / SECOND, 3)
