"""How a job looks to a caller (CALLS: "Job, as shown")."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from msgspec import Raw

from ...core.job import DEFAULT_SCOPE, PRIOS
from ...core.lifecycle import State
from ...core.record import FLAG_BINARY
from ..rules import iso
from .job import LiveJob


def payload_size(job: LiveJob) -> int:
    """Bytes of the payload as stored."""
    if job.options.bulk is not None:
        return job.options.bulk.size
    return job.payload_size


def shown(job: LiveJob, id: str, data: bytes | None = None) -> dict[str, Any]:
    """A job as ``job`` and ``jobs`` answer it.

    Args:
        job: the job.
        id: its id.
        data: its payload when that was asked for.
    """
    view: dict[str, Any] = {
        "id": id,
        "type": job.type,
        "state": job.state.name.lower(),
        "prio": PRIOS[job.prio],
        "attempt": job.attempt,
        "inserted_at": iso(job.inserted),
        "due_at": iso(job.due),
        "ttr": job.ttr / 1000,
        "size": payload_size(job),
    }
    if job.options.key is not None:
        view["key"] = job.options.key
    if job.options.fair is not None:
        view["fair"] = job.options.fair
    if (unique := job.options.unique) is not None:
        view["unique"] = unique.key
        if unique.scope != DEFAULT_SCOPE:
            view["unique_scope"] = unique.scope
    if job.state is State.RESERVED:
        view["leased_by"] = job.holder
        view["lease_expires_at"] = iso(job.expires)
        if job.cancelled:
            view["cancelled"] = True
    if job.leased:
        view["started_at"] = iso(job.leased)
    if job.finished:
        view["finished_at"] = iso(job.finished)
    if job.error is not None:
        view["last_error"] = job.error
    if job.deaths:
        view["deaths"] = job.deaths
    if job.progress is not None:
        view["progress"] = job.progress
    if job.outcome:
        view["outcome"] = job.outcome
    if data is not None:
        if job.flags & FLAG_BINARY:
            view["data64"] = b64encode(data).decode()
        else:
            view["data"] = Raw(data)
    return view
