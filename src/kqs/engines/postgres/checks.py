"""Whether a PostgreSQL server keeps what it confirms: asked at every start."""

from __future__ import annotations

from typing import Final

import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from ...errors import ConfigError

OLDEST: Final = 130000
_SETTINGS: Final = (
    *("server_version_num", "server_encoding"),
    *("fsync", "full_page_writes", "synchronous_commit"),
)


async def check_durable(connection: AsyncConnection[TupleRow], *, unsafe: bool = False) -> None:
    """Refuse a server that may lose what it confirmed; warn of one whose failover may.

    Args:
        connection: as the engine's own are made, to the same server.
        unsafe: go on in spite of settings that lose; too old a server, another encoding and a standby are
            refused all the same.

    Raises:
        ConfigError: it says which setting, and the fix.
    """
    cursor = await connection.execute(
        "SELECT current_setting(name) FROM unnest(%s::text[]) WITH ORDINALITY AS s(name, at) ORDER BY at",
        [[*_SETTINGS, "synchronous_standby_names"]],
    )
    values = [row[0] for row in await cursor.fetchall()]
    version, encoding, fsync, pages, commit, standbys = values
    if int(version) < OLDEST:
        raise ConfigError(f"PostgreSQL 13 or newer is needed, this server is {int(version) // 10000}")
    if encoding != "UTF8":
        raise ConfigError(f"the database's encoding is {encoding}; it must be UTF8, which holds all text")
    cursor = await connection.execute("SELECT pg_is_in_recovery()")
    if await cursor.fetchone() == (True,):
        raise ConfigError("this PostgreSQL server is a standby: name the primary, or promote this one")
    problems = [
        f"{name} is off" for name, value in (("fsync", fsync), ("full_page_writes", pages)) if value == "off"
    ]
    if commit == "off":
        problems.append("synchronous_commit is off")
    elif commit == "local" and standbys:
        problems.append("synchronous_commit is local, so that standbys are not waited for")
    if problems and not unsafe:
        raise ConfigError(
            f"PostgreSQL may lose accepted jobs: {', '.join(problems)}; turn it on, or accept that with "
            "postgres.unsafe"
        )
    log = structlog.get_logger()
    if problems:
        log.warning("PostgreSQL may lose accepted jobs", because=problems)
    if not standbys:
        log.warning("PostgreSQL has no synchronous standby: a failover can lose accepted jobs")
