"""Golden journals: data directories that were written once and are read for ever (promise G10).

``tests/data/journals/format-N/CASE/`` holds ``data``, the directory as the server left it, and
``expected.json``, what must be found in it. They were made by ``tests/data/journals/make.py`` with the first
version of their format and are never made again.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec

from kqs.core.job import JobOptions, NewJob, Unique
from kqs.core.outcome import Settlement
from kqs.core.shares import Shares
from kqs.engines.embedded import EmbeddedEngine
from kqs.journal.disk import RealDisk, ThreadExecutor
from kqs.stores.files import FileStore
from kqs.testing.clock import VirtualClock
from kqs.testing.embedded import open_embedded

JOURNALS = Path(__file__).parent.parent / "data" / "journals"


class Golden(NamedTuple):
    """One case.

    Attributes:
        name: ``format-N/CASE``.
        data: its data directory; work on a copy.
        expected: what is found in it.
    """

    name: str
    data: Path
    expected: dict[str, Any]


def golden_journals() -> list[Golden]:
    """All cases of all formats."""
    return [
        Golden(
            str(path.parent.relative_to(JOURNALS)),
            path.parent / "data",
            msgspec.json.decode(path.read_bytes()),
        )
        for path in sorted(JOURNALS.glob("format-*/*/expected.json"))
    ]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory, by path relative to it."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


async def state_of(engine: EmbeddedEngine) -> dict[str, Any]:
    """Everything that can be seen of an engine's jobs, as plain JSON values; changes nothing."""
    views, after = await engine.jobs(state=None, type=None, limit=1000, after=None)
    done, more = await engine.jobs(state="done", type=None, limit=1000, after=None)
    assert after is None and more is None
    state = {
        "jobs": [await _whole(engine, view["id"]) for view in views],
        "done": done,
        "counts": (await engine.stats())["jobs"],
        "next_sequence": engine.journal.next_sequence,
        "keys": (await engine.stats())["keys"],
    }
    decoded: dict[str, Any] = json.loads(msgspec.json.encode(state))
    return decoded


async def _whole(engine: EmbeddedEngine, id: str) -> dict[str, Any]:
    """A job as shown, with the very bytes of its payload, and with its settings, which are not shown."""
    view = await engine.job(id, data=True)
    if "data" in view:
        view["data"] = bytes(view["data"]).decode()
    return view | {"options": engine._ledger.find(id).options}


async def recovered(golden: Golden, folder: Path) -> dict[str, Any]:
    """Open a copy of the case, and ask all that its ``expected.json`` tells the answers of."""
    data = folder / "data"
    shutil.copytree(golden.data, data)
    expected = golden.expected
    executor = ThreadExecutor(asyncio.get_running_loop())
    store = FileStore(str(data / "bulk"))
    clock = VirtualClock(expected["opened_at"])
    engine = open_embedded(RealDisk(), executor, str(data), clock, Random(1), bulk=store)
    engine.arrange(Shares(order="fifo"))  # the order that does not depend on how long jobs run
    found = {
        "opened_at": expected["opened_at"],
        "epoch": engine.journal.epoch,
        "torn": engine.journal.torn,
        **await state_of(engine),
        **await _standing(engine, expected),
        "order": [lease.id for lease in await engine.reserve((), 1000, holder="last")],
        "known_keys": {key: await _job_of(engine, key) for key in expected["known_keys"]},
        **await _added(engine, expected),
        "settled": [
            [receipt, outcome, await _settle(engine, receipt, outcome)]
            for receipt, outcome, _code in expected["settled"]
        ],
        "leases": {
            receipt: holder
            for holder in sorted(set(expected["leases"].values()))
            for receipt in engine.held_by(holder)
        },
    }
    for receipt in expected["leases"]:
        assert await _settle(engine, receipt, "ok") is None, "a receipt of the epoch before is not honoured"
    await engine.close()
    await store.close()
    return found


async def _standing(engine: EmbeddedEngine, expected: dict[str, Any]) -> dict[str, Any]:
    """What format 3 added: the jobs that stand, by type and unique key."""
    if "standing" not in expected:
        return {}
    found = {}
    for name in expected["standing"]:
        type, _, key = name.partition(" ")
        options = JobOptions(unique=Unique(key))
        inserted = await engine.put([NewJob(type, b"null", False, 4, 0, 1000, options)])
        found[name] = inserted.ids[0] if inserted.duplicates else None
    return {"standing": found}


async def _added(engine: EmbeddedEngine, expected: dict[str, Any]) -> dict[str, Any]:
    """What format 2 added: results by job, and the types that are paused; and format 3: marks of crons."""
    if "results" not in expected:
        return {}
    views = {id: await engine.job(id) for id in expected["results"]}
    return {
        "results": {
            id: bytes(view["result"]).decode() if "result" in view else None for id, view in views.items()
        },
        "paused": await engine.paused(),
        **({"crons": msgspec.to_builtins(await engine.fired())} if "crons" in expected else {}),
    }


async def _job_of(engine: EmbeddedEngine, key: str) -> str | None:
    """The job a key belongs to; None when it is free."""
    inserted = await engine.put([NewJob("asked", b"null", False, 4, 0, 1000, JobOptions(key=key))])
    return inserted.ids[0] if inserted.duplicates else None


async def _settle(engine: EmbeddedEngine, receipt: str, outcome: Any) -> str | None:
    """The code with which a settlement is refused, or None."""
    refused = await engine.settle([Settlement(receipt, outcome)])
    return refused[0].code if refused else None
