"""Ends of the server: ``quit``, SIGTERM, SIGINT, a second signal; what runs, what waits, what is kept."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from kqs.client import Client
from kqs.errors import CallError, ConnectionFailed, ShuttingDown
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]

CONFIG = """
[handlers.hold]
python = "jobs:hold"
[handlers.stubborn]
python = "jobs:stubborn"
[handlers.note]
python = "jobs:note"
[pools.default]
processes = 2
"""


def release(server: ServerProcess, name: str) -> None:
    """Let the handler that holds for this file go on."""
    (server.folder / name).touch()


def running(server: ServerProcess, client: Client, type: str, data: Any, **options: Any) -> str:
    """Insert a job and return its id when its handler runs."""
    id = client.insert(type, data, **options)
    server.stdout.wait_for(f"{type} began {id}")
    return id


def refuses(wire_or_client: Client) -> bool:
    try:
        wire_or_client.insert("late")
    except ShuttingDown:
        return True
    except CallError:
        raise
    return False


def test_quit_answers_null_and_exits_0(start: Start) -> None:
    server = start()
    with server.connect() as wire:
        assert wire.call("quit") == {"v": 1, "id": "1", "e": None, "s": "end", "m": None}
        assert wire.closed()
    assert server.wait() == 0
    assert [line["event"] for line in server.logged()] == ["ready", "stopping", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_jobs_finish(start: Start, number: signal.Signals) -> None:
    server = start(CONFIG)
    client = server.client()
    id = running(server, client, "hold", "go")
    server.process.send_signal(number)
    server.stderr.wait_for('"event": "stopping"')
    release(server, "go")
    assert server.wait() == 0
    assert server.stdout.wait_for(f"hold ended {id}")
    again = start(CONFIG)
    with again.client() as client:
        assert client.job(id)["outcome"] == "ok"


def test_quit_with_grace_lets_running_jobs_finish(start: Start) -> None:
    server = start(CONFIG)
    client = server.client()
    id = running(server, client, "hold", "go")
    client.quit(600)
    server.stderr.wait_for('"event": "stopping"')
    release(server, "go")
    assert server.wait() == 0
    server.stdout.wait_for(f"hold ended {id}")


def test_a_job_over_the_grace_runs_again_and_no_attempt_is_counted(start: Start) -> None:
    server = start(CONFIG)
    client = server.client()
    id = running(server, client, "stubborn", "go")
    worker_pids = [worker.pid for worker in server.workers()]
    client.quit(0.3)
    assert server.wait() == 0
    assert f"stubborn ended {id}" not in server.stdout.text
    assert not [pid for pid in worker_pids if _alive(pid)]
    release(server, "go")
    again = start(CONFIG)
    again.stdout.wait_for(f"stubborn ended {id}")
    with again.client() as client:
        until(lambda: client.job(id)["state"] == "done")
        assert client.job(id)["attempt"] == 1
        assert "last_error" not in client.job(id)


def test_what_is_held_and_not_begun_waits_for_the_next_server(start: Start) -> None:
    config = CONFIG.replace("processes = 2", "processes = 1")
    server = start(config)
    client = server.client()
    running(server, client, "hold", "go")
    waiting = client.insert_many([{"type": "note", "data": n} for n in range(50)])
    server.terminate()
    server.stderr.wait_for('"event": "stopping"')
    release(server, "go")
    assert server.wait() == 0
    assert "note began" not in server.stdout.text
    again = start(config)
    for id in waiting:
        again.stdout.wait_for(f"note began {id}")
    with again.client() as client:
        until(lambda: client.job(waiting[-1])["state"] == "done")
        assert {client.job(id)["attempt"] for id in waiting} == {1}


def test_inserts_meanwhile_get_shutting_down(start: Start) -> None:
    server = start(CONFIG)
    client = server.client()
    running(server, client, "hold", "go")
    taken = server.connect()
    assert taken.call("ping")["m"] == "pong"
    server.terminate()
    server.stderr.wait_for('"event": "stopping"')
    assert taken.call("insert", {"type": "late"})["e"]["code"] == "shutting_down"
    assert taken.call("insert", [{"type": "late"}])["e"]["code"] == "shutting_down"
    assert taken.call("ping")["m"] == "pong"
    assert taken.call("reserve", {"types": ["late"]})["m"] == {"jobs": []}
    health = taken.call("health")["m"]
    assert health["status"] == "degraded" and "shutting down" in json.dumps(health)
    with pytest.raises(ConnectionFailed):
        server.client(timeout=0.5).ping()  # nobody new is let in
    release(server, "go")
    assert taken.closed()
    assert server.wait() == 0
    with start(CONFIG).client() as client:
        assert client.stats()["types"].get("late") is None


def test_a_worker_that_waits_is_answered_before_the_end(start: Start) -> None:
    server = start()
    client = server.client()
    with server.connect() as wire:
        wire.send(b'{"v":1,"id":"1","n":"reserve","m":{"types":["x"],"wait":600}}\n')
        until(lambda: client.stats()["reserves_waiting"] >= 2, "it to wait")
        server.terminate()
        reply = wire.line()
        assert reply is not None and reply["m"] == {"jobs": []}
        assert wire.closed()
    assert server.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_loses_nothing(start: Start, second: signal.Signals) -> None:
    server = start(CONFIG)
    client = server.client()
    id = running(server, client, "stubborn", "go")
    acked = client.insert_many([{"type": "kept", "data": n} for n in range(500)])
    server.terminate()
    server.stderr.wait_for('"event": "stopping"')
    server.process.send_signal(second)
    assert server.wait() == 0
    release(server, "go")
    again = start(CONFIG)
    again.stdout.wait_for(f"stubborn ended {id}")
    with again.client() as client:
        assert client.call("stats", {"type": "kept"})["jobs"]["ready"] == 500
        assert client.job(acked[-1], data=True)["data"] == 499


def test_a_ttr_that_ends_meanwhile_ends_the_attempt(start: Start) -> None:
    """Other workers are gone by then; the attempt counts: it was not the server's end that ended it."""
    server = start(CONFIG)
    client = server.client()
    id = running(server, client, "stubborn", "go", ttr=1.5)
    server.terminate()
    assert server.wait() == 0
    server.stderr.wait_for("ttr of 1.5 s exceeded")
    release(server, "go")
    again = start(CONFIG)
    again.stdout.wait_for(f"stubborn ended {id}")
    with again.client() as client:
        job = until(lambda: (job := client.job(id))["state"] == "done" and job)
        assert (job["attempt"], job["last_error"]["kind"]) == (2, "ttr")


def test_everything_taken_is_answered_before_the_end(start: Start) -> None:
    """SIGTERM comes amid 2,000 inserts: those that have an ok reply are kept, and no others."""
    server = start()
    with server.connect() as wire:
        line = b'{"v":1,"id":"%d","n":"insert","m":{"type":"flood","data":%d}}\n'
        wire.send(b"".join(line % (n, n) for n in range(2000)))
        first = wire.line()
        server.terminate()
        assert first is not None
        replies = [first, *wire.rest()]
    assert server.wait() == 0
    ids = [reply["m"]["id"] for reply in replies if reply["e"] is None]
    refused = [reply["e"]["code"] for reply in replies if reply["e"] is not None]
    assert set(refused) <= {"shutting_down"}
    assert ids
    with start().client() as client:
        assert client.call("stats", {"type": "flood"})["jobs"]["ready"] == len(ids)


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)


def test_a_large_reply_on_its_way_arrives_whole(start: Start) -> None:
    server = start()
    text = "x" * 15_000_000
    with server.connect(receive_buffer=4096) as wire:
        wire.send(json.dumps({"v": 1, "id": "1", "n": "echo", "m": text}).encode() + b"\n")
        first = wire.socket.recv(10)  # the reply is on its way, and most of it not taken
        server.terminate()
        server.stderr.wait_for('"event": "stopping"')
        reply = first + b"".join(iter(lambda: wire.socket.recv(1 << 20), b""))
    assert server.wait() == 0
    assert json.loads(reply)["m"] == text


def test_a_peer_that_takes_nothing_does_not_keep_the_server(start: Start) -> None:
    server = start()
    with server.connect(receive_buffer=4096) as wire:
        wire.send(json.dumps({"v": 1, "id": "1", "n": "echo", "m": "x" * 15_000_000}).encode() + b"\n")
        wire.socket.recv(10)
        server.terminate()
        assert server.wait() == 0
