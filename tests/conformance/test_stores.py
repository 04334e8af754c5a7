"""All stores pass the suite of bulk stores: files, MongoDB's wire, S3's wire; the last two real servers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kqs.core.job import BulkRef
from kqs.stores.files import FileStore
from kqs.stores.mongo import MongoStore
from kqs.stores.objects import ObjectStore
from kqs.testing.stores import BulkStoreHarness, BulkStoreSuite
from tests.stores import MongoServer, S3Server


class FileStoreHarness(BulkStoreHarness):
    """Puts a file beside the store's directory that nobody may touch."""

    def __init__(self, parent: Path) -> None:
        self._folder = parent / "bulk"
        self.canary = parent / "outside"
        self.canary.write_bytes(b"mine")
        self._stores: list[FileStore] = []

    async def make_store(self) -> FileStore:
        self._stores.append(FileStore(str(self._folder)))
        return self._stores[-1]

    async def tamper(self, ref: BulkRef, data: bytes) -> None:
        (self._folder / ref.name).write_bytes(data)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


class TestFileStore(BulkStoreSuite):
    @pytest.fixture
    async def bulk(self, tmp_path: Path) -> AsyncIterator[FileStoreHarness]:
        harness = FileStoreHarness(tmp_path)
        yield harness
        await harness.close()
        assert harness.canary.read_bytes() == b"mine"


OWNER = "0123456789abcdef"


@pytest.fixture(scope="module")
def mongo() -> Iterator[MongoServer]:
    server = MongoServer()
    server.start()
    yield server
    server.discard()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    server.start()
    yield server
    server.discard()


class MongoHarness(BulkStoreHarness):
    def __init__(self, server: MongoServer) -> None:
        self._server = server
        self._stores: list[MongoStore] = []

    async def make_store(self, owner: str = OWNER) -> MongoStore:
        self._stores.append(MongoStore(self._server.url, owner, os.urandom, 5.0))
        return self._stores[-1]

    async def tamper(self, ref: BulkRef, data: bytes) -> None:
        await self._stores[0]._payloads.update_one({"_id": ref.name}, {"$set": {"data": data}})

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


class ObjectHarness(BulkStoreHarness):
    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._stores: list[ObjectStore] = []

    async def make_store(self, owner: str = OWNER) -> ObjectStore:
        store = ObjectStore(self._server.url, self._server.options, owner, os.urandom, 5.0)
        self._stores.append(store)
        return store

    async def tamper(self, ref: BulkRef, data: bytes) -> None:
        (self._server.objects / ref.name).write_bytes(data)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


class SharedSuite(BulkStoreSuite):
    """Of a store that several data directories use."""

    async def test_what_others_stored_is_left_alone(self, bulk: MongoHarness | ObjectHarness) -> None:
        mine, other = await bulk.make_store(), await bulk.make_store("f" * 16)
        ref, theirs = await mine.put(b"mine"), await other.put(b"theirs")
        await mine.collect({ref.name}, -1)
        assert await other.get(theirs) == b"theirs"
        await other.collect((), -1)
        assert await mine.get(ref) == b"mine"
        await mine.delete([ref])


class TestMongo(SharedSuite):
    @pytest.fixture
    async def bulk(self, mongo: MongoServer) -> AsyncIterator[MongoHarness]:
        harness = MongoHarness(mongo)
        yield harness
        await harness.close()


class TestObjects(SharedSuite):
    @pytest.fixture
    async def bulk(self, s3: S3Server) -> AsyncIterator[ObjectHarness]:
        harness = ObjectHarness(s3)
        yield harness
        await harness.close()
