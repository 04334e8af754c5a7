"""Several ``kqs serve`` on one PostgreSQL: they are killed, PostgreSQL is, and clocks strike meanwhile."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from kqs.testing.faketime import faketime
from kqs.testing.postgres import PostgresServer
from tests.support import ServerProcess, until

from .postgres import running

MINUTES = 6
CRON = '[cron.each]\nschedule = "* * * * *"\ntype = "each"\nmissed = "all"\n'
Start = Callable[..., ServerProcess]


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with running() as server:
        yield server


@pytest.fixture
def start(postgres: PostgresServer, tmp_path: Path) -> Iterator[Start]:
    """Starts servers, each in a folder of its own."""
    servers: list[ServerProcess] = []
    engine = f'[engine]\nkind = "postgres"\n[postgres]\nurl = "{postgres.url}"\n'

    def make(config: str = "", env: dict[str, str] | None = None, patience: float = 2) -> ServerProcess:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        servers.append(
            ServerProcess(
                folder, f"{engine}connect_timeout = {patience}\n[health]\ndisk_free = 0\n{config}", env=env
            )
        )
        return servers[-1].start()

    yield make
    for server in servers:
        server.discard()


def _told(server: ServerProcess) -> list[str]:
    return [line["event"] for line in server.logged() if line["event"].startswith("PostgreSQL is")]


@pytest.mark.service("faketime")
def test_a_cron_of_three_servers_runs_once_each_time(
    postgres: PostgresServer, start: Start, tmp_path: Path
) -> None:
    """The wall clock of all of them is set to the next minute, and one is killed at that moment."""
    random = Random(1)
    clock = tmp_path / "clock"
    offset = 60.0 - time.time() % 60 - 20

    def strike() -> None:
        nonlocal offset
        new = clock.with_suffix(".new")
        new.write_text(f"{offset:+.3f}\n")
        new.replace(clock)
        offset += 60.0

    def made() -> int:
        return int(postgres.sql("SELECT count(*) FROM kqs.job WHERE type = 'each'")[0][0])

    strike()
    env = faketime(timestamp_file=str(clock), no_cache="1", dont_fake_monotonic="1")
    servers = [start(CRON, env) for _ in range(3)]
    until(lambda: postgres.sql("SELECT at FROM kqs.cron"), "the first mark")
    assert made() == 0
    for minute in range(1, MINUTES + 1):
        strike()
        time.sleep(random.random() * 0.3)
        victim = servers[minute % 3]
        victim.kill()
        until(lambda minute=minute: made() >= minute, "the run of this minute")
        victim.start()
    for server in servers:
        server.stop()
    assert made() == MINUTES


def test_leases_of_servers_killed_under_load_run_elsewhere_in_seconds(start: Start, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    handler = f'[handlers.t]\nttr = 3600\ncommand = ["sh", "-c", "sleep 0.05; echo $KQS_JOB_ID >> {ran}"]\n'
    survivor, victim = start(handler), start(handler)

    def seen() -> set[str]:
        return set(ran.read_text().split()) if ran.exists() else set()

    with survivor.client() as client:
        for _ in range(3):
            ids = set(client.insert_many([{"type": "t", "data": None} for _ in range(60)]))
            with victim.client() as other:
                until(lambda other=other: other.stats()["postgresql"]["leases"] > 0, "its workers to work")
            victim.kill()
            until(lambda ids=ids: seen() >= ids, "all jobs to run, those of the one that was killed too", 20)
            victim.start()
        victim.client().call("pause", {"type": "t"})
        held = client.insert_many([{"type": "t", "data": None} for _ in range(20)])
        time.sleep(0.5)  # of workers that wait at both
        assert not seen() & set(held)
        client.call("resume", {"type": "t"})
        until(lambda: seen() >= set(held), "the pause to end")
    for server in (survivor, victim):
        server.stop()


def test_a_server_that_is_late_after_a_restart_of_postgresql_is_not_taken_for_dead(
    postgres: PostgresServer, start: Start, tmp_path: Path
) -> None:
    began = tmp_path / "began"
    handler = f'[handlers.t]\nttr = 3600\ncommand = ["sh", "-c", "echo >> {began}; exec sleep 600"]\n'
    late, early = start(handler), start()
    with early.client() as client:
        id = client.insert("t")
        until(began.exists, "the handler")
        client.insert("nobody's")  # its commit covers the lease, which does not wait for the disk
        late.process.send_signal(signal.SIGSTOP)
        postgres.kill()
        postgres.start()
        fresh = start(handler)
        until(
            lambda: _told(early) == ["PostgreSQL is away", "PostgreSQL is back"], "the other one to be back"
        )
        time.sleep(1.0)
        late.process.send_signal(signal.SIGCONT)
        until(lambda: _told(late)[-1:] == ["PostgreSQL is back"], "the late one to be back")
        time.sleep(5.0)  # by now the others look for dead servers again, and have looked twice
        job = client.job(id)
        assert (job["state"], job["attempt"], began.read_text()) == ("reserved", 1, "\n")
        late.kill()
        until(lambda: began.read_text() == "\n\n", "a server that is dead to be noticed", 20)
    fresh.kill()
    early.stop()


def test_an_outage_is_told_once(postgres: PostgresServer, start: Start) -> None:
    server = start(CRON + '[handlers.t]\ncommand = ["true"]\n', patience=0.3)
    with server.client() as client:
        client.insert("t")
        postgres.kill()
        until(lambda: client.health()["status"] != "ok", "its health to say so")
        time.sleep(4.0)  # in which a minute may begin
        postgres.start()
        until(lambda: client.health()["status"] == "ok", "its health to say that it is over")
        id = client.insert("t")
        until(lambda: client.job(id)["state"] == "done", "a job to run")
    counts = Counter(line["event"] for line in server.logged() if line["level"] in ("warning", "error"))
    assert counts.pop("PostgreSQL has no synchronous standby: a failover can lose accepted jobs") == 1
    assert set(counts.values()) == {1}, counts
    until(lambda: _told(server) == ["PostgreSQL is away", "PostgreSQL is back"], "its end to be told")
    server.stop()
