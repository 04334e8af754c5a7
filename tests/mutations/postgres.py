"""Safeguards of inserts in a transaction of the caller's own."""

from __future__ import annotations

from .mutation import Mutation

_INSERT = "tests/postgres/test_insert.py"
_CONCURRENT = "tests/postgres/test_concurrent.py"
_SERVERS = "tests/postgres/test_servers.py"
_ORDER = f"{_CONCURRENT}::test_those_who_insert_the_same_in_another_order_do_not_wait_for_each_other"

MUTATIONS = [
    Mutation(
        "tables are looked for where the caller's search_path says",
        "postgres/tables.py",
        """    return f'"{schema}".'\n""",
        """    return ""\n""",
        (f"{_INSERT}::test_what_the_connection_is_set_to_does_not_matter",),
    ),
    Mutation(
        "rows come as the caller's row factory makes them",
        "postgres/insert.py",
        "psycopg.Cursor(connection, row_factory=tuple_row)",
        "psycopg.Cursor(connection)",
        (f"{_INSERT}::test_what_the_connection_is_set_to_does_not_matter",),
    ),
    Mutation(
        "in autocommit mode each statement is for itself",
        "postgres/insert.py",
        "            stack.enter_context(connection.transaction())\n",
        "            pass\n",
        (f"{_INSERT}::test_in_autocommit_mode_it_is_a_transaction_of_its_own",),
    ),
    Mutation(
        "tables of any version will do",
        "postgres/insert.py",
        "    refuse_version(schema, version or 0)\n",
        "",
        (f"{_INSERT}::test_tables_of_another_version",),
    ),
    Mutation(
        "text is sent as UTF-8 whatever PostgreSQL takes it for",
        "postgres/insert.py",
        """    if encoding != "utf-8":\n""",
        "    if False:\n",
        (f"{_INSERT}::test_what_is_no_connection_is_named",),
    ),
    Mutation(
        "a NUL character is left to PostgreSQL",
        "postgres/insert.py",
        "    refuse_nul(job, index)\n",
        "",
        (f"{_INSERT}::test_a_nul_where_text_can_hold_none",),
    ),
    Mutation(
        "a row may be of any size",
        "postgres/insert.py",
        "    if len(job.data) > MAX_PAYLOAD:\n",
        "    if False:\n",
        (f"{_INSERT}::test_a_payload_no_row_holds",),
    ),
    Mutation(
        "a key that another transaction has used meanwhile is taken for free",
        "postgres/statements.py",
        "        if len(rows) < len(found.keys):\n",
        "        if False:\n",
        (f"{_CONCURRENT}::test_the_second_waits_and_gets_the_id_of_the_first",),
    ),
    Mutation(
        "a key that was used is overwritten",
        "postgres/statements.py",
        " WHERE k.at <= %s::bigint RETURNING 1",
        " WHERE %s::bigint IS NOT NULL RETURNING 1",
        (f"{_CONCURRENT}::test_the_second_waits_and_gets_the_id_of_the_first",),
    ),
    Mutation(
        "who was second is not compared anew",
        "postgres/insert.py",
        "            if not left:\n",
        "            if True:\n",
        (f"{_CONCURRENT}::test_the_second_waits_and_gets_the_id_of_the_first",),
    ),
    Mutation(
        "who was second tries again though it cannot see the first",
        "postgres/insert.py",
        """            if isolation in ("repeatable read", "serializable"):\n""",
        "            if False:\n",
        (f"{_CONCURRENT}::test_where_the_first_is_hidden_the_second_is_told_to_begin_again",),
    ),
    Mutation(
        "keys are claimed in any order",
        "postgres/statements.py",
        " AS n (k, j) ORDER BY n.k ON CONFLICT",
        " AS n (k, j) ON CONFLICT",
        (_ORDER,),
    ),
    Mutation(
        "unique jobs are inserted in any order",
        "postgres/statements.py",
        """sorted(found.fresh, key=lambda fresh: _name(fresh[0]) or ("", ""))""",
        "found.fresh",
        (_ORDER,),
    ),
    Mutation(
        "a server waits for a transaction of somebody else's as long as that takes",
        "engines/postgres/insert.py",
        "                await connection.execute(_IMPATIENT)\n",
        "",
        (f"{_CONCURRENT}::test_a_server_waits_a_second_for_the_transaction_and_is_then_busy",),
        hangs=20,
    ),
    Mutation(
        "servers are not told of ready jobs",
        "engines/postgres/changes.py",
        "            self.notify(list({job[2] for job in told.jobs}))\n",
        "            pass\n",
        (f"{_SERVERS}::test_a_server_is_woken_by_the_commit_and_not_before",),
    ),
    Mutation(
        "servers are not told when jobs are due",
        "postgres/notice.py",
        "            yield now + job.delay\n",
        "            pass\n",
        (f"{_SERVERS}::test_a_delayed_job_is_not_late_nor_early",),
    ),
    Mutation(
        "a notice is as long as it gets",
        "postgres/notice.py",
        "        if len(text) <= _MOST:\n",
        "        if True:\n",
        (f"{_SERVERS}::test_all_are_told_of_in_one_notice",),
    ),
    Mutation(
        "a notice is believed",
        "postgres/notice.py",
        "_PrioNumber = Annotated[int, Meta(ge=0, lt=len(PRIOS))]\n",
        "_PrioNumber = int\n",
        (f"{_SERVERS}::test_a_notice_that_is_nonsense_stops_nothing",),
    ),
]
