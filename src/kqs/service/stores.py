"""Opens the bulk stores the settings name, and refuses to leave payloads behind in another one."""

from __future__ import annotations

from collections.abc import Collection

import structlog

from ..errors import Busy, CallError, ConfigError
from ..ports import BulkStore
from ..settings.config import BulkConfig
from ..stores.names import FILES, owner, place_of
from ..stores.remote import RemoteStore
from ..stores.several import SeveralStores
from .host import Host


async def open_store(config: BulkConfig, host: Host, data: str) -> BulkStore:
    """The bulk store: the files of the data directory, and what else is configured.

    Args:
        config: settings.
        host: the machine below.
        data: the data directory.

    Raises:
        ConfigError: a store cannot be used as it is configured.
        OSError: the data directory cannot be used.
    """
    files = host.store(data)
    if not config.mongo and not config.objects:
        return files
    own = owner(f"{data}/bulk")
    stores: dict[str, BulkStore] = {FILES: files}
    try:
        for store in _remote(config, host, own):
            stores[store.place] = store
            await _check(store)
    except BaseException:
        await SeveralStores(stores, FILES).close()
        raise
    return SeveralStores(stores, config.store)


def _remote(config: BulkConfig, host: Host, own: str) -> list[RemoteStore]:
    found: list[RemoteStore] = []
    if config.mongo:
        try:
            from ..stores.mongo import MongoStore
        except ImportError:
            raise ConfigError("bulk.mongo: needs pymongo: pip install 'kqs[mongo]'") from None
        try:
            found.append(MongoStore(config.mongo, own, host.random.randbytes, config.timeout))
        except Exception as error:  # pymongo says in many ways that a URL cannot be
            raise ConfigError(
                f"bulk.mongo: {type(error).__name__}: {_without(config.mongo, error)}"
            ) from None
    if config.objects:
        try:
            from ..stores.objects import ObjectStore
        except ImportError:
            raise ConfigError("bulk.objects: needs obstore: pip install 'kqs[objects]'") from None
        try:
            found.append(
                ObjectStore(config.objects, config.options, own, host.random.randbytes, config.timeout)
            )
        except Exception as error:  # so does obstore
            raise ConfigError(f"bulk.objects: {_without(config.objects, error)}") from None
    return found


def _without(url: str, error: Exception) -> str:
    """An error's first line, without the URL: credentials may be in it."""
    return str(error).replace(url, "the URL").partition("\n")[0][:300]


async def _check(store: RemoteStore) -> None:
    try:
        await store.check()
    except Busy as busy:
        structlog.get_logger().warning("jobs with oversize payloads wait", reason=str(busy))
    except CallError as error:
        raise ConfigError(f"bulk.{store.place}: {error}") from None


def refuse_to_leave(config: BulkConfig, names: Collection[str]) -> None:
    """Refuse to start when jobs refer to payloads in a store that is not configured any more.

    Args:
        config: settings.
        names: of all payloads that jobs refer to.

    Raises:
        ConfigError: how many, and what to do.
    """
    places = {FILES, *(place for place in ("mongo", "objects") if getattr(config, place))}
    for place in ("mongo", "objects"):
        if place not in places and (count := sum(place_of(name) == place for name in names)):
            raise ConfigError(
                f"bulk.{place}: {count} payloads of jobs here are in that store, which is not configured; "
                f"keep bulk.{place} until they are done, whatever bulk.store is"
            )
