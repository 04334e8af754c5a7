"""Oversize payloads in a store elsewhere: jobs wait while it is away, and none is lost or left behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kqs.errors import Busy, CallError
from tests.stores import MongoServer, S3Server, StoreServer
from tests.support import ServerProcess, kqs, until

LARGE = "x" * 100_000


@pytest.fixture(params=["mongo", "objects"])
def store(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    server = MongoServer() if request.param == "mongo" else S3Server()
    server.start()
    yield server
    server.discard()


def bulk(store: StoreServer, *, main: bool = True) -> str:
    kind = "mongo" if isinstance(store, MongoServer) else "objects"
    options = ", ".join(f"{name} = {json.dumps(value)}" for name, value in store.options.items())
    return f"""
[bulk]
store = "{kind if main else "files"}"
{kind} = "{store.url}"
options = {{{options}}}
timeout = 1.0
"""


def reserve(client: Any, **more: Any) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = client.call("reserve", {"types": ["t"], **more})["jobs"]
    return jobs


def ack(client: Any, jobs: list[dict[str, Any]]) -> None:
    settled = client.call("settle", [{"receipt": job["receipt"], "outcome": "ok"} for job in jobs])
    assert settled == {"settled": len(jobs), "refused": []}


def test_payloads_come_back_over_a_restart_and_go_with_their_jobs(
    start: Callable[..., ServerProcess], store: StoreServer, tmp_path: Path
) -> None:
    server = start(bulk(store))
    with server.client() as client:
        ids = [client.insert("t", f"{number}{LARGE}") for number in range(3)]
    server.kill()
    server.start()
    with server.client() as client:
        jobs = reserve(client, max=3)
        assert [(job["id"], job["data"]) for job in jobs] == [
            (id, f"{number}{LARGE}") for number, id in enumerate(ids)
        ]
        ack(client, jobs)
    assert [path.name for path in (tmp_path / "data" / "bulk").iterdir() if len(path.name) == 32] == []
    if isinstance(store, S3Server):
        until(lambda: not [path for path in store.objects.rglob("*") if path.is_file()])


def test_a_store_that_is_away_holds_jobs_up_and_says_so(
    start: Callable[..., ServerProcess], store: StoreServer
) -> None:
    server = start(bulk(store))
    with server.client() as client:
        id = client.insert("t", LARGE, max_attempts=1)
        store.kill()
        with pytest.raises(Busy, match="away"):
            client.insert("t", LARGE)
        client.insert("t", "small")  # nobody else feels it
        assert [job["data"] for job in reserve(client, max=2)] == ["small"]
        job = client.call("job", {"id": id})
        assert (job["state"], job["attempt"], job["last_error"]["kind"]) == ("delayed", 0, "bulk")
        assert "away" in job["last_error"]["message"]
        why = client.call("why", {"id": id})["reasons"]
        assert why[-1]["code"] == "bulk" and "away" in why[-1]["text"]
        store.start()
        jobs = until(lambda: reserve(client, wait=1))
        assert [(job["id"], job["attempt"], job["data"]) for job in jobs] == [(id, 1, LARGE)]
        ack(client, jobs)


def test_a_store_that_is_away_at_the_start_is_a_warning(
    start: Callable[..., ServerProcess], store: StoreServer
) -> None:
    store.kill()
    server = start(bulk(store))
    assert server.logged("jobs with oversize payloads wait")
    with server.client() as client:
        with pytest.raises(Busy):
            client.insert("t", LARGE)
        store.start()
        until(lambda: _inserted(client))
        [job] = reserve(client)
        assert job["data"] == LARGE


def _inserted(client: Any) -> bool:
    try:
        client.insert("t", LARGE)
    except Busy:
        return False
    return True


def test_nothing_accepted_is_lost_when_the_store_is_killed_under_load(
    start: Callable[..., ServerProcess], store: StoreServer
) -> None:
    server = start(bulk(store))
    accepted: dict[str, str] = {}
    over = threading.Event()

    def insert(seed: int) -> None:
        with server.client() as client:
            number = 0
            while not over.is_set():
                number += 1
                payload = f"{seed}-{number}-{LARGE}"
                try:
                    accepted[client.insert("t", payload)] = payload
                except CallError:
                    time.sleep(0.02)

    threads = [threading.Thread(target=insert, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            time.sleep(0.15)
            store.kill()
            time.sleep(0.1)
            store.start()
    finally:
        time.sleep(0.3)
        over.set()
        for thread in threads:
            thread.join()
    found: dict[str, str] = {}
    with server.client() as client:

        def all_done() -> bool:
            jobs = reserve(client, max=50, wait=0.2)
            found.update({job["id"]: job["data"] for job in jobs})
            ack(client, jobs)
            return accepted.keys() <= found.keys()

        until(all_done)
    assert all(found[id] == payload for id, payload in accepted.items())
    assert len(accepted) > 10


def test_an_object_that_is_missing_or_altered_is_told(start: Callable[..., ServerProcess]) -> None:
    store = S3Server()
    store.start()
    try:
        server = start(bulk(store))
        with server.client() as client:
            missing = client.insert("t", LARGE)
            [path] = [path for path in store.objects.rglob("*") if path.is_file() and len(path.name) == 32]
            path.unlink()
            altered = client.insert("t", LARGE)
            [path] = [path for path in store.objects.rglob("*") if path.is_file() and len(path.name) == 32]
            path.write_text("y" * len(LARGE))
            assert reserve(client, max=2) == []
            texts = {id: client.call("job", {"id": id})["last_error"]["message"] for id in (missing, altered)}
        assert "is not in the bulk store" in texts[missing]
        assert "SHA-256" in texts[altered]
    finally:
        store.discard()


def test_another_store_is_taken_and_the_old_one_still_read_or_the_start_refused(
    start: Callable[..., ServerProcess], store: StoreServer, tmp_path: Path
) -> None:
    server = start(bulk(store))
    with server.client() as client:
        client.insert("t", LARGE)
    server.stop()
    (tmp_path / "kqs.toml").write_text(f'[server]\ndata = "{tmp_path}/data"\nlisten = "127.0.0.1:0"\n')
    refused = kqs("serve", "--config", "kqs.toml", cwd=tmp_path)
    assert refused.status == 2
    assert "1 payloads of jobs here are in that store" in refused.err
    (tmp_path / "other").mkdir()
    (tmp_path / "data").rename(tmp_path / "other" / "data")
    other = ServerProcess(tmp_path / "other", bulk(store, main=False)).start()
    try:
        with other.client() as client:
            client.insert("t", f"2{LARGE}")
            jobs = reserve(client, max=2)
            assert [job["data"] for job in jobs] == [LARGE, f"2{LARGE}"]
            ack(client, jobs)
        other.stop()
    finally:
        other.discard()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('store = "mongo"', "bulk.mongo is missing"),
        ('store = "objects"\nobjects = "ftp://user:hunter2@x/"', "bulk.objects"),
        ('store = "mongo"\nmongo = "http://user:hunter2@x/"', "bulk.mongo"),
        ('store = "elsewhere"', "bulk.store"),
    ],
)
def test_settings_that_cannot_be_are_refused_without_telling_secrets(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "kqs.toml").write_text(f'[server]\nlisten = "127.0.0.1:0"\n[bulk]\n{text}\n')
    refused = kqs("serve", "--config", "kqs.toml", cwd=tmp_path)
    assert refused.status == 2
    assert says in refused.err
    assert "hunter2" not in refused.err


def test_two_servers_never_collect_each_others_payloads(
    start: Callable[..., ServerProcess], store: StoreServer, tmp_path: Path
) -> None:
    server = start(bulk(store))
    (tmp_path / "second").mkdir()
    with server.client() as client:
        client.insert("t", LARGE)
        second = ServerProcess(tmp_path / "second", bulk(store)).start()
        try:
            owners = [
                (tmp_path / folder / "data" / "bulk" / "owner").read_text() for folder in (".", "second")
            ]
            assert owners[0] != owners[1]
            with second.client() as other:
                other.insert("t", LARGE)
            assert [job["data"] for job in reserve(client)] == [LARGE]
            second.stop()
        finally:
            second.discard()
