"""``kqs.postgres.insert`` in a transaction of the caller's own, on a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg import errors as pg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

import kqs.postgres
from kqs import App
from kqs.core.job import PRIO_NUMBER, DefaultsTable, parse_batch, parse_job
from kqs.errors import BadRequest, CallError, ConfigError, TooLarge
from kqs.postgres.tables import CAPABILITIES, MAX_PAYLOAD
from kqs.testing.postgres import PostgresServer
from tests.support import until

from .conftest import Connect, Tables

BYTES = bytes(range(256))


def test_jobs_are_there_when_the_transaction_commits(connect: Connect, schema: str, tables: Tables) -> None:
    connection = connect()
    first = kqs.postgres.insert(connection, {"type": "a", "data": 1}, schema=schema)
    more = kqs.postgres.insert(connection, [{"type": "b"}, {"type": "c"}], schema=schema)
    assert connection.info.transaction_status is TransactionStatus.INTRANS
    assert tables.ids() == []
    connection.commit()
    assert tables.ids() == [*first, *more]
    assert len({*first, *more}) == 3


def test_what_is_rolled_back_never_was(connect: Connect, schema: str, tables: Tables) -> None:
    connection = connect()
    job = {"type": "a", "key": "k", "unique": "u"}
    lost = kqs.postgres.insert(connection, job, schema=schema)
    connection.rollback()
    assert tables.ids() == tables.rows("SELECT * FROM {}.key") == []
    kept = kqs.postgres.insert(connection, job, schema=schema)
    connection.commit()
    assert tables.ids() == kept != lost


def test_a_savepoint_takes_back_what_came_after_it(connect: Connect, schema: str, tables: Tables) -> None:
    connection = connect()
    kept = kqs.postgres.insert(connection, {"type": "a", "key": "one"}, schema=schema)
    with pytest.raises(ZeroDivisionError), connection.transaction():
        kqs.postgres.insert(connection, {"type": "a", "key": "two"}, schema=schema)
        raise ZeroDivisionError
    kept += kqs.postgres.insert(connection, {"type": "a", "key": "two"}, schema=schema)
    connection.commit()
    assert tables.ids() == kept


def test_a_client_that_is_killed_before_its_commit_leaves_nothing(
    postgres: PostgresServer, schema: str, tables: Tables
) -> None:
    program = (
        "import sys, psycopg, kqs.postgres\n"
        "connection = psycopg.connect(sys.argv[1])\n"
        "kqs.postgres.insert(connection, {'type': 'a', 'key': 'k'}, schema=sys.argv[2])\n"
        "print(connection.info.backend_pid, flush=True)\n"
        "input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, postgres.url, schema],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        backend = int(process.stdout.readline())
        process.kill()
    query = "SELECT FROM pg_stat_activity WHERE pid = %s"
    until(lambda: not tables.rows(query, backend), "its backend to end")
    assert tables.ids() == tables.rows("SELECT * FROM {}.key") == []


def test_in_autocommit_mode_it_is_a_transaction_of_its_own(
    connect: Connect, schema: str, tables: Tables
) -> None:
    connection = connect(autocommit=True)
    ids = kqs.postgres.insert(connection, [{"type": "a", "key": "k"}, {"type": "a"}], schema=schema)
    assert connection.info.transaction_status is TransactionStatus.IDLE
    assert tables.ids() == ids
    connection.execute(f"ALTER TABLE {schema}.job ADD CHECK (type <> 'no')")
    with pytest.raises(pg.CheckViolation):
        kqs.postgres.insert(connection, {"type": "no", "key": "other"}, schema=schema)
    assert connection.info.transaction_status is TransactionStatus.IDLE
    assert tables.ids() == ids
    assert tables.rows("SELECT key FROM {}.key") == [("k",)]
    with connection.transaction(force_rollback=True):
        kqs.postgres.insert(connection, {"type": "a"}, schema=schema)
    assert tables.ids() == ids


@pytest.mark.parametrize("isolation", list(IsolationLevel), ids=lambda level: level.name)
@pytest.mark.parametrize("cursor", [psycopg.ClientCursor, psycopg.RawCursor])
def test_what_the_connection_is_set_to_does_not_matter(
    connect: Connect, schema: str, tables: Tables, isolation: IsolationLevel, cursor: Any
) -> None:
    connection = connect(row_factory=dict_row, cursor_factory=cursor)
    connection.isolation_level = isolation
    connection.prepare_threshold = 0
    connection.execute("SET search_path TO pg_temp")
    connection.execute("CREATE TEMPORARY TABLE job (id text)")
    connection.execute("CREATE TEMPORARY TABLE key (id text)")
    ids: list[str] = []
    for key in ("a", "b", "a"):
        ids += kqs.postgres.insert(connection, {"type": "a", "key": key, "unique": key}, schema=schema)
        ids += kqs.postgres.insert(connection, {"type": "a"}, schema=schema)
    connection.commit()
    assert ids[4] == ids[0]
    assert tables.ids() == [id for position, id in enumerate(ids) if position != 4]


def test_the_schema_is_kqs_when_none_is_named(postgres: PostgresServer, connect: Connect) -> None:
    with pytest.raises(ConfigError, match=r"'kqs' has no tables yet.*kqs engine migrate"):
        kqs.postgres.insert(connect(), {"type": "a"})


def test_every_field_is_stored_as_an_insert_call_would(connect: Connect, schema: str, tables: Tables) -> None:
    connection = connect(autocommit=True)
    full = {
        "type": "mäil",
        "data": {"a": [1, None, "\0ü"]},
        "prio": "high",
        "delay": 1.5,
        "ttr": 7,
        "key": "k",
        "unique": {"key": "ü", "scope": "queued"},
        "fair": "f",
        "max_attempts": 3,
        "retry": {"backoff": "fixed", "base": 2},
        "expires": 60,
        "result_ttl": 5,
    }
    jobs = [
        full,
        {"type": "b", "data": BYTES},
        {"type": "b", "data": memoryview(BYTES)},
        {"type": "b", "data64": "AAE="},
        {"type": "b", "data": {"type": "Buffer", "data": [1, 2]}},
        {"type": "b"},
    ]
    before = time.time_ns() // 1000
    ids = kqs.postgres.insert(connection, jobs, schema=schema)
    after = time.time_ns() // 1000
    assert tables.ids() == ids
    rows = tables.rows(
        "SELECT type, data, is_binary, prio, state, due - inserted, overdue - inserted, ttr, fair,"
        " unique_key, unique_queued, options, inserted FROM {}.job ORDER BY id"
    )
    [called] = parse_batch(msgspec.json.encode([full]), DefaultsTable(), CAPABILITIES)
    first = rows[0]
    assert first[:8] == ("mäil", called.data, False, PRIO_NUMBER["high"], 1, 1_500_000, 60_000_000, 7000)
    assert first[8:11] == ("f", "ü", True)
    assert msgspec.json.decode(first[11], type=type(called.options)) == called.options
    assert before <= first[12] <= after  # this machine's clock is the database's
    assert [(row[1], row[2]) for row in rows[1:]] == [
        (BYTES, True),
        (BYTES, True),
        (b"\0\1", True),
        (b"\1\2", True),
        (b"null", False),
    ]
    assert rows[5][3:6] + rows[5][7:12] == (PRIO_NUMBER["normal"], 2, 0, 30_000, "", None, False, None)


def test_what_an_app_makes_can_be_inserted(connect: Connect, schema: str, tables: Tables) -> None:
    app = App()

    @app.job("thumbnail", ttr=60, keep_alive=True, max_runtime=600)
    def thumbnail(path: str, size: int = 100) -> None:
        pass

    @app.job("raw")
    def raw(data: bytes) -> None:
        pass

    connection = connect(autocommit=True)
    job = thumbnail.using(prio="high", delay=1, unique="a").job(path="a.png")
    assert job == {
        "type": "thumbnail",
        "data": {"path": "a.png"},
        "ttr": 60,
        "prio": "high",
        "delay": 1,
        "unique": "a",
    }
    ids = kqs.postgres.insert(connection, [job, raw.job(data=BYTES)], schema=schema)
    assert ids[:1] == kqs.postgres.insert(
        connection, thumbnail.using(unique="a").job(path="b"), schema=schema
    )
    assert tables.rows("SELECT ttr, data FROM {}.job ORDER BY id") == [
        (60_000, b'{"path":"a.png"}'),
        (30_000, BYTES),
    ]
    with pytest.raises(TypeError, match="sise"):
        thumbnail.job(path="a.png", sise=1)


# -- keys and unique jobs -----------------------------------------------------------------------------


def test_of_jobs_with_the_same_key_the_first_is_inserted(
    connect: Connect, schema: str, tables: Tables
) -> None:
    connection = connect()
    jobs: list[dict[str, Any]] = [
        {"type": "a", "key": "k"},
        {"type": "b", "key": "k"},
        {"type": "a", "unique": "u"},
        {"type": "a", "unique": "u", "key": "new"},
        {"type": "b", "unique": "u"},
        {"type": "a"},
    ]
    ids = kqs.postgres.insert(connection, jobs, schema=schema)
    assert (ids[1], ids[3]) == (ids[0], ids[2])
    assert len(set(ids)) == 4
    again = kqs.postgres.insert(connection, jobs[:5], schema=schema)
    assert again == ids[:5]
    connection.commit()
    assert tables.ids() == [ids[0], ids[2], ids[4], ids[5]]
    assert tables.rows("SELECT key FROM {}.key") == [("k",)]  # as the insert call has it
    [other] = kqs.postgres.insert(connection, {"type": "c", "key": "k"}, schema=schema, key_window=0)
    assert other not in ids
    connection.commit()
    assert kqs.postgres.insert(connection, {"type": "c", "key": "k"}, schema=schema) == [other]


def test_ten_thousand_jobs_are_one_call_and_one_more_is_refused(
    connect: Connect, schema: str, tables: Tables
) -> None:
    connection = connect()
    jobs = [
        {"type": "a", "data": number, "key": f"k{number}", "unique": f"u{number}"} for number in range(10_000)
    ]
    ids = kqs.postgres.insert(connection, jobs, schema=schema)
    assert kqs.postgres.insert(connection, jobs[::-1], schema=schema) == ids[::-1]
    plain = kqs.postgres.insert(connection, [{"type": "a"}] * 10_000, schema=schema)
    connection.commit()
    assert tables.ids() == [*ids, *plain]
    with pytest.raises(TooLarge) as raised:
        kqs.postgres.insert(connection, [{"type": "a"}] * 10_001, schema=schema)
    assert raised.value.limit == 10_000


# -- what is refused ----------------------------------------------------------------------------------

REFUSED: list[tuple[Any, str | None]] = [
    ([], None),
    ([{"type": "a"}, {"data": 1}], "type"),
    ([{"type": "a"}, {"type": ""}], "type"),
    ([{"type": "a"}, {"type": "x" * 198}], "type"),
    ([{"type": "a"}, {"type": "a", "prio": "hihg"}], "prio"),
    ([{"type": "a"}, {"type": "a", "delay": -1}], "delay"),
    ([{"type": "a"}, {"type": "a", "ttr": 0}], "ttr"),
    ([{"type": "a"}, {"type": "a", "maxattempts": 1}], "maxattempts"),
    ([{"type": "a"}, {"type": "a", "key": ""}], "key"),
    ([{"type": "a"}, {"type": "a", "data64": "!"}], "data64"),
    ([{"type": "a"}, {"type": "a", "data64": "AA==", "data": 1}], "data"),
    ([{"type": "a"}, {"type": "a", "delay": 9, "expires": 5}], "expires"),
    ([{"type": "a"}, {"type": "a", "unique": {"key": "a", "scoop": 1}}], "unique.scoop"),
    ([{"type": "a"}, 5], None),
    ({"type": "a", "ttr": "5"}, "ttr"),
    (5, None),
]


@pytest.mark.parametrize(("jobs", "field"), REFUSED, ids=repr)
def test_bad_input_gets_the_error_of_the_call_and_harms_no_transaction(
    connect: Connect, schema: str, tables: Tables, jobs: Any, field: str | None
) -> None:
    connection = connect()
    [kept] = kqs.postgres.insert(connection, {"type": "a"}, schema=schema)
    if jobs == 5:
        with pytest.raises(TypeError):
            kqs.postgres.insert(connection, jobs, schema=schema)
    else:
        with pytest.raises(CallError) as raised:
            kqs.postgres.insert(connection, jobs, schema=schema)
        parse = parse_batch if isinstance(jobs, list) else parse_job
        with pytest.raises(CallError) as called:
            parse(msgspec.json.encode(jobs), DefaultsTable(), CAPABILITIES)
        assert raised.type is called.type
        assert raised.value.to_wire() == called.value.to_wire()
        assert raised.value.field == field
    connection.commit()
    assert tables.ids() == [kept]


@pytest.mark.parametrize("field", ["type", "fair", "key", "unique"])
def test_a_nul_where_text_can_hold_none(connect: Connect, schema: str, field: str) -> None:
    connection = connect()
    with pytest.raises(BadRequest) as raised:
        kqs.postgres.insert(connection, [{"type": "a"}, {"type": "a", field: "a\0b"}], schema=schema)
    assert (raised.value.field, raised.value.index) == (field, 1)
    assert connection.info.transaction_status is TransactionStatus.IDLE


@pytest.mark.parametrize("field", ["data", "data64"])
def test_a_payload_no_row_holds(connect: Connect, schema: str, field: str) -> None:
    connection = connect()
    most = bytes(MAX_PAYLOAD)
    [_] = kqs.postgres.insert(connection, {"type": "a", "data": most}, schema=schema)
    connection.rollback()
    with pytest.raises(TooLarge) as raised:
        kqs.postgres.insert(connection, [{"type": "a"}, {"type": "a", field: most + b"1"}], schema=schema)
    assert (raised.value.field, raised.value.index, raised.value.limit) == (field, 1, MAX_PAYLOAD)


def test_what_json_has_not_is_a_type_error(connect: Connect, schema: str) -> None:
    connection = connect()
    with pytest.raises(TypeError):
        kqs.postgres.insert(connection, {"type": "a", "data": object()}, schema=schema)


def test_tables_of_another_version(connect: Connect, schema: str, tables: Tables) -> None:
    connection = connect()

    def refusal(name: str = schema) -> str:
        with pytest.raises(ConfigError) as raised:
            kqs.postgres.insert(connection, {"type": "a"}, schema=name)
        connection.rollback()
        return str(raised.value)

    tables.rows("INSERT INTO {}.version VALUES (9999) RETURNING 1")
    assert "is at version 9999" in refusal() and "a later one" in refusal()
    tables.rows("DELETE FROM {}.version WHERE step > 1 RETURNING 1")
    assert "is at version 1" in refusal() and "kqs engine migrate" in refusal()
    tables.rows("DELETE FROM {}.version RETURNING 1")
    assert "has no tables yet" in refusal()
    assert "has no tables yet" in refusal("never_made")
    for name in ('a"b', "", "A", "1a", "x" * 64):
        assert refusal(name).startswith("schema: ")
    assert tables.ids() == []


def test_a_transaction_that_takes_no_writes(connect: Connect, schema: str, tables: Tables) -> None:
    connection = connect()
    connection.read_only = True
    with pytest.raises(pg.ReadOnlySqlTransaction):
        kqs.postgres.insert(connection, {"type": "a"}, schema=schema)
    connection.rollback()
    connection.read_only = False
    with pytest.raises(pg.DivisionByZero):
        connection.execute("SELECT 1 / 0")
    with pytest.raises(pg.InFailedSqlTransaction):
        kqs.postgres.insert(connection, {"type": "a"}, schema=schema)
    connection.close()
    with pytest.raises(psycopg.OperationalError):
        kqs.postgres.insert(connection, {"type": "a"}, schema=schema)
    assert tables.ids() == []


def test_what_is_no_connection_is_named(connect: Connect, schema: str) -> None:
    with pytest.raises(TypeError, match=r"needs a psycopg\.Connection, not a builtins\.str"):
        kqs.postgres.insert("postgresql:///shop", {"type": "a"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"needs a psycopg\.AsyncConnection, not a psycopg\.Connection"):
        kqs.postgres.ainsert(connect(), {"type": "a"}).send(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="client_encoding must be UTF8"):
        kqs.postgres.insert(connect(client_encoding="latin1"), {"type": "ä"}, schema=schema)


# -- asyncio ------------------------------------------------------------------------------------------


async def test_the_same_with_asyncio(postgres: PostgresServer, schema: str, tables: Tables) -> None:
    jobs = [{"type": "a", "key": "k"}, {"type": "b", "data": BYTES}, {"type": "b", "key": "k"}]
    async with await psycopg.AsyncConnection.connect(postgres.url) as connection:
        await kqs.postgres.ainsert(connection, jobs, schema=schema)
        await connection.rollback()
        assert tables.ids() == []
        ids = await kqs.postgres.ainsert(connection, jobs, schema=schema)
        assert tables.ids() == []
        with pytest.raises(BadRequest):
            await kqs.postgres.ainsert(connection, {"type": "a", "ttr": 0}, schema=schema)
        await connection.commit()
    assert ids[2] == ids[0]
    assert tables.ids() == ids[:2]
    async with await psycopg.AsyncConnection.connect(postgres.url, autocommit=True) as connection:
        more = await kqs.postgres.ainsert(connection, {"type": "c"}, schema=schema)
        assert tables.ids() == [*ids[:2], *more]
        with pytest.raises(ConfigError):
            await kqs.postgres.ainsert(connection, {"type": "c"}, schema="never_made")


def test_importing_it_does_not_pull_the_server_in() -> None:
    program = (
        "import kqs.postgres, sys; print(*{m.split('.')[1] for m in sys.modules if m.startswith('kqs.')})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"client", "core", "errors", "postgres"}
