"""The way between a remote worker and its server is cut, silent or gone; servers restart and are killed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.remote.support import Notes, Proxy, WorkerProcess
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]
Work = Callable[..., WorkerProcess]


def _done(server: ServerProcess, id: str) -> None:
    until(lambda: server.client().job(id)["state"] == "done", f"job {id} to be done")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_an_attempt_outlives_its_server(
    start: Start, worker: Work, notes: Notes, tmp_path: Path, end: signal.Signals
) -> None:
    first = start()
    gate = tmp_path / "gate"
    id = first.client().insert("hold", {"path": notes.path, "gate": str(gate)})
    one = worker(first.url, "--processes", "1")
    notes.wait_for("began", id)
    first.client().insert("nobody's")  # its reply covers the lease, which nobody waits for
    first.process.send_signal(end)
    first.process.wait()
    gate.touch()
    notes.wait_for("ended", id)  # its outcome has nowhere to go yet
    second = start("--listen", f"127.0.0.1:{first.port}")
    _done(second, id)
    job = second.client().job(id)
    assert job["attempt"] == 1, "the receipt of the server before was believed"
    after = second.client().insert("record", {"path": notes.path})
    _done(second, after)
    assert notes.count("began") == {id: 1, after: 1}
    assert one.stop() == 0


@pytest.mark.parametrize("way", ["up", "down"])
def test_an_outcome_is_sent_again_when_it_or_its_reply_was_lost(
    server: ServerProcess, worker: Work, notes: Notes, tmp_path: Path, proxy: Proxy, way: str
) -> None:
    gate = tmp_path / "gate"
    one = worker(proxy.url, "--processes", "1").ready()
    id = server.client().insert("hold", {"path": notes.path, "gate": str(gate)})
    notes.wait_for("began", id)
    proxy.hold(way)
    gate.touch()
    proxy.wait_until_held(way)
    assert notes.count("ended")[id] == 1
    assert server.client().job(id)["state"] == ("reserved" if way == "up" else "done")
    proxy.cut()
    proxy.release()
    _done(server, id)
    after = server.client().insert("record", {"path": notes.path})
    _done(server, after)
    assert one.stop() == 0
    assert not one.logged("lease was lost; what its attempt came to does not count")
    assert notes.count("began") == {id: 1, after: 1}


def test_a_cut_between_lease_and_outcome_is_not_noticed(
    server: ServerProcess, worker: Work, notes: Notes, tmp_path: Path, proxy: Proxy
) -> None:
    gate = tmp_path / "gate"
    worker(proxy.url, "--processes", "1").ready()
    id = server.client().insert("kept", {"path": notes.path, "gate": str(gate)}, ttr=3)
    notes.wait_for("began", id)
    for _ in range(5):
        before = server.client().job(id)["lease_expires_at"]
        proxy.cut()
        until(lambda before=before: server.client().job(id)["lease_expires_at"] > before, "a renewal")
    gate.touch()
    _done(server, id)
    assert notes.count("began")[id] == 1


@pytest.mark.parametrize("type_", ["kept", "akept"])
def test_an_attempt_whose_lease_is_lost_is_stopped_and_not_acked(
    server: ServerProcess, worker: Work, notes: Notes, tmp_path: Path, proxy: Proxy, type_: str
) -> None:
    gate = tmp_path / "gate"
    args = ("--processes", "1", "--types", type_)
    args += ("--concurrency", "2") if type_ == "akept" else ()
    far = worker(proxy.url, *args).ready()
    id = server.client().insert(type_, {"path": notes.path, "gate": str(gate)}, ttr=1)
    notes.wait_for("began", id)
    proxy.refusing = True
    proxy.cut()
    until(lambda: server.client().job(id)["state"] == "ready", "the rescue")
    near = worker(server.url, *args).ready()
    notes.wait_for("began", id, 2)  # somebody else has it
    if type_ == "akept":
        notes.wait_for("cancelled", id)
    else:
        far.stderr.wait_for('"event": "attempt lost"')
    proxy.refusing = False
    gate.touch()
    _done(server, id)
    assert server.client().job(id)["attempt"] == 2
    assert notes.count("ended")[id] == 1, "the first attempt did not come to its end"
    assert near.stop() == 0 and far.stop() == 0


def test_a_silent_connection_is_given_up(
    server: ServerProcess, worker: Work, notes: Notes, tmp_path: Path, proxy: Proxy
) -> None:
    """Half-open: nothing comes, and nobody says so."""
    gate = tmp_path / "gate"
    one = worker(proxy.url, "--processes", "1").ready()
    id = server.client().insert("hold", {"path": notes.path, "gate": str(gate)})
    notes.wait_for("began", id)
    proxy.hold()
    held = proxy.forget()
    gate.touch()
    notes.wait_for("ended", id)
    proxy.release()  # for connections to come
    _done(server, id)
    assert notes.count("began")[id] == 1
    assert one.stop() == 0
    held.close()


def test_the_first_of_two_servers_is_down(start: Start, worker: Work, notes: Notes) -> None:
    server = start()
    id = server.client().insert("record", {"path": notes.path})
    one = worker(f"kqs+unix:/nowhere/kqs.sock,{server.url}", "--processes", "1")
    _done(server, id)
    assert one.logged("connected")[0]["server"] == server.url
    assert one.stop() == 0


def test_an_outcome_goes_to_the_server_that_gave_the_lease(
    server: ServerProcess, worker: Work, notes: Notes, tmp_path: Path, proxy: Proxy
) -> None:
    """While its own server is away the worker takes work from the next one; both get what is theirs."""
    gate = tmp_path / "gate"
    (tmp_path / "second").mkdir()
    second = ServerProcess(tmp_path / "second").start()
    try:
        one = worker(f"{proxy.url},{second.url}", "--processes", "2").ready()
        id = server.client().insert("hold", {"path": notes.path, "gate": str(gate)})
        notes.wait_for("began", id)
        proxy.refusing = True
        proxy.cut()
        other = second.client().insert("record", {"path": notes.path})
        _done(second, other)
        gate.touch()
        notes.wait_for("ended", id)
        assert server.client().job(id)["state"] == "reserved"
        proxy.refusing = False
        _done(server, id)
        assert notes.count("began") == {id: 1, other: 1}
        assert one.stop() == 0
        second.stop()
    finally:
        second.discard()


def test_a_worker_waits_for_a_server_that_is_not_there_yet(
    start: Start, worker: Work, notes: Notes, tmp_path: Path
) -> None:
    one = worker(f"kqs+unix:{tmp_path}/data/kqs.sock", "--processes", "1")
    one.stderr.wait_for('"event": "started"')
    server = start()
    id = server.client().insert("record", {"path": notes.path})
    _done(server, id)
    assert one.stop() == 0
