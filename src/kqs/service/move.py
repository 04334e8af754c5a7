"""Moves all jobs from the embedded engine to another one: ``kqs engine move``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator

import msgspec
from msgspec import UNSET, Struct

from ..core.job import NEEDS, JobOptions, NewJob
from ..core.lifecycle import State
from ..engines.embedded import EmbeddedEngine
from ..engines.embedded.export import Kept
from ..errors import ConfigError, JournalFailed
from ..ports import BulkStore, Engine, Selection
from ..settings.config import Config
from .engines import open_embedded, open_other, sees
from .host import Host
from .stores import open_store

#: Jobs moved in one go, and bytes of their payload.
_AT_ONCE = 1000
_BYTES = 8 * 1024 * 1024
_BLANK = JobOptions()


class Moved(Struct, frozen=True):
    """What a move did.

    Attributes:
        jobs: how many were moved.
        dropped: of how many of them which member was left out.
    """

    jobs: int
    dropped: dict[str, int]


async def move(
    old: Config, new: Config, host: Host, *, drop: Collection[str] = (), kick_buried: bool = False
) -> Moved:
    """Move all live jobs; nothing else may use the two data directories.

    A job is durable in the new engine before it is deleted from the old one. A move that was ended is begun
    again; the jobs that were under way then, 1,000 at most, may be there twice.

    Args:
        old, new: settings of the servers of before and after.
        host: the machine below.
        drop: members of jobs (``key``, ``fair``, ..) that are left out where the new engine has no use for
            them; without it they are refused.
        kick_buried: move buried jobs too; they run again.

    Raises:
        ConfigError: what cannot be moved, and what to do. Nothing was changed.
    """
    sources = (os.path.abspath(old.server.data), os.path.abspath(new.server.data))
    if old.engine.kind != "embedded":
        raise ConfigError(
            f"jobs are moved from the embedded engine only; let {old.engine.kind} finish its own"
        )
    if new.engine.kind == "embedded":
        raise ConfigError("the new settings name the embedded engine; to move a data directory, copy it")
    for data in dict.fromkeys(sources):
        host.claim(data)
    failures: list[JournalFailed] = []
    bulk = await open_store(old.bulk, host, sources[0])
    source = await open_embedded(old, host, sources[0], None, failures.append)
    try:
        _refuse(source, kick_buried)
        store = await open_store(new.bulk, host, sources[1])
        try:
            target = await open_other(new, host, sources[1], store, failures.append)
            try:
                same = sources[0] == sources[1] and old.bulk == new.bulk and sees(new)
                return await _Move(source, target, bulk, None if same else store, host, drop).run()
            finally:
                await target.close()
        finally:
            await store.close()
    finally:
        await source.close()
        await bulk.close()


def _refuse(source: EmbeddedEngine, kick_buried: bool) -> None:
    states = Counter(kept.state for kept in source.live())
    if states[State.BURIED] and not kick_buried:
        raise ConfigError(
            f"{states[State.BURIED]} jobs are buried; kick or delete them first, or give --kick-buried"
        )


class _Move:
    def __init__(
        self,
        source: EmbeddedEngine,
        target: Engine,
        bulk: BulkStore,
        store: BulkStore | None,
        host: Host,
        drop: Collection[str],
    ) -> None:
        self._source = source
        self._target = target
        self._bulk = bulk
        self._store = store  # None: payloads stay where they are
        self._drop = drop
        self._dropped: Counter[str] = Counter()

    async def run(self) -> Moved:
        self._refuse_members()
        moved = 0
        while batch := list(self._batch(self._source.live())):
            jobs = [await self._converted(kept.job) for kept in batch]
            await self._target.put(jobs)
            await self._source.control("delete", Selection([kept.id for kept in batch]))
            moved += len(batch)
        return Moved(moved, dict(self._dropped))

    @staticmethod
    def _batch(jobs: Iterator[Kept]) -> Iterator[Kept]:
        size = 0
        for count, kept in enumerate(jobs):
            if count == _AT_ONCE or size > _BYTES:
                return
            size += len(kept.job.data)
            yield kept

    def _lacking(self) -> list[str]:
        return [member for member, need in NEEDS.items() if need not in self._target.capabilities]

    def _refuse_members(self) -> None:
        """Refuse members the new engine cannot keep, before anything is moved."""
        found: Counter[str] = Counter()
        lacking = [member for member in self._lacking() if member not in self._drop]
        for kept in self._source.live():
            found.update(member for member in lacking if _given(kept.job.options, member))
        if found:
            members = ", ".join(f"{member} ({count} jobs)" for member, count in found.items())
            raise ConfigError(
                f"{self._target.name} cannot keep what jobs have: {members}; let them finish first, or "
                f"leave it out with {' '.join(f'--drop {member}' for member in found)}"
            )

    async def _converted(self, job: NewJob) -> NewJob:
        """A job as the new engine takes it."""
        options = job.options
        for member in self._lacking():
            if _given(options, member):
                self._dropped[member] += 1
                options = msgspec.structs.replace(options, **{member: getattr(_BLANK, member)})
        data, ref = job.data, options.bulk
        if ref is not None and self._store is not None:
            data = await self._bulk.get(ref)
            if len(data) > self._target.max_payload:
                options = msgspec.structs.replace(options, bulk=await self._store.put(data))
                data = b""
            else:
                options = msgspec.structs.replace(options, bulk=None)
        elif ref is None and len(data) > self._target.max_payload:
            store = self._store or self._bulk
            options = msgspec.structs.replace(options, bulk=await store.put(data))
            data = b""
        return msgspec.structs.replace(job, data=data, options=options)


def _given(options: JobOptions, member: str) -> bool:
    return getattr(options, member, UNSET) != getattr(_BLANK, member, UNSET)
