"""The tables: numbered SQL files, applied in order, each in a transaction that also says so.

Ensures: of several that migrate at once one works and the others wait; one that is killed leaves whole steps
only, and the next goes on from there.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Final

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from ...errors import ConfigError
from ...postgres.tables import refuse_version
from .database import Database

#: Of the advisory lock that those who migrate wait for; the schema's name is the other half.
_LOCK: Final = 0x4B5153
_NAME: Final = re.compile(r"(\d{4})_\w+\.sql")


def migrations() -> list[tuple[int, str]]:
    """Number and text of each step this version knows, in order."""
    folder = resources.files(__package__) / "migrations"
    return sorted(
        (int(found[1]), entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if (found := _NAME.fullmatch(entry.name))
    )


def newest() -> int:
    """The version this code works with."""
    return migrations()[-1][0]


async def schema_version(connection: AsyncConnection[TupleRow], schema: str) -> int:
    """The version a database has; 0: it has none."""
    table = sql.SQL(".").join([sql.Identifier(schema), sql.Identifier("version")]).as_string(connection)
    cursor = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", [table])
    if (await cursor.fetchone()) == (False,):
        return 0
    cursor = await connection.execute(sql.SQL("SELECT coalesce(max(step), 0) FROM ") + sql.SQL(table))
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def migrate(connection: AsyncConnection[TupleRow], schema: str = "kqs") -> list[int]:
    """Bring a database to :func:`newest`; returns the steps that were applied.

    Args:
        connection: in autocommit mode.
        schema: where the tables go; made if it is not there.

    Raises:
        ConfigError: the database is newer than this version of KQS.
    """
    name = sql.Identifier(schema)
    await connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [_LOCK, schema])
    try:
        await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))
        await connection.execute(
            sql.SQL(
                "CREATE TABLE IF NOT EXISTS {}.version"
                " (step integer PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())"
            ).format(name)
        )
        have = await schema_version(connection, schema)
        if have > newest():
            refuse_version(schema, have)
        applied = []
        for step, text in migrations():
            if step <= have:
                continue
            async with connection.transaction():
                await connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(name))
                await connection.execute(text.encode())
                await connection.execute("INSERT INTO version (step) VALUES (%s)", [step])
            applied.append(step)
        return applied
    finally:
        if not connection.closed:
            await connection.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", [_LOCK, schema])


async def check_version(connection: AsyncConnection[TupleRow], schema: str) -> None:
    """Refuse a database whose tables are not those this version works with.

    Raises:
        ConfigError: they are older or newer; it says what to do.
    """
    refuse_version(schema, await schema_version(connection, schema))


async def look_at_schema(database: Database) -> None:
    """Have tables that became another version's left alone, until they are ours again."""
    async with database.connection(always=not database.ended) as connection:
        try:
            await check_version(connection, database.schema)
            refusal = ""
        except ConfigError as error:
            refusal = str(error)
    if not database.ended:
        database.refusal = refusal
