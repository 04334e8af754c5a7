"""A server whose jobs are in beanstalkds: what works, what is refused, and what others put."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kqs.errors import CallError, Unsupported
from kqs.testing.beanstalkd import Beanstalkd
from tests.support import ServerProcess, kqs, until

pytestmark = pytest.mark.service("beanstalkd")

HANDLERS = """
[handlers.echo]
command = ["sh", "-c", "cat >> OUT; echo >> OUT"]
[handlers.flaky]
command = ["sh", "-c", "echo x >> FLAKY; test $(wc -l < FLAKY) -ge 3"]
retry = {base = 0}
"""


def config(*servers: Beanstalkd, more: str = "", bulk: str = "shared = true") -> str:
    where = ", ".join(f'"{server.address.host}:{server.address.port}"' for server in servers)
    return f"""
[engine]
kind = "beanstalkd"
[beanstalkd]
servers = [{where}]
[bulk]
{bulk}
{more}
"""


@pytest.fixture(scope="module")
def beanstalkd() -> Iterator[Beanstalkd]:
    server = Beanstalkd()
    server.start()
    yield server
    server.discard()


def test_handlers_run_retry_and_take_oversize_payloads(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd, tmp_path: Path
) -> None:
    out, flaky = tmp_path / "out", tmp_path / "flaky"
    handlers = HANDLERS.replace("OUT", str(out)).replace("FLAKY", str(flaky))
    server = start(config(beanstalkd, more=handlers))
    with server.client() as client:
        client.insert("echo", "small")
        client.insert("echo", "x" * 200_000)
        client.insert("flaky")
        until(lambda: client.stats()["jobs"]["done"] == 3)
        assert sorted(map(len, out.read_text().split())) == [7, 200_002]
        assert flaky.read_text() == "x\n" * 3
        jobs = client.stats()["jobs"]
        assert [jobs[state] for state in ("ready", "delayed", "reserved", "buried")] == [0, 0, 0, 0]
    assert list((tmp_path / "data" / "bulk").glob("?" * 32)) == []


def test_what_others_put_runs_too(start: Callable[..., ServerProcess], beanstalkd: Beanstalkd) -> None:
    """A client of the seed's kqueue, say: it knows tubes, and nothing of us."""
    server = start(config(beanstalkd))
    with server.client() as client:
        with socket.create_connection((beanstalkd.address.host, beanstalkd.address.port)) as other:
            other.sendall(b'use kq-legacy\r\nput 8000 0 30 7\r\n{"a":1}\r\nput 9000 0 30 2\r\n\xff\x00\r\n')
            answers = client.call("reserve", {"types": ["legacy"], "max": 2, "wait": 30})["jobs"]
            if len(answers) < 2:
                answers += client.call("reserve", {"types": ["legacy"], "max": 1, "wait": 30})["jobs"]
        first, second = answers
        assert (first["data"], first["prio"], first["attempt"], first["ttr"]) == ({"a": 1}, "urgent", 1, 25)
        assert second["data64"] == "/wA="
        settled = client.call("settle", [{"receipt": job["receipt"], "outcome": "ok"} for job in answers])
        assert settled == {"settled": 2, "refused": []}


def test_a_waiting_worker_is_woken_by_what_others_put(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd
) -> None:
    server = start(config(beanstalkd))
    with server.client() as client:
        client.insert("woken", 1)
        began = time.monotonic()
        assert client.call("reserve", {"types": ["woken"], "wait": 30})["jobs"]
        with socket.create_connection((beanstalkd.address.host, beanstalkd.address.port)) as other:
            other.sendall(b"use kq-woken\r\nput 8000 0 30 1\r\n1\r\n")
            assert client.call("reserve", {"types": ["woken"], "wait": 30})["jobs"]
        assert time.monotonic() - began < 25


def test_a_server_that_drains_takes_nothing_and_its_jobs_wait(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd
) -> None:
    draining, other = Beanstalkd(), Beanstalkd()
    draining.start()
    try:
        server = start(config(draining, other, more="[health]"))
        with server.client() as client:
            draining.send(signal.SIGUSR1)
            ids = [client.insert("t", number) for number in range(20)]
            until(lambda: client.stats()["servers"][0].get("draining"))
            assert client.stats()["feed"]["waiting"] == 20
            assert client.call("reserve", {"types": ["t"]})["jobs"] == []
            other.start()
            until(lambda: client.stats()["feed"]["waiting"] == 0)
            jobs = client.call("reserve", {"types": ["t"], "max": 50, "wait": 5})["jobs"]
            assert [job["id"] for job in jobs] == ids
    finally:
        draining.discard()
        other.discard()


@pytest.mark.parametrize(
    ("field", "value"), [("key", "k"), ("unique", "u"), ("fair", "f"), ("expires", 5), ("result_ttl", 5)]
)
def test_fields_it_cannot_keep_are_refused(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd, field: str, value: object
) -> None:
    server = start(config(beanstalkd))
    with server.client() as client, pytest.raises(Unsupported) as refused:
        client.call("insert", {"type": "t", field: value})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        ("job", {"id": "x"}),
        ("jobs", {}),
        ("why", {"id": "x"}),
        ("watch", {"type": "t"}),
        ("wait", {"id": "x"}),
        ("cancel", {"id": "x"}),
        ("delete", {"id": "x"}),
        ("kick", {"ids": ["x"]}),
        ("purge", {"type": "t", "older": 5}),
    ],
)
def test_calls_it_cannot_answer_are_refused(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd, call: str, argument: object
) -> None:
    server = start(config(beanstalkd))
    with server.client() as client, pytest.raises(Unsupported, match="needs an engine with"):
        client.call(call, argument)


def test_jobs_are_changed_by_type_and_pauses_last(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd
) -> None:
    server = start(config(beanstalkd))
    with server.client() as client:

        def ready() -> int:
            return int(client.stats()["types"].get("byhand", {"ready": 0})["ready"])

        client.insert_many([{"type": "byhand", "data": number} for number in range(10)])
        until(lambda: ready() == 10)
        assert client.call("bury", {"type": "byhand", "limit": 4}) == {"count": 4}
        assert client.call("kick", {"type": "byhand", "limit": 3}) == {"count": 3}
        assert client.call("purge", {"type": "byhand", "state": "buried"}) == {"count": 1}
        client.call("pause", {"type": "byhand"})
        assert client.call("reserve", {"types": ["byhand"]})["jobs"] == []
    server.kill()
    server.start()
    with server.client() as client:
        assert client.stats()["paused"] == ["byhand"]
        assert client.call("reserve", {"types": ["byhand"]})["jobs"] == []
        client.call("resume", {"type": "byhand"})
        assert len(client.call("reserve", {"types": ["byhand"], "max": 20})["jobs"]) == 9
        with pytest.raises(CallError, match="reserved"):
            client.call("delete", {"type": "byhand", "state": "reserved"})


def refusal(folder: Path, text: str) -> str:
    (folder / "kqs.toml").write_text(text)
    done = kqs("serve", "--config", "kqs.toml", "--listen", "127.0.0.1:0", cwd=folder)
    assert done.status == 2
    return done.err


def test_settings_that_cannot_be_kept_are_refused_at_start(beanstalkd: Beanstalkd, tmp_path: Path) -> None:
    assert "bulk.shared" in refusal(tmp_path, config(beanstalkd, bulk=""))
    assert "classes.c.weight" in refusal(
        tmp_path, config(beanstalkd, more='[classes.c]\ntypes = ["a"]\nweight = 2')
    )
    assert "expires" in refusal(tmp_path, config(beanstalkd, more="[defaults]\nexpires = 5"))
    assert "HOST:PORT" in refusal(
        tmp_path, '[engine]\nkind="beanstalkd"\n[bulk]\nshared=true\n[beanstalkd]\nservers=["x"]'
    )


def test_servers_that_cannot_be_trusted_are_refused_at_start(tmp_path: Path) -> None:
    server = Beanstalkd(binlog=False)
    server.start()
    try:
        assert "no binlog" in refusal(tmp_path, config(server))
    finally:
        server.discard()
    assert "none is up" in refusal(tmp_path, config(server))


def test_jobs_in_another_engine_are_not_left_behind(
    start: Callable[..., ServerProcess], beanstalkd: Beanstalkd, tmp_path: Path
) -> None:
    server = start("")
    with server.client() as client:
        client.insert("t", 1)
    server.stop()
    text = f'[server]\ndata = "{tmp_path}/data"\n'
    assert "holds 1 jobs" in refusal(tmp_path, text + config(beanstalkd))

    other = Beanstalkd()
    other.start()
    (tmp_path / "other").mkdir()
    fed = ServerProcess(tmp_path / "other", config(other)).start()
    with fed.client() as client:
        other.kill()
        client.insert("t", 1)
    fed.stop()
    other.discard()
    text = f'[server]\ndata = "{tmp_path}/other/data"\n'
    assert "1 accepted jobs" in refusal(tmp_path, text)
    feed = f"{tmp_path}/other/data/feed"
    assert kqs("journal", "check", "--data", feed, "--json").json["sound"]
    assert '"kind":"accept"' in kqs("journal", "cat", "--data", feed).out
    assert kqs("journal", "repair", "--data", feed).status == 0
