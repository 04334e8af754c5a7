"""Attempts that are not wanted any more: told to stop, and ended when they do not."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from kqs.client import Client
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]

CONFIG = """
[pools.default]
processes = 3
[handlers.hold]
python = "jobs:hold"
[handlers.command]
command = ["sh", "-c", "sleep 600 & wait"]
[handlers.note]
python = "jobs:note"
[pools.many]
concurrency = 4
[handlers.deaf]
python = "ajobs:deaf"
pool = "many"
[handlers.ahold]
python = "ajobs:hold"
pool = "many"
"""


def done(client: Client, id: str) -> str:
    until(lambda: client.job(id)["state"] == "done", f"{id} to be done")
    outcome: str = client.job(id)["outcome"]
    return outcome


def running(server: ServerProcess, id: str) -> psutil.Process | None:
    """The ``sleep`` a job started, when it is there."""
    for process in psutil.Process(server.pid).children(recursive=True):
        try:
            if process.name() == "sleep" and process.environ()["KQS_JOB_ID"] == id:
                return process
        except psutil.Error:
            continue
    return None


def test_what_does_not_stop_is_ended_with_all_it_started(start: Start) -> None:
    """Nobody of these looks at ``job.cancelled``, and their ttr is far away."""
    server = start(CONFIG)
    client = server.client()
    cancelled, deleted, command = (
        client.insert("hold", "go", ttr=600),
        client.insert("hold", "go", ttr=600),
        client.insert("command", ttr=600),
    )
    deaf, bystander = client.insert("deaf", ttr=600), client.insert("ahold", "go", ttr=600)
    for id in (cancelled, deleted):
        server.stdout.wait_for(f"hold began {id}")
    for id in (deaf, bystander):
        server.stdout.wait_for(lambda line, id=id: f" began {id} 1 " in line)
    child = until(lambda: running(server, command), "the command to start its child")
    client.call("cancel", {"ids": [cancelled, command, deaf]})
    client.call("delete", {"id": deleted})
    job = client.job(cancelled)
    assert (job["state"], job["cancelled"]) == ("reserved", True)

    assert [done(client, id) for id in (cancelled, command, deaf)] == ["cancelled"] * 3
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child to end")
    server.stdout.wait_for(lambda line: f" began {bystander} " in line, times=2)  # it ran beside the deaf one
    assert client.job(bystander)["attempt"] == 1
    for _ in range(3):  # the workers of all three, the deleted job's too, are free again
        notes = [client.insert("note") for _ in range(3)]
        assert [done(client, id) for id in notes] == ["ok"] * 3
    (server.folder / "go").touch()
    assert done(client, bystander) == "ok"
    assert client.job(deleted)["outcome"] == "deleted"
    assert not any(f"hold ended {id}" in server.stdout.text for id in (cancelled, deleted))
    told = [line["reason"] for line in server.logged("attempt lost")]
    assert told == ["did not stop within 5 s of being told to"] * 3
