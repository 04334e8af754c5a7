"""Is this server getting work done? Progress, not mere presence, is what counts."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class HealthFacts(Struct):
    """What the checks look at, gathered by the desk.

    Attributes:
        accepting: whether the journal takes new jobs.
        failed: why the journal can't be trusted any more, or None.
        leaving: whether the server is shutting down.
        draining: whether it hands out no jobs.
        disk_free, disk_total: bytes of the data directory's file system.
        eligible: ready jobs for which a worker is here, by type.
        idle_for: seconds since a job last completed or there was last nothing eligible.
        longest_ttr: seconds, of the leases that are out; 0 when there are none.
        workers: states of the local workers.
        away: why the engine cannot be asked, or empty.
    """

    accepting: bool
    failed: str | None
    leaving: bool
    draining: bool
    disk_free: int
    disk_total: int
    eligible: dict[str, int]
    idle_for: float
    longest_ttr: float
    workers: list[dict[str, Any]]
    away: str = ""


def assess(facts: HealthFacts, *, stall: float, disk_share: float) -> dict[str, Any]:
    """The answer to ``health``: ``{status, checks: [{name, status, text}]}``.

    Args:
        facts: the state now.
        stall: seconds without progress that are still fine.
        disk_share: share of the disk that must be free.
    """
    checks = [
        _journal(facts),
        _disk(facts, disk_share),
        _progress(facts, max(stall, facts.longest_ttr + stall / 2 if facts.longest_ttr else 0.0)),
        _workers(facts),
    ]
    if facts.away:
        checks.append(_check("engine", "degraded", f"jobs wait: {facts.away}"))
    order = ("ok", "degraded", "failing")
    status = max((check["status"] for check in checks), key=order.index)
    return {"status": status, "checks": checks}


def _check(name: str, status: str, text: str) -> dict[str, str]:
    return {"name": name, "status": status, "text": text}


def _journal(facts: HealthFacts) -> dict[str, str]:
    if facts.failed is not None:
        return _check("journal", "failing", facts.failed)
    if facts.leaving:
        return _check("journal", "degraded", "the server is shutting down and takes no new jobs")
    if not facts.accepting:
        return _check("journal", "degraded", "new jobs are refused: no disk space for another segment")
    return _check("journal", "ok", "accepting jobs")


def _disk(facts: HealthFacts, share: float) -> dict[str, str]:
    free = facts.disk_free / facts.disk_total if facts.disk_total else 1.0
    text = f"{free:.0%} of the data directory's disk is free ({facts.disk_free / 2**30:.1f} GiB)"
    return _check("disk", "degraded" if free < share else "ok", text)


def _progress(facts: HealthFacts, limit: float) -> dict[str, str]:
    queued = sum(facts.eligible.values())
    if not queued:
        return _check("progress", "ok", "nothing is waiting that a worker here could run")
    if facts.idle_for < limit:
        return _check("progress", "ok", f"{queued} ready; a job completed within {limit:.0f} s")
    types = ", ".join(sorted(facts.eligible)[:5])
    return _check(
        "progress",
        "failing",
        f"{queued} jobs ready with workers for them ({types}), yet none completed for {facts.idle_for:.0f} s",
    )


def _workers(facts: HealthFacts) -> dict[str, str]:
    if facts.draining and not facts.leaving:
        text = "draining: jobs are accepted, and none is handed out until 'kqs drain --off'"
        return _check("workers", "degraded", text)
    down = [w["name"] for w in facts.workers if w["state"] == "restarting"]
    if down:
        return _check("workers", "degraded", f"restarting after a crash: {', '.join(down)}")
    if broken := sorted({type_ for w in facts.workers for type_ in w["broken"]}):
        text = f"handlers that cannot be imported (the log says why), their jobs wait: {', '.join(broken)}"
        return _check("workers", "degraded", text)
    return _check("workers", "ok", f"{len(facts.workers)} local worker processes")
