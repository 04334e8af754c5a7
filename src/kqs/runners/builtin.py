"""The handler every server has: the job type ``ping`` of the seed's quick test."""

from __future__ import annotations

import datetime as dt

import msgspec

from ..core.handler import Job


def ping(job: Job) -> None:
    """Print one line with the job's payload as compact JSON."""
    payload = f"<{len(job.data)} bytes>" if isinstance(job.data, bytes) else _compact(job.data)
    now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    print(f"{now} ping running, payload = {payload}", flush=True)


def _compact(data: object) -> str:
    return msgspec.json.encode(data).decode()
