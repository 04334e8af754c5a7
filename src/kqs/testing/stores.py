"""The conformance suite of bulk stores: what :class:`kqs.ports.BulkStore` means, as tests.

::

    class TestMyStore(BulkStoreSuite):
        @pytest_asyncio.fixture
        async def bulk(self):
            harness = MyStoreHarness()
            yield harness
            await harness.close()
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from hashlib import sha256

import msgspec
import pytest

from kqs.core.job import BulkRef
from kqs.errors import Internal, NotFound
from kqs.ports import BulkStore

EVERY_BYTE = bytes(range(256))
#: Names no store gives; none may lead anywhere.
FOREIGN_NAMES = [
    "",
    ".",
    "..",
    "../outside",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "x" * 32,
    "0" * 31,
    "0" * 33,
    "A" * 32,
    "0" * 32 + "\n",
    "0" * 32 + "\0",
    "0" * 32 + ".new",
    "\u0660" * 32,
    "*",
    "%2e%2e%2foutside",
]


class BulkStoreHarness(ABC):
    """Makes a bulk store with nothing in it, and reaches behind it."""

    @abstractmethod
    async def make_store(self) -> BulkStore:
        """Open the store on this harness's data; later again, what was stored is there."""

    @abstractmethod
    async def tamper(self, ref: BulkRef, data: bytes) -> None:
        """Make the stored bytes be others, behind the store's back."""

    @abstractmethod
    async def close(self) -> None:
        """Close the store and remove its data. The store may be closed already."""


@pytest.mark.asyncio
class BulkStoreSuite:
    """All cases. A subclass named ``Test..`` gives the fixture ``bulk``."""

    @pytest.mark.parametrize("size", [0, 1, 255, 65_536, 65_537, 3_000_000])
    async def test_bytes_of_every_value_and_size_come_back(self, bulk: BulkStoreHarness, size: int) -> None:
        store = await bulk.make_store()
        data = (EVERY_BYTE * (size // 256 + 1))[:size]
        ref = await store.put(data)
        assert (ref.size, ref.sha256) == (size, sha256(data).hexdigest())
        assert await store.get(ref) == data

    async def test_what_is_stored_survives_the_store(self, bulk: BulkStoreHarness) -> None:
        store = await bulk.make_store()
        refs = [await store.put(EVERY_BYTE * number) for number in range(1, 4)]
        await store.close()
        store = await bulk.make_store()
        assert [await store.get(ref) for ref in refs] == [EVERY_BYTE * number for number in range(1, 4)]

    async def test_a_reference_survives_being_journaled(self, bulk: BulkStoreHarness) -> None:
        store = await bulk.make_store()
        ref = await store.put(b"x" * 100)
        text = msgspec.json.encode(ref)
        assert len(text) < 1000
        assert await store.get(msgspec.json.decode(text, type=BulkRef)) == b"x" * 100

    async def test_the_same_bytes_twice_are_two_things(self, bulk: BulkStoreHarness) -> None:
        store = await bulk.make_store()
        first, second = await store.put(b"same"), await store.put(b"same")
        assert first.name != second.name
        await store.delete([first])
        assert await store.get(second) == b"same"

    async def test_many_at_once(self, bulk: BulkStoreHarness) -> None:
        store = await bulk.make_store()
        payloads = [b"%d" % number * 1000 for number in range(40)]
        refs = await asyncio.gather(*(store.put(data) for data in payloads))
        assert len({ref.name for ref in refs}) == 40
        assert await asyncio.gather(*(store.get(ref) for ref in refs)) == payloads

    async def test_what_is_not_there_is_not_found(self, bulk: BulkStoreHarness) -> None:
        store = await bulk.make_store()
        ref = await store.put(b"x")
        await store.delete([ref])
        with pytest.raises(NotFound):
            await store.get(ref)

    async def test_deleting_is_for_the_ones_that_are_named(self, bulk: BulkStoreHarness) -> None:
        store = await bulk.make_store()
        refs = [await store.put(b"%d" % number) for number in range(4)]
        await store.delete(refs[:2])
        await store.delete(refs[:2])
        await store.delete([])
        await store.delete([refs[0], refs[2]])
        assert await store.get(refs[3]) == b"3"
        for ref in refs[:3]:
            with pytest.raises(NotFound):
                await store.get(ref)

    @pytest.mark.parametrize(
        "damaged", [b"paylaod", b"payloa", b"payload ", b"", b"Payload", b"payload\0" * 1000]
    )
    async def test_bytes_that_are_not_the_stored_ones_are_never_given(
        self, bulk: BulkStoreHarness, damaged: bytes
    ) -> None:
        store = await bulk.make_store()
        ref, other = await store.put(b"payload"), await store.put(b"other")
        await bulk.tamper(ref, damaged)
        with pytest.raises(Internal):
            await store.get(ref)
        assert await store.get(other) == b"other"

    async def test_a_reference_with_another_digest_or_size_is_refused(self, bulk: BulkStoreHarness) -> None:
        store = await bulk.make_store()
        ref = await store.put(b"payload")
        for wrong in (
            BulkRef(ref.name, sha256(b"other").hexdigest(), ref.size),
            BulkRef(ref.name, "", ref.size),
            BulkRef(ref.name, ref.sha256, ref.size - 1),
        ):
            with pytest.raises(Internal):
                await store.get(wrong)

    @pytest.mark.parametrize("name", FOREIGN_NAMES)
    async def test_names_of_others_lead_nowhere(self, bulk: BulkStoreHarness, name: str) -> None:
        store = await bulk.make_store()
        ref = await store.put(b"mine")
        foreign = BulkRef(name, ref.sha256, ref.size)
        with pytest.raises((Internal, NotFound)):
            await store.get(foreign)
        try:
            await store.delete([foreign])
        except (Internal, NotFound):
            pass  # refusing is as good as finding nothing to delete
        assert await store.get(ref) == b"mine"

    async def test_orphans_are_collected_and_nothing_else(self, bulk: BulkStoreHarness) -> None:
        store = await bulk.make_store()
        wanted, orphan, large = [await store.put(b"x" * size) for size in (5, 6, 17_000_000)]
        assert await store.collect({wanted.name, orphan.name}, 3600) == 0
        assert await store.collect({wanted.name}, -1) >= 2
        assert await store.get(wanted) == b"xxxxx"
        for ref in (orphan, large):
            with pytest.raises(NotFound):
                await store.get(ref)
        await store.delete([wanted])

    async def test_payloads_above_any_limit_of_a_document(self, bulk: BulkStoreHarness) -> None:
        store = await bulk.make_store()
        for size in (16 * 1024 * 1024 - 1024, 16 * 1024 * 1024 - 1023, 20_000_000):
            data = (EVERY_BYTE * (size // 256 + 1))[:size]
            ref = await store.put(data)
            assert await store.get(ref) == data
            await store.delete([ref])
            with pytest.raises(NotFound):
                await store.get(ref)
