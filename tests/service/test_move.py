"""``kqs engine move``: from the embedded engine to another one, and nothing is lost on the way."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest

from kqs.testing.beanstalkd import Beanstalkd
from tests.conftest import unavailable
from tests.databases import started
from tests.support import Finished, ServerProcess, environment, kqs, until

LARGE = "x" * 100_000


@pytest.fixture
def beanstalkd() -> Iterator[Beanstalkd]:
    if shutil.which("beanstalkd") is None:
        unavailable("needs beanstalkd")
    server = Beanstalkd()
    server.start()
    yield server
    server.discard()


def settings(beanstalkd: Beanstalkd, data: Path) -> str:
    return f"""
[server]
data = "{data}"
[engine]
kind = "beanstalkd"
[beanstalkd]
servers = ["{beanstalkd.address.host}:{beanstalkd.address.port}"]
[bulk]
shared = true
"""


def write(folder: Path, beanstalkd: Beanstalkd, data: Path | None = None) -> None:
    (folder / "old.toml").write_text(f'[server]\ndata = "{folder}/data"\n')
    (folder / "new.toml").write_text(settings(beanstalkd, data or folder / "data"))


def move(folder: Path, *more: str) -> Finished:
    return kqs("engine", "move", "--from", "old.toml", "--to", "new.toml", *more, cwd=folder)


def drain(client: Any, count: int) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []

    def all_there() -> bool:
        more = client.call("reserve", {"max": 1000, "wait": 0.2})["jobs"]
        client.call("settle", [{"receipt": job["receipt"], "outcome": "ok"} for job in more])
        jobs.extend(more)
        return len({(job["type"], str(job.get("data"))) for job in jobs}) >= count  # some may come twice

    until(all_there)
    return jobs


def fill(start: Callable[..., ServerProcess]) -> None:
    """20,000 jobs in the embedded engine, whose server is stopped then."""
    server = start("")
    with server.client() as client:
        for first in range(0, 20_000, 5_000):
            client.insert_many([{"type": "t", "data": first + number} for number in range(5_000)])
    server.stop()


def kill_amid(words: list[str], folder: Path, progress: Callable[[], int], random: Random) -> bool:
    """Kill a move soon after it made some progress; whether it lived so long."""
    before = progress()
    moving = subprocess.Popen(
        [sys.executable, "-m", "kqs.cli.main", *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: progress() != before or moving.poll() is not None)
    time.sleep(random.uniform(0.0, 0.1))
    moving.kill()
    return moving.wait() == -signal.SIGKILL


def puts(beanstalkd: Beanstalkd) -> int:
    """How many jobs were put into it."""
    with socket.create_connection((beanstalkd.address.host, beanstalkd.address.port)) as other:
        other.sendall(b"stats\r\n")
        text = b""
        while not text.endswith(b"\r\n") or b"cmd-put" not in text:
            text += other.recv(65536)
    return int(text.partition(b"cmd-put: ")[2].partition(b"\n")[0])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_all_jobs_go_on_in_the_new_engine(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd, tmp_path: Path, elsewhere: bool
) -> None:
    server = start("")
    with server.client() as client:
        client.insert("plain", {"a": 1}, prio="high", ttr=7, max_attempts=3)
        client.insert("large", LARGE)
        client.insert("bytes", bytes(range(256)))
        client.insert("later", 1, delay=2)
        client.insert("twice", 1)
        [job] = client.call("reserve", {"types": ["twice"]})["jobs"]
        client.call("settle", [{"receipt": job["receipt"], "outcome": "again", "delay": 0}])
        client.insert("done", 1)
        [job] = client.call("reserve", {"types": ["done"]})["jobs"]
        client.call("settle", [{"receipt": job["receipt"], "outcome": "ok"}])
    server.stop()
    data = tmp_path / ("other" if elsewhere else "data")
    write(tmp_path, beanstalkd, data)
    assert move(tmp_path).out == "5 jobs moved\n"
    assert move(tmp_path, "--json").json == {"jobs": 0, "dropped": {}}
    folder = tmp_path / "run"
    folder.mkdir()
    data.rename(folder / "data")
    fed = ServerProcess(folder, settings(beanstalkd, folder / "data")).start()
    try:
        with fed.client() as client:
            jobs = {job["type"]: job for job in drain(client, 5)}
            assert set(jobs) == {"plain", "large", "bytes", "later", "twice"}
            plain = jobs["plain"]
            assert (plain["data"], plain["prio"], plain["ttr"]) == ({"a": 1}, "high", 7)
            assert jobs["large"]["data"] == LARGE
            assert "data64" in jobs["bytes"]
        fed.stop()
    finally:
        fed.discard()


def test_what_cannot_be_kept_is_refused_and_nothing_is_changed(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd, tmp_path: Path
) -> None:
    server = start("")
    with server.client() as client:
        id = client.insert("t", 1, key="k", fair="f")
        buried = client.insert("t", 2)
        client.call("bury", {"id": buried})
    server.stop()
    write(tmp_path, beanstalkd)
    assert "1 jobs are buried" in move(tmp_path).err
    refused = move(tmp_path, "--kick-buried")
    assert refused.status == 2
    assert "--drop key --drop fair" in refused.err
    server.start()
    with server.client() as client:
        assert client.call("job", {"id": id})["state"] == "ready"
        assert client.call("job", {"id": buried})["state"] == "buried"
    server.stop()
    moved = move(tmp_path, "--kick-buried", "--drop", "key", "--drop", "fair")
    assert moved.out == "2 jobs moved\nkey was left out of 1 of them\nfair was left out of 1 of them\n"


def test_a_move_that_is_killed_is_begun_again(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd, tmp_path: Path
) -> None:
    fill(start)
    write(tmp_path, beanstalkd)
    words = ["engine", "move", "--from", "old.toml", "--to", "new.toml"]
    random = Random(1)
    killed = [kill_amid(words, tmp_path, lambda: puts(beanstalkd), random) for _ in range(6)]
    assert any(killed)
    move(tmp_path)
    server = start(settings(beanstalkd, tmp_path / "data"))
    with server.client() as client:
        assert {job["data"] for job in drain(client, 20_000)} == set(range(20_000))


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """Settings of a server on a PostgreSQL with tables."""
    with started() as server:
        text = f"""
[server]
data = "{tmp_path}/data"
[engine]
kind = "postgres"
[postgres]
url = "{server.url}"
"""
        (tmp_path / "old.toml").write_text(f'[server]\ndata = "{tmp_path}/data"\n')
        (tmp_path / "new.toml").write_text(text)
        assert kqs("engine", "migrate", "--config", "new.toml", cwd=tmp_path).status == 0
        yield text


def test_postgresql_keeps_all_that_jobs_have(
    start: Callable[..., ServerProcess], postgres: str, tmp_path: Path
) -> None:
    server = start("")
    with server.client() as client:
        client.insert("plain", {"a": 1}, prio="high", ttr=7, max_attempts=3, fair="f", key="k", result_ttl=60)
        client.insert("large", LARGE)
        client.insert("bytes", bytes(range(256)))
        client.insert("later", 1, delay=3600)
        client.insert("only", 1, unique="u")
        client.insert("ends", 1, expires=7200)
    server.stop()
    assert move(tmp_path).out == "6 jobs moved\n"
    assert move(tmp_path, "--json").json == {"jobs": 0, "dropped": {}}
    shutil.rmtree(tmp_path / "data" / "bulk")  # other servers have none of these files
    server = start(postgres)
    with server.client() as client:
        jobs = {job["type"]: job for job in client.call("jobs", {"limit": 100})["jobs"]}
        assert {name: job["state"] for name, job in jobs.items()} == {
            **dict.fromkeys(("plain", "large", "bytes", "only", "ends"), "ready"),
            "later": "delayed",
        }
        plain = jobs["plain"]
        assert (plain["prio"], plain["ttr"], plain["fair"]) == ("high", 7, "f")
        given = client.insert_many([{"type": "plain", "key": "k"}, {"type": "only", "unique": {"key": "u"}}])
        assert given == [plain["id"], jobs["only"]["id"]], "keys are kept"
        taken = {job["type"]: job for job in client.call("reserve", {"max": 10})["jobs"]}
        assert taken["large"]["data"] == LARGE
        assert b64decode(taken["bytes"]["data64"]) == bytes(range(256))
        assert taken["plain"]["data"] == {"a": 1}


def test_a_move_to_postgresql_that_is_killed_is_begun_again(
    start: Callable[..., ServerProcess], postgres: str, tmp_path: Path
) -> None:
    fill(start)
    words = ["engine", "move", "--from", "old.toml", "--to", "new.toml"]
    random = Random(1)
    with psycopg.connect(postgres.partition('url = "')[2].partition('"')[0], autocommit=True) as connection:

        def moved() -> int:
            [row] = connection.execute("SELECT count(*) FROM kqs.job").fetchall()
            return int(row[0])

        killed = [kill_amid(words, tmp_path, moved, random) for _ in range(6)]
        assert any(killed)
    move(tmp_path)
    server = start(postgres)
    with server.client() as client:
        count = client.stats()["jobs"]["ready"]
        assert 20_000 <= count <= 26_000, "what was under way may be there twice, 1,000 at a kill"
        assert {job["data"] for job in drain(client, 20_000)} == set(range(20_000))


def test_only_from_the_embedded_engine_to_another(beanstalkd: Beanstalkd, tmp_path: Path) -> None:
    write(tmp_path, beanstalkd)
    back = kqs("engine", "move", "--from", "new.toml", "--to", "old.toml", cwd=tmp_path)
    assert (back.status, "embedded engine only" in back.err) == (2, True)
    same = kqs("engine", "move", "--from", "old.toml", "--to", "old.toml", cwd=tmp_path)
    assert (same.status, "copy it" in same.err) == (2, True)
