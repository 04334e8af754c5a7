"""A deploy under load: workers one by one, then the server; with SIGTERM, and then with SIGKILL.

Nothing is lost either way. With SIGTERM no attempt is made twice; with SIGKILL each job that began twice is
one whose lease was out when somebody was killed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kqs.client import Client
from kqs.errors import CallError, ConnectionFailed
from tests.remote.support import Notes, WorkerProcess
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]
Work = Callable[..., WorkerProcess]

WORKERS = 3
#: Seconds an attempt takes, so that there are always some that run.
TAKES = 0.05
#: Seconds of a lease: so long do jobs of the killed wait.
TTR = 4.0


class Load:
    """Inserts, with a key so that an insert without a reply can be made again, until told to stop."""

    def __init__(self, url: str, notes: Notes) -> None:
        self.ids: set[str] = set()
        self._url = url
        self._data = {"path": notes.path, "seconds": TAKES}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with Client(self._url, timeout=5) as client:
            number = 0
            while not self._over.wait(TAKES / WORKERS):
                number += 1
                while True:
                    try:
                        self.ids.add(client.insert("record", self._data, ttr=TTR, key=f"k{number}"))
                        break
                    except (ConnectionFailed, CallError):
                        if self._over.wait(0.05):
                            return

    def grow(self, by: int) -> None:
        """Return when so many jobs more are accepted."""
        goal = len(self.ids) + by
        until(lambda: len(self.ids) >= goal, f"{goal} jobs to be accepted")

    def stop(self) -> set[str]:
        self._over.set()
        self._thread.join()
        return self.ids


def _out(server: ServerProcess) -> dict[str, str]:
    """The jobs whose leases are out, and who has them."""
    jobs = server.client().call("jobs", {"state": "reserved", "limit": 1000})["jobs"]
    return {job["id"]: job["leased_by"] for job in jobs}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_deploy(start: Start, worker: Work, notes: Notes, tmp_path: Path, end: signal.Signals) -> None:
    server = start()
    url, listen = server.url, ("--listen", f"127.0.0.1:{server.port}")
    crew = [worker(url, "--processes", "1").ready() for _ in range(WORKERS)]
    load = Load(url, notes)
    explained: set[str] = set()
    try:
        load.grow(30)
        for number in range(WORKERS):
            old = crew[number]
            old.process.send_signal(end)
            status = old.wait()
            if end == signal.SIGKILL:
                explained |= {id for id, who in _out(server).items() if f"-{old.process.pid}/" in who}
            else:
                assert status == 0, old.stderr.text
            crew[number] = worker(url, "--processes", "1").ready()
            load.grow(10)
        server.process.send_signal(end)
        server.process.wait()
        if end == signal.SIGKILL:
            explained |= notes.count("began").keys() - notes.count("ended").keys()
        lines = len(notes.lines)
        server = start(*listen)
        if end == signal.SIGKILL:
            # A lease is not waited for until it is durable, and an end not heard of when its note is written:
            # the server may have forgotten the last of both.
            last = notes.lines[max(0, lines - 6 * WORKERS) :]
            explained |= set(_out(server)) | {line[1] for line in last}
        load.grow(30)
    finally:
        ids = load.stop()
    jobs = server.client().stats
    until(
        lambda: not sum(jobs()["jobs"][state] for state in ("ready", "delayed", "reserved")), "all to be done"
    )
    for one in crew:
        assert one.stop() == 0, one.stderr.text
    began, ended = notes.count("began"), notes.count("ended")
    assert set(began) >= ids and set(ended) >= ids, "none was lost"
    doubled = {id for id, times in began.items() if times > 1}
    assert doubled <= explained, f"{doubled - explained} began twice, and nobody who had them was killed"
    assert server.client().stats()["jobs"]["buried"] == 0
