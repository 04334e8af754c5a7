"""What stores on other machines have in common: names, checks, and what it means that one is away."""

from __future__ import annotations

import asyncio
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import ClassVar, Final

import structlog

from ..core.job import BulkRef
from ..errors import Busy, Internal, NotFound
from .names import place_of

#: Payloads above this are hashed off the loop's thread.
_LARGE: Final = 1024 * 1024


class StoreAway(Exception):
    """The store cannot be reached, or takes nothing now."""


class RemoteStore(ABC):
    """See :class:`kqs.ports.BulkStore`. Subclasses do the reading and writing.

    Args:
        owner: stands for this server's data directory.
        random: gives n random bytes, for names.

    Attributes:
        place: the kind of store, as in names.
        label: where it is, as people are told: never with credentials.
    """

    place: ClassVar[str]
    label: str

    def __init__(self, owner: str, random: Callable[[int], bytes] = os.urandom) -> None:
        self._own = f"{self.place}/{owner}/"
        self._random = random

    async def put(self, data: bytes) -> BulkRef:
        name = f"{self._own}{self._random(16).hex()}"
        digest = await _sha256(data)
        try:
            await self._write(name, data)
        except StoreAway as away:
            raise Busy(f"{self._away(away)}: the payload cannot be stored now; try again") from None
        return BulkRef(name, digest, len(data))

    async def get(self, ref: BulkRef) -> bytes:
        self._check(ref.name)
        try:
            data = await self._read(ref)
        except StoreAway as away:
            raise Busy(f"{self._away(away)}: the payload {ref.name} cannot be read now") from None
        if data is None:
            raise NotFound(f"the payload {ref.name} is not in the bulk store")
        if len(data) != ref.size or await _sha256(data) != ref.sha256:
            raise Internal(f"the payload {ref.name} is not what was stored: its SHA-256 differs")
        return data

    async def delete(self, refs: Sequence[BulkRef]) -> None:
        for ref in refs:
            self._check(ref.name)
        try:
            if refs:
                await self._remove([ref.name for ref in refs])
        except StoreAway as away:  # no job refers to them: they are collected later
            structlog.get_logger().warning("payloads cannot be removed now", reason=self._away(away))

    async def collect(self, wanted: Collection[str], grace: float) -> int:
        """Remove what this server stored, no job refers to, and is older than ``grace`` seconds.

        Returns:
            How many were removed.
        """
        try:
            gone = [name async for name, age in self._list(self._own) if age > grace and name not in wanted]
            if gone:
                await self._remove(gone)
        except StoreAway as away:
            structlog.get_logger().warning("orphans cannot be collected now", reason=self._away(away))
            return 0
        return len(gone)

    async def check(self) -> None:
        """Write, read and remove something.

        Raises:
            Busy: the store is away.
            Internal: it does not give back what was stored.
        """
        ref = await self.put(b"kqs")
        try:
            await self.get(ref)
        except NotFound as error:
            raise Internal(str(error)) from None
        await self.delete([ref])

    def _check(self, name: str) -> None:
        if place_of(name) != self.place:
            raise Internal(f"{name!r} is no name of this store")

    def _away(self, away: StoreAway) -> str:
        return f"the bulk store {self.label} is away ({away})"

    @abstractmethod
    async def _write(self, name: str, data: bytes) -> None:
        """Store bytes; return when they are durable.

        Raises:
            StoreAway: they may be stored or not.
        """

    @abstractmethod
    async def _read(self, ref: BulkRef) -> bytes | None:
        """The bytes; None when there are none.

        Raises:
            StoreAway: nobody knows now.
        """

    @abstractmethod
    async def _remove(self, names: Sequence[str]) -> None:
        """Remove; those that are gone already are no error.

        Raises:
            StoreAway: some may be left.
        """

    @abstractmethod
    def _list(self, prefix: str) -> AsyncIterator[tuple[str, float]]:
        """Names that begin so, and their age in seconds.

        Raises:
            StoreAway: the list ends early.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of all connections."""


async def _sha256(data: bytes) -> str:
    if len(data) <= _LARGE:
        return hashlib.sha256(data).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
