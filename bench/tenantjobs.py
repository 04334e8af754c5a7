"""The jobs that ``tenants.py`` and ``delays.py`` have run: they say whose they were and when they ran.

Every run appends one record to the file of ``BENCH_RAN``, for all systems alike. Times are the system's
monotonic clock, the same in all processes.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from typing import Any

RECORD = struct.Struct("=cdd")
_ran = os.open(os.environ["BENCH_RAN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _note(who: str, begun: float) -> None:
    os.write(_ran, RECORD.pack(who.encode(), begun, time.monotonic()))


def work(who: str, seconds: float) -> None:
    begun = time.monotonic()
    time.sleep(seconds)
    _note(who, begun)


async def awork(who: str, seconds: float) -> None:
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    _note(who, begun)


def delayed(job: Any) -> None:
    """Write down when it was due and when it ran, both by the clock on the wall; its data is its delay."""
    os.write(_ran, RECORD.pack(b"D", job.inserted_at.timestamp() + job.data, time.time()))


def kqs(job: Any) -> None:
    """:func:`work` as a handler of KQS."""
    work(**job.data)
