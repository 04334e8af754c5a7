"""Several stores as one: new payloads go to one of them, the others still have those of before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..core.job import BulkRef
from ..errors import Internal
from ..ports import BulkStore
from .names import place_of


class SeveralStores:
    """See :class:`kqs.ports.BulkStore`.

    Args:
        stores: by kind, as in names.
        main: the kind that gets new payloads.
    """

    def __init__(self, stores: Mapping[str, BulkStore], main: str) -> None:
        self._stores = dict(stores)
        self._main = self._stores[main]

    async def put(self, data: bytes) -> BulkRef:
        return await self._main.put(data)

    async def get(self, ref: BulkRef) -> bytes:
        return await self._of(ref).get(ref)

    async def delete(self, refs: Sequence[BulkRef]) -> None:
        shares: dict[str, list[BulkRef]] = {}
        for ref in refs:
            self._of(ref)
            shares.setdefault(place_of(ref.name) or "", []).append(ref)
        for place, own in shares.items():
            await self._stores[place].delete(own)

    async def collect(self, wanted: Collection[str], grace: float) -> int:
        return sum([await store.collect(wanted, grace) for store in self._stores.values()])

    def _of(self, ref: BulkRef) -> BulkStore:
        store = self._stores.get(place_of(ref.name) or "")
        if store is None:
            raise Internal(f"the payload {ref.name!r} is in a store that is not configured; see [bulk]")
        return store

    async def close(self) -> None:
        for store in self._stores.values():
            await store.close()
