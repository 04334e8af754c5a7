"""Opens the engine that the settings name, and refuses to leave jobs behind in another one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import structlog

from ..engines.embedded import EmbeddedEngine
from ..engines.embedded.replay import live_jobs
from ..engines.feed.log import undelivered
from ..errors import Busy, ConfigError, JournalFailed
from ..journal import manifest
from ..journal.log import Journal
from ..journal.scan import Apply, read_only
from ..ports import BulkStore, Disk, Engine
from ..settings.config import Config
from .host import Host

#: Below the data directory: the journal of an engine that is fed, by its kind.
FEEDS: Final = {"beanstalkd": "feed", "postgres": "feed-postgres"}


async def open_engine(
    config: Config, host: Host, data: str, bulk: BulkStore, failed: Callable[[JournalFailed], None]
) -> Engine:
    """The engine, open, with all it kept.

    Args:
        config: checked settings.
        host: the machine below.
        data: the data directory.
        bulk: where oversize payloads go.
        failed: told, once, when its journal cannot be trusted any more.

    Raises:
        ConfigError: jobs would stay behind in another engine, or the engine refuses how it is set up.
        DataDirError: the journal cannot be read.
        OSError: the data directory cannot be used.
    """
    refuse_to_leave(config, host.disk, data)
    if config.engine.kind == "embedded":
        return await open_embedded(config, host, data, bulk, failed)
    return await open_other(config, host, data, bulk, failed)


async def open_other(
    config: Config, host: Host, data: str, bulk: BulkStore, failed: Callable[[JournalFailed], None]
) -> Engine:
    """An engine on another server, whatever may be left in the embedded one. See :func:`open_engine`."""
    if config.engine.kind == "postgres":
        return await _open_postgres(config, host, data, bulk, failed)
    from ..engines.beanstalk import BeanstalkEngine
    from ..engines.beanstalk.pool import parse_address

    if not sees(config):
        raise ConfigError(
            "bulk.shared: oversize payloads are files of this server, and other servers may take their jobs "
            "from beanstalkd; set it when all of them see these files, or use another bulk.store"
        )
    own = config.beanstalkd
    return await BeanstalkEngine.open(
        _feed_journal(config, host, data, failed),
        host.clock,
        [parse_address(server) for server in own.servers],
        random=host.random.random,
        nonce=host.random.getrandbits,
        bulk=bulk,
        window=config.journal.payload_window,
        limit=config.journal.memory_limit,
        timeout=own.connect_timeout,
        silence=own.silence,
        unsafe=own.unsafe,
    )


async def _open_postgres(
    config: Config, host: Host, data: str, bulk: BulkStore, failed: Callable[[JournalFailed], None]
) -> Engine:
    try:
        from ..engines import postgres
    except ImportError:
        raise ConfigError("engine.kind: postgres needs psycopg: pip install 'kqs[postgres]'") from None
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # the engine says so itself
    try:
        return await postgres.open(
            config.postgres,
            host.clock,
            random=host.random.random,
            nonce=host.random.getrandbits,
            bulk=bulk if sees(config) else None,
            key_window=config.journal.key_window,
            open_journal=_feed_journal(config, host, data, failed) if _feed_of(config) else None,
            window=config.journal.payload_window,
            limit=config.journal.memory_limit,
        )
    except Busy as busy:
        raise ConfigError(f"postgres.url: {busy}") from None


async def migrate(config: Config) -> tuple[int, int]:
    """Make the tables of the engine, or bring them up to this version.

    Returns:
        Their version before and after; 0: there were none.

    Raises:
        ConfigError: the engine has none, cannot be reached, or is newer.
    """
    if config.engine.kind != "postgres":
        raise ConfigError(f"engine.kind: {config.engine.kind} has no tables to migrate")
    try:
        import psycopg

        from ..engines import postgres
    except ImportError:
        raise ConfigError("engine.kind: postgres needs psycopg: pip install 'kqs[postgres]'") from None
    own = config.postgres
    try:
        async with await psycopg.AsyncConnection.connect(own.url, autocommit=True) as connection:
            before = await postgres.schema_version(connection, own.schema)
            await postgres.migrate(connection, own.schema)
            return before, await postgres.schema_version(connection, own.schema)
    except psycopg.Error as error:
        raise ConfigError(f"postgres.url: {str(error).partition(chr(10))[0]}") from None


def sees(config: Config) -> bool:
    """Whether all servers that may share an engine have the same bulk store."""
    return config.bulk.shared or config.bulk.store != "files"


def threshold(config: Config, engine: Engine) -> int:
    """Payloads above this many bytes go to the bulk store."""
    if engine.name == "postgres" and not sees(config):
        return engine.max_payload  # rows hold them, where all servers see them
    return min(config.bulk.threshold, engine.max_payload)


def refuse_to_leave(config: Config, disk: Disk, data: str) -> None:
    """Refuse an engine when jobs of this data directory are in another one, where nobody would run them.

    Raises:
        ConfigError: how many, and what to do.
    """
    kind, own = config.engine.kind, _feed_of(config)
    for name in set(FEEDS.values()).intersection(disk.listdir(data)) - {own}:
        if waiting := _count(disk, f"{data}/{name}", undelivered):
            raise ConfigError(
                f"engine.kind: {waiting} accepted jobs in {data}/{name} have not reached their engine; start "
                "with the settings they were accepted under, until 'kqs stats' shows no job in its feed"
            )
    if kind == "embedded":
        return
    if live := _count(disk, data, live_jobs):
        raise ConfigError(
            f"engine.kind: the embedded engine in {data} holds {live} jobs, which {kind} does not see; "
            "move them with 'kqs engine move', or give another data directory"
        )


def _count(disk: Disk, directory: str, count: Callable[[Callable[[Apply], None]], int]) -> int:
    """What a count of a journal comes to; 0 when there is no journal."""
    if manifest.load(disk, directory) is None:
        return 0
    return count(lambda apply: read_only(disk, directory, apply))


def _feed_of(config: Config) -> str | None:
    """Where the journal of the engine is that is fed; None when it is not."""
    if config.engine.kind == "postgres" and config.postgres.accept == "engine":
        return None
    return FEEDS.get(config.engine.kind)


def _feed_journal(
    config: Config, host: Host, data: str, failed: Callable[[JournalFailed], None]
) -> Callable[[Apply], Journal]:
    path = f"{data}/{_feed_of(config)}"
    host.disk.makedirs(path)
    return _journal(config, host, path, failed)


def _journal(
    config: Config, host: Host, data: str, failed: Callable[[JournalFailed], None]
) -> Callable[[Apply], Journal]:
    executor = host.executor()

    def open_journal(apply: Apply) -> Journal:
        return Journal.open(
            host.disk,
            executor,
            data,
            apply,
            now=host.clock.now(),
            segment_size=config.journal.segment_size,
            random=host.random.randbytes,
            on_failure=failed,
        )

    return open_journal


async def open_embedded(
    config: Config, host: Host, data: str, bulk: BulkStore | None, failed: Callable[[JournalFailed], None]
) -> EmbeddedEngine:
    """The engine that needs no other server."""
    engine = EmbeddedEngine(
        _journal(config, host, data, failed),
        host.clock,
        random=host.random.random,
        nonce=host.random.getrandbits,
        bulk=bulk,
        payload_window=config.journal.payload_window,
        memory_limit=config.journal.memory_limit,
        key_window=config.journal.key_window,
        key_cap=config.journal.key_cap,
    )
    if engine.journal.torn is not None:
        structlog.get_logger().warning(
            "the journal's unfinished last frame was cut; nothing accepted was in it",
            kept=engine.journal.torn,
        )
    await engine.journal.make_room()  # what ends jobs has its space before the first call (G9)
    return engine
