"""The file store passes the suite of bulk stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kqs.core.job import BulkRef
from kqs.stores.files import FileStore
from kqs.testing.stores import BulkStoreHarness, BulkStoreSuite


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
