"""Oversize payloads in MongoDB, the seed's store: a document each, or GridFS where a document is too small.

Written with majority and journal, so that they outlive the primary.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from bson import Binary
from gridfs import NoFile
from gridfs.asynchronous import AsyncGridFSBucket
from pymongo import AsyncMongoClient, WriteConcern
from pymongo.errors import PyMongoError

from ..core.job import BulkRef
from .remote import RemoteStore, StoreAway

#: The largest payload of a document: 16 MiB, less what stands around it.
DOCUMENT: Final = 16 * 1024 * 1024 - 1024


class MongoStore(RemoteStore):
    """See :class:`~kqs.stores.remote.RemoteStore`.

    Args:
        url: ``mongodb://``; with a database, else ``kqs`` is used.
        owner, random: as there.
        timeout: seconds an operation may take.
    """

    place = "mongo"

    def __init__(self, url: str, owner: str, random: Callable[[int], bytes], timeout: float) -> None:
        super().__init__(owner, random)
        milliseconds = max(1, round(timeout * 1000))
        self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            url,
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
            socketTimeoutMS=milliseconds,
            appname="kqs",
        )
        durable = WriteConcern(w="majority", j=True)
        database = self._client.get_default_database("kqs").with_options(write_concern=durable)
        self.label = f"mongodb at {urlsplit(url).hostname or 'its host'}"
        self._payloads = database["kqs_payloads"]
        self._files = AsyncGridFSBucket(database, "kqs_large")

    async def _write(self, name: str, data: bytes) -> None:
        with _away():
            if len(data) <= DOCUMENT:
                await self._payloads.insert_one({"_id": name, "data": Binary(data), "at": _now()})
            else:
                await self._files.upload_from_stream_with_id(name, name, data)

    async def _read(self, ref: BulkRef) -> bytes | None:
        with _away():
            if ref.size > DOCUMENT:
                try:
                    return bytes(await (await self._files.open_download_stream(ref.name)).read())
                except NoFile:
                    return None
            found = await self._payloads.find_one({"_id": ref.name})
            return None if found is None else bytes(found["data"])

    async def _remove(self, names: Sequence[str]) -> None:
        with _away():
            await self._payloads.delete_many({"_id": {"$in": list(names)}})
            async for file in self._files.find({"_id": {"$in": list(names)}}):
                try:
                    await self._files.delete(file._id)
                except NoFile:
                    pass

    async def _list(self, prefix: str) -> AsyncIterator[tuple[str, float]]:
        own = {"_id": {"$gte": prefix, "$lt": f"{prefix}g"}}  # hex digits come before g
        now = _now()
        with _away():
            async for found in self._payloads.find(own, {"at": 1}):
                yield found["_id"], (now - found["at"].replace(tzinfo=dt.UTC)).total_seconds()
            async for file in self._files.find(own):
                yield file._id, (now - file.upload_date.replace(tzinfo=dt.UTC)).total_seconds()

    async def close(self) -> None:
        await self._client.close()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except PyMongoError as error:
        raise StoreAway(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    """What went wrong, without the topology pymongo adds."""
    return str(error).partition(", Timeout:")[0].partition("\n")[0][:300] or type(error).__name__
