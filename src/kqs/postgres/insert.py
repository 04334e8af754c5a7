"""``insert`` and ``ainsert``: the same statements over a blocking and an asyncio connection."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ..core.job import SECOND, DefaultsTable, NewJob, check_count, parse_job
from ..errors import ConfigError, TooLarge
from .copying import refuse_nul
from .notice import notice
from .saying import asay, say
from .statements import Copy, Query, SortedOut, Steps, copy_new, insert_once
from .tables import (
    BLOCK,
    CAPABILITIES,
    KEY_WINDOW,
    MAX_PAYLOAD,
    channel,
    no_tables,
    qualified,
    refuse_version,
)

#: What jobs get that do not say: the settings of their types are the servers'.
_DEFAULTS: Final = DefaultsTable()
#: How often jobs are compared anew when another transaction was first.
_TRIES: Final = 20

Jobs: TypeAlias = Mapping[str, Any] | Iterable[Mapping[str, Any]]


class Done(NamedTuple):
    """All is said; the ids of the jobs."""

    ids: list[str]


def insert(
    connection: psycopg.Connection[Any], jobs: Jobs, *, schema: str = "kqs", key_window: float = KEY_WINDOW
) -> list[str]:
    """Insert jobs in the connection's transaction: they are there when it commits, and only then.

    One that was not begun is begun, as by any other statement; in autocommit mode the jobs are committed when
    this returns. What is refused here is refused before anything is sent: the transaction is as it was. An
    error of PostgreSQL aborts it.

    Args:
        connection: of psycopg 3, any row factory and isolation level.
        jobs: one, or up to 10,000, each ``{"type": .., "data": .., ..}`` as ``Client.insert_many`` takes it,
            or made by an App's ``job``.
        schema: where the tables are, as in ``[postgres]``.
        key_window: seconds an idempotency key is remembered, as in ``[journal]``.

    Returns:
        Their ids, in order. A job whose ``key`` was used, or whose ``unique`` stands, is not inserted: its id
        is that of the other one.

    Raises:
        BadRequest, UnknownField, TooLarge: naming ``field``, and ``index`` of one of several jobs.
        TypeError: ``connection`` is none of psycopg, or a job holds something JSON does not have.
        ConfigError: the tables are missing, older or newer; ``client_encoding`` is not UTF8.
        psycopg.Error: what PostgreSQL refused. ``SerializationFailure``: do the whole transaction again.
    """
    _check(connection, psycopg.Connection)
    steps = _steps(_valid(jobs), schema, key_window)
    with ExitStack() as stack:
        if _is_own(connection):
            stack.enter_context(connection.transaction())
        cursor = stack.enter_context(psycopg.Cursor(connection, row_factory=tuple_row))
        step = next(steps)
        while not isinstance(step, Done):
            try:
                rows = say(cursor, step)
            except psycopg.Error as error:
                step = steps.throw(error)
            else:
                step = steps.send(rows)
        return step.ids


async def ainsert(
    connection: psycopg.AsyncConnection[Any],
    jobs: Jobs,
    *,
    schema: str = "kqs",
    key_window: float = KEY_WINDOW,
) -> list[str]:
    """:func:`insert` for asyncio."""
    _check(connection, psycopg.AsyncConnection)
    steps = _steps(_valid(jobs), schema, key_window)
    async with AsyncExitStack() as stack:
        if _is_own(connection):
            await stack.enter_async_context(connection.transaction())
        cursor = await stack.enter_async_context(psycopg.AsyncCursor(connection, row_factory=tuple_row))
        step = next(steps)
        while not isinstance(step, Done):
            try:
                rows = await asay(cursor, step)
            except psycopg.Error as error:
                step = steps.throw(error)
            else:
                step = steps.send(rows)
        return step.ids


def _check(connection: Any, kind: type[psycopg.Connection[Any]] | type[psycopg.AsyncConnection[Any]]) -> None:
    """Refuse what is no connection of psycopg, and one that would not say what is meant."""
    if not isinstance(connection, kind):
        given = f"{type(connection).__module__}.{type(connection).__name__}"
        raise TypeError(
            f"needs a psycopg.{kind.__name__}, not a {given}; Django has one as connection.connection,"
            " SQLAlchemy as driver_connection"
        )
    encoding = connection.info.encoding
    if encoding != "utf-8":
        raise ConfigError(f"client_encoding must be UTF8: this connection's is {encoding}")


def _is_own(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether nobody has begun a transaction, nor will psycopg."""
    return connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE


def _valid(jobs: Jobs) -> list[NewJob]:
    """The jobs, checked as an insert call checks them."""
    if isinstance(jobs, Mapping):
        return [_new_job(jobs, None)]
    given = list(jobs)
    check_count(len(given))
    return [_new_job(job, index) for index, job in enumerate(given)]


def _new_job(given: Any, index: int | None) -> NewJob:
    blob = None
    field = "data"
    if isinstance(given, Mapping):
        given = dict(given)
        if isinstance(given.get("data"), bytes | bytearray | memoryview):
            blob = bytes(given.pop("data"))
        elif "data64" in given:
            field = "data64"
    job = parse_job(msgspec.json.encode(given), _DEFAULTS, CAPABILITIES, index=index, blob=blob)
    if len(job.data) > MAX_PAYLOAD:
        raise TooLarge(
            f"the payload has {len(job.data)} bytes, a row holds {MAX_PAYLOAD}; keep it elsewhere and insert"
            " where it lies",
            field=field,
            index=index,
            limit=MAX_PAYLOAD,
        )
    refuse_nul(job, index)
    return job


def _steps(
    jobs: list[NewJob], schema: str, key_window: float
) -> Generator[Query | Copy | Done, Sequence[tuple[Any, ...]], None]:
    """What is said for jobs to be in the tables, and servers to be told at the commit."""
    at = qualified(schema)
    prefix, now, isolation, numbers = yield from _begin(at, schema, len(jobs))
    if any(job.options.key is not None or job.options.unique is not None for job in jobs):
        found = yield from _undisturbed(
            lambda: insert_once(at, jobs, numbers, now, int(key_window * SECOND)), isolation
        )
    else:
        found = SortedOut(numbers, [], list(zip(jobs, numbers, strict=True)), [])
        yield copy_new(at, found.fresh, now)
    if found.fresh:
        yield Query("SELECT pg_notify(%s, %s)", [channel(schema), notice(found.fresh, now)])
    yield Done([f"{prefix}-{number}" for number in found.numbers])


def _begin(at: str, schema: str, count: int) -> Steps[tuple[str, int, str, list[int]]]:
    """What ids begin with, the database's time, the isolation level, and numbers for the jobs."""
    try:
        [row] = yield Query(
            f"SELECT (SELECT max(step) FROM {at}version), (SELECT prefix FROM {at}cluster),"
            " (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,"
            " current_setting('transaction_isolation'),"
            f" ARRAY(SELECT nextval('{at}job_number') FROM generate_series(1, %s::integer))",
            [-(-count // BLOCK)],
        )
    except (pg.UndefinedTable, pg.InvalidSchemaName) as error:
        raise ConfigError(no_tables(schema)) from error
    version, prefix, now, isolation, blocks = row
    refuse_version(schema, version or 0)
    numbers = [number for block in blocks for number in range(block, block + BLOCK)]
    return prefix, now, isolation, numbers[:count]


def _undisturbed(attempt: Callable[[], Steps[SortedOut]], isolation: str) -> Steps[SortedOut]:
    """Attempt it until no other transaction was first; what it then finds is the other's."""
    yield Query("SAVEPOINT kqs_insert")
    for left in reversed(range(_TRIES)):
        try:
            found = yield from attempt()
        except pg.UniqueViolation as error:
            if isolation in ("repeatable read", "serializable"):
                raise pg.SerializationFailure(
                    "another transaction has inserted a job with the same key or unique, which this one's"
                    f" isolation level ({isolation}) hides; do it again from its beginning"
                ) from error
            if not left:
                raise
            yield Query("ROLLBACK TO SAVEPOINT kqs_insert")
        else:
            yield Query("RELEASE SAVEPOINT kqs_insert")
            return found
    raise AssertionError
