"""Oversize payloads in an object store: S3 and all that speak its protocol, Google Cloud Storage, Azure."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import from_url

from ..core.job import BulkRef
from .remote import RemoteStore, StoreAway

#: Times an operation is tried again before the store counts as away.
_RETRIES: Final = 2


class ObjectStore(RemoteStore):
    """See :class:`~kqs.stores.remote.RemoteStore`.

    Args:
        url: ``s3://BUCKET/PREFIX``, ``gs://..`` or ``az://..``.
        options: settings of the store, by obstore's names; credentials come from the environment otherwise.
        owner, random: as there.
        timeout: seconds an operation may take.
    """

    place = "objects"

    def __init__(
        self,
        url: str,
        options: Mapping[str, str],
        owner: str,
        random: Callable[[int], bytes],
        timeout: float,
    ) -> None:
        super().__init__(owner, random)
        wait = dt.timedelta(seconds=timeout)
        config: Any = dict(options)
        plain = any(value.startswith("http://") for value in options.values())
        self._store: Any = from_url(
            url,
            config=config,
            client_options={"timeout": wait, "connect_timeout": wait, "allow_http": plain},
            retry_config={"max_retries": _RETRIES, "retry_timeout": wait},
        )
        parts = urlsplit(url)
        self.label = f"{parts.scheme}://{parts.hostname or ''}"

    async def _write(self, name: str, data: bytes) -> None:
        with _away():
            await obstore.put_async(self._store, name, data)

    async def _read(self, ref: BulkRef) -> bytes | None:
        with _away():
            try:
                found = await obstore.get_async(self._store, ref.name)
                return bytes(await found.bytes_async())
            except (NotFoundError, FileNotFoundError):
                return None

    async def _remove(self, names: Sequence[str]) -> None:
        with _away():
            for name in names:
                try:
                    await obstore.delete_async(self._store, name)
                except (NotFoundError, FileNotFoundError):
                    pass

    async def _list(self, prefix: str) -> AsyncIterator[tuple[str, float]]:
        now = dt.datetime.now(dt.UTC)
        with _away():
            async for some in obstore.list(self._store, prefix):
                for found in some:
                    yield found["path"], (now - found["last_modified"]).total_seconds()

    async def close(self) -> None:
        pass  # obstore closes its connections by itself


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise StoreAway(" ".join(str(error).split())[:300]) from None
