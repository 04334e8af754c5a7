"""Servers whose jobs are in PostgreSQL: set up, at work, several at a time, and while it is away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kqs.engines.postgres.schema import newest
from kqs.errors import Busy
from kqs.testing.postgres import PostgresServer
from tests.databases import started
from tests.support import ServerProcess, kqs, until

LARGE = "x" * 200_000


@pytest.fixture
def config(postgres: PostgresServer, tmp_path: Path) -> str:
    """Settings with a schema of the test's own, migrated."""
    schema = f"t{os.getpid()}_{time.monotonic_ns()}"
    text = f'[engine]\nkind = "postgres"\n[postgres]\nurl = "{postgres.url}"\nschema = "{schema}"\n'
    (tmp_path / "migrate.toml").write_text(text)
    made = kqs("engine", "migrate", "--config", "migrate.toml", cwd=tmp_path)
    assert made.out == f"schema {schema}: version {newest()}, migrated from version 0\n"
    again = kqs("engine", "migrate", "--config", "migrate.toml", "--json", cwd=tmp_path)
    assert again.json == {"before": newest(), "after": newest()}
    return text


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[PostgresServer, str]]:
    """A PostgreSQL of the test's own, which it may kill, and settings for it; migrated."""
    with started() as server:
        text = f'[engine]\nkind = "postgres"\n[postgres]\nurl = "{server.url}"\nconnect_timeout = 2\n'
        (tmp_path / "migrate.toml").write_text(text)
        assert kqs("engine", "migrate", "--config", "migrate.toml", cwd=tmp_path).status == 0
        yield server, text


def reserve(client: Any, **more: Any) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = client.call("reserve", {"types": ["t"], **more})["jobs"]
    return jobs


def ack(client: Any, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = client.call(
        "settle", [{"receipt": job["receipt"], "outcome": "ok"} for job in jobs]
    )
    return answer


def test_handlers_run_and_everything_works_as_with_the_embedded_engine(
    start: Callable[..., ServerProcess], config: str, tmp_path: Path
) -> None:
    more = f'[handlers.echo]\ncommand = ["sh", "-c", "cat > {tmp_path}/out.$$"]\n'
    server = start(config + more)
    with server.client() as client:
        client.insert("echo", "small")
        client.insert("echo", LARGE)
        until(lambda: client.stats()["jobs"]["done"] == 2)
        assert sorted(path.stat().st_size for path in tmp_path.glob("out.*")) == [7, 200_002]
        id = client.insert("t", {"a": 1}, key="k", fair="f", delay=0.2)
        assert client.call("insert", {"type": "t", "key": "k"}) == {"id": id, "duplicate": True}
        assert client.call("why", {"id": id})["reasons"]
        [job] = until(lambda: reserve(client, wait=1))
        assert (job["id"], job["data"], job["attempt"]) == (id, {"a": 1}, 1)
        assert client.call("job", {"id": id})["leased_by"]
        assert ack(client, [job]) == {"settled": 1, "refused": []}
        assert client.call("job", {"id": id})["state"] == "done"
        assert client.stats()["engine"] == "postgres"
        assert client.health()["status"] == "ok"
        kept = client.insert("t", 2, result_ttl=60)
        [job] = reserve(client)
        client.call("settle", [{"receipt": job["receipt"], "outcome": "ok", "result": 42}])
        assert client.call("wait", {"id": kept, "timeout": 5})["result"] == 42
    assert "engine postgres" in kqs("stats", "--server", server.url).out


def test_two_servers_share_jobs_pauses_and_receipts(
    start: Callable[..., ServerProcess], config: str, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    one = start(config)
    two = ServerProcess(tmp_path / "second", config).start()
    try:
        with one.client() as first, two.client() as second:
            ids = first.insert_many([{"type": "t", "data": number} for number in range(40)])
            jobs = until(lambda: reserve(second, max=20, wait=1))
            jobs += reserve(first, max=40)
            assert sorted(job["id"] for job in jobs) == sorted(ids)
            assert ack(first, jobs)["settled"] == 40  # whoever gave them
            first.call("pause", {"type": "t"})
            second.insert("t", 1)
            assert reserve(second, wait=0.3) == []
            second.call("resume", {"type": "t"})
            until(lambda: reserve(first, wait=1))
        two.stop()
    finally:
        two.discard()


def test_leases_of_a_server_that_was_killed_are_free_in_seconds(
    start: Callable[..., ServerProcess], config: str, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    handler = '[handlers.t]\ncommand = ["sleep", "60"]\n'
    survivor = start(config)
    victim = ServerProcess(tmp_path / "second", config + handler).start()
    try:
        with survivor.client() as client:
            id = client.insert("t", 1, ttr=3600)
            until(lambda: client.call("job", {"id": id})["state"] == "reserved")
            victim.kill()
            [job] = until(lambda: reserve(client, wait=1), patience=30)
            assert (job["id"], job["attempt"]) == (id, 1)
    finally:
        victim.discard()


def test_a_database_that_is_away_is_busy_and_nothing_is_lost(
    start: Callable[..., ServerProcess], own: tuple[PostgresServer, str]
) -> None:
    postgres, text = own
    server = start(text)
    with server.client() as client:
        ids = [client.insert("t", number) for number in range(10)]
        postgres.kill()
        with pytest.raises(Busy):
            until(lambda: client.insert("t", 1) and None)
        assert reserve(client) == []
        assert client.call("ping") == "pong"
        postgres.start()
        ids += [until(lambda: _insert(client))]
        seen: set[str] = set()

        def all_there() -> bool:
            jobs = reserve(client, max=50, wait=0.5)
            ack(client, jobs)
            seen.update(job["id"] for job in jobs)
            return seen >= set(ids)

        until(all_there)
    assert "Traceback" not in server.stderr.text
    server.stop()


def test_handlers_go_on_after_a_database_that_was_killed_under_them(
    start: Callable[..., ServerProcess], own: tuple[PostgresServer, str], tmp_path: Path
) -> None:
    postgres, text = own
    handler = f'[handlers.t]\nttr = 5\ncommand = ["sh", "-c", "cat >> {tmp_path}/ran.$KQS_JOB_ID"]\n'
    server = start(text + handler)
    ids: list[str] = []
    with server.client() as client:
        for _ in range(3):
            ids += [client.insert("t", number) for number in range(40)]
            time.sleep(0.1)
            postgres.kill()
            time.sleep(0.5)
            postgres.start()
            until(lambda: client.health()["status"] == "ok")

        def all_done() -> bool:
            try:
                jobs = client.stats()["jobs"]
            except Busy:
                return False
            return not (jobs["ready"] or jobs["reserved"] or jobs["delayed"])

        until(all_done)
        assert [id for id in ids if not (tmp_path / f"ran.{id}").exists()] == []
        assert all(worker["restarts"] == 0 for worker in client.stats()["workers"])
    assert "Traceback" not in server.stderr.text
    server.stop()


def _insert(client: Any) -> str | None:
    try:
        id: str = client.insert("t", "after")
    except Busy:
        time.sleep(0.1)
        return None
    return id


def test_what_cannot_be_is_refused_at_start(postgres: PostgresServer, tmp_path: Path) -> None:
    def refusal(text: str, *command: str) -> str:
        (tmp_path / "kqs.toml").write_text(f'[server]\nlisten = "127.0.0.1:0"\n{text}')
        done = kqs(*(command or ("serve",)), "--config", "kqs.toml", cwd=tmp_path)
        assert done.status == 2
        return done.err

    head = '[engine]\nkind = "postgres"\n[postgres]\n'
    assert "kqs engine migrate" in refusal(f'{head}url = "{postgres.url}"\nschema = "nothing_here"\n')
    away = f'{head}url = "postgresql://user:hunter2@127.0.0.1:1/x"\nconnect_timeout = 1\n'
    for command in (("serve",), ("engine", "migrate")):
        text = refusal(away, *command)
        assert "postgres.url" in text and "hunter2" not in text
    assert "has no tables to migrate" in refusal("", "engine", "migrate")
    postgres.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    latin = f'{head}url = "{postgres.url} dbname=latin"\n'
    assert "encoding is LATIN1; it must be UTF8" in refusal(latin)


def test_a_server_that_is_told_to_stop_gives_back_what_it_holds(
    start: Callable[..., ServerProcess], config: str
) -> None:
    server = start(config)
    with server.client() as client:
        id = client.insert("t", 1)
        reserve(client)
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 0
    server.start()
    with server.client() as client:
        assert client.call("job", {"id": id})["state"] == "reserved"  # a remote worker's, until its ttr
