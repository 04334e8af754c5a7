"""``kqs worker``: what it runs, what it tells, how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from kqs.client import Client
from kqs.testing.faketime import faketime
from tests.remote.support import Notes, WorkerProcess
from tests.support import ServerProcess, kqs, until

Start = Callable[..., ServerProcess]
Work = Callable[..., WorkerProcess]


def _insert(client: Client, notes: Notes, number: int, **options: Any) -> list[str]:
    jobs = [{"type": "record", "data": {"path": notes.path}, **options} for _ in range(number)]
    return client.insert_many(jobs)


def test_burst_runs_all_that_is_ready(start: Start, worker: Work, notes: Notes) -> None:
    server = start()
    client = server.client()
    ids = _insert(client, notes, 40, result_ttl=60)
    later = client.insert("record", {"path": notes.path}, delay=3600)
    failed = client.insert("bad")
    binary = client.insert("bytes", b"\0\xff", result_ttl=60)
    one = worker(server.url, "--processes", "2", "--burst")
    assert one.wait() == 0
    assert notes.count("began") == notes.count("ended") == dict.fromkeys(ids, 1)
    assert client.call("wait", {"id": ids[3]})["result"] == ids[3]
    assert client.call("wait", {"id": binary})["result"] == "00ff"
    assert client.job(failed)["last_error"]["message"] == "it never can"
    assert client.job(later)["state"] == "delayed"


def test_a_job_that_a_job_made_is_run_in_the_same_burst(start: Start, worker: Work, notes: Notes) -> None:
    server = start()
    client = server.client()
    again = client.insert("die", {"path": notes.path}, retry={"base": 0.2, "cap": 0.2, "jitter": 0})
    assert worker(server.url, "--processes", "1", "--burst").wait() == 0
    # Each retry was due within the wait of a reserve: the burst went on until the job was buried.
    job = client.job(again)
    assert (job["state"], job["deaths"], notes.count("began")[again]) == ("buried", 3, 3)
    assert job["last_error"]["kind"] == "worker_died"


def test_so_many_jobs_and_no_more(start: Start, worker: Work, notes: Notes) -> None:
    server = start()
    client = server.client()
    ids = _insert(client, notes, 20)
    assert worker(server.url, "--processes", "2", "--max-jobs", "7").wait() == 0
    assert sum(notes.count("began").values()) == sum(notes.count("ended").values()) == 7
    jobs = [client.job(id) for id in ids]
    waiting = [job for job in jobs if job["state"] == "ready"]
    assert len(waiting) == 13
    assert all(job["attempt"] == 0 for job in waiting), "what was leased and not begun costs no attempt"


def test_so_much_time_and_no_more(start: Start, worker: Work, notes: Notes, tmp_path: Path) -> None:
    server = start()
    client = server.client()
    gate = tmp_path / "gate"
    held = client.insert("hold", {"path": notes.path, "gate": str(gate)})
    one = worker(server.url, "--processes", "1", "--max-time", "4")
    notes.wait_for("began", held)
    one.stderr.wait_for('"event": "stopping"')
    after = client.insert("record", {"path": notes.path})
    gate.touch()
    assert one.wait() == 0
    assert client.job(held)["state"] == "done", "the attempt that ran may finish"
    assert client.job(after)["state"] == "ready"


def test_sigterm_lets_attempts_finish_and_a_second_one_does_not(
    start: Start, worker: Work, notes: Notes, tmp_path: Path
) -> None:
    server = start()
    client = server.client()
    gate = tmp_path / "gate"
    held = client.insert("hold", {"path": notes.path, "gate": str(gate)})
    one = worker(server.url, "--processes", "1")
    notes.wait_for("began", held)
    one.terminate()
    one.stderr.wait_for('"event": "stopping"')
    one.terminate()
    assert one.wait() == 0
    assert notes.count("ended")[held] == 0
    job = client.job(held)
    assert (job["state"], job["attempt"], job.get("deaths", 0)) == ("ready", 0, 0), "released, at no cost"
    two = worker(server.url, "--processes", "1")
    notes.wait_for("began", held, 2)
    two.terminate()
    two.stderr.wait_for('"event": "stopping"')
    gate.touch()
    assert two.wait() == 0
    assert client.job(held)["state"] == "done"


def test_an_attempt_that_overruns_is_killed_and_tried_again(
    start: Start, worker: Work, notes: Notes, tmp_path: Path
) -> None:
    server = start()
    client = server.client()
    held = client.insert("hold", {"path": notes.path, "gate": str(tmp_path / "gate")}, ttr=0.5)
    worker(server.url, "--processes", "1")
    notes.wait_for("began", held, 2)
    first = int(notes.lines[0][3])
    until(lambda: not psutil.pid_exists(first), "the first attempt's process to be gone")
    job = client.job(held)
    assert job["last_error"]["message"] == "ttr of 0.5 s exceeded" and job.get("deaths", 0) == 0


def test_an_async_attempt_that_overruns_is_cancelled(
    start: Start, worker: Work, notes: Notes, tmp_path: Path
) -> None:
    server = start()
    client = server.client()
    gate = tmp_path / "gate"
    late = client.insert("ahold", {"path": notes.path, "gate": str(tmp_path / "never")}, ttr=1)
    beside = client.insert("ahold", {"path": notes.path, "gate": str(gate)})
    args = ("--processes", "1", "--concurrency", "4", "--types", "ahold,akept")
    one = worker(server.url, *args)
    notes.wait_for("began", beside)
    notes.wait_for("cancelled", late)
    gate.touch()
    notes.wait_for("ended", beside)
    assert len({line[3] for line in notes.lines}) == 1, "the process was not killed for it"
    assert one.stop() == 0


@pytest.mark.parametrize("type_", ["kept", "akept"])
def test_a_type_that_keeps_alive_runs_longer_than_its_ttr(
    start: Start, worker: Work, notes: Notes, tmp_path: Path, type_: str
) -> None:
    server = start()
    client = server.client()
    gate = tmp_path / "gate"
    id = client.insert(type_, {"path": notes.path, "gate": str(gate)}, ttr=1)
    concurrency = ("--concurrency", "2", "--types", "akept") if type_ == "akept" else ()
    worker(server.url, "--processes", "1", *concurrency)
    notes.wait_for("began", id)
    first = client.job(id)["lease_expires_at"]
    until(lambda: client.job(id)["lease_expires_at"] > first, "a renewal")
    second = client.job(id)["lease_expires_at"]
    until(lambda: client.job(id)["lease_expires_at"] > second, "another renewal")
    gate.touch()
    until(lambda: client.job(id)["state"] == "done")
    assert notes.count("began")[id] == 1


def test_not_longer_than_max_runtime(start: Start, worker: Work, notes: Notes, tmp_path: Path) -> None:
    server = start()
    client = server.client()
    id = client.insert("limited", {"path": notes.path, "gate": str(tmp_path / "gate")}, ttr=1)
    worker(server.url, "--processes", "1")
    notes.wait_for("began", id, 2)
    assert client.job(id)["last_error"]["message"] == "max_runtime of 1.5 s exceeded"


def test_a_cancelled_job_that_is_kept_alive_is_stopped(
    start: Start, worker: Work, notes: Notes, tmp_path: Path
) -> None:
    server = start()
    client = server.client()
    id = client.insert("akept", {"path": notes.path, "gate": str(tmp_path / "gate")}, ttr=1)
    worker(server.url, "--processes", "1", "--concurrency", "2", "--types", "akept")
    notes.wait_for("began", id)
    client.call("cancel", {"id": id})
    notes.wait_for("cancelled", id)
    until(lambda: client.job(id)["state"] == "done")
    assert client.job(id)["outcome"] == "cancelled"


def test_a_process_that_dies_costs_the_job_that_ran_and_no_other(
    start: Start, worker: Work, notes: Notes, tmp_path: Path
) -> None:
    server = start()
    client = server.client()
    gate = tmp_path / "gate"
    held = client.insert("hold", {"path": notes.path, "gate": str(gate)}, retry={"base": 0.1})
    one = worker(server.url, "--processes", "1")
    notes.wait_for("began", held)
    waiting = client.insert("record", {"path": notes.path})
    one.processes()[0].send_signal(signal.SIGKILL)
    gate.touch()
    notes.wait_for("ended", held)
    notes.wait_for("ended", waiting)
    until(lambda: client.job(held)["state"] == "done")
    assert notes.count("began") == {held: 2, waiting: 1}
    line = one.logged("attempt lost")[0]
    assert line["reason"] == "the worker was killed by SIGKILL while running the job"
    assert one.stop() == 0


def test_the_worker_itself_is_killed_with_all_its_processes(
    start: Start, worker: Work, notes: Notes, tmp_path: Path
) -> None:
    server = start()
    client = server.client()
    held = client.insert("hold", {"path": notes.path, "gate": str(tmp_path / "gate")}, ttr=1)
    one = worker(server.url, "--processes", "1")
    notes.wait_for("began", held)
    child = one.processes()[0].pid
    os.kill(one.process.pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(child), "its worker process to be gone")
    until(lambda: client.job(held)["state"] == "ready", "the rescue after the ttr")


def test_a_command_of_a_config_file(start: Start, worker: Work, tmp_path: Path) -> None:
    server = start()
    client = server.client()
    id = client.insert("wc", [1, 2, 3], result_ttl=60)
    (tmp_path / "far.toml").write_text('[handlers.wc]\ncommand = ["wc", "-c"]\n')
    assert worker(server.url, "--config", "far.toml", "--burst", app=()).wait() == 0
    assert client.call("wait", {"id": id})["result"] == 7


@pytest.mark.service("faketime")
def test_the_wrong_clock_is_no_matter(start: Start, worker: Work, notes: Notes, tmp_path: Path) -> None:
    server = start()
    client = server.client()
    gate = tmp_path / "gate"
    id = client.insert("kept", {"path": notes.path, "gate": str(gate)}, ttr=1)
    one = worker(server.url, "--processes", "1", env=faketime(clock="@2019-05-05 05:05:05"))
    notes.wait_for("began", id)
    first = client.job(id)["lease_expires_at"]
    until(lambda: client.job(id)["lease_expires_at"] > first, "a renewal")
    gate.touch()
    until(lambda: client.job(id)["state"] == "done")
    assert notes.count("began")[id] == 1
    assert one.logged("started")[0]["timestamp"].startswith("2019-")


def test_check_says_what_would_run(start: Start, tmp_path: Path) -> None:
    server = start()
    done = kqs("worker", "far:app", "--server", server.url, "--processes", "2", "--check", cwd=tmp_path)
    assert done.status == 0, done
    types = "ahold, akept, bad, bytes, die, hold, kept, limited, record"
    assert done.out == f"ok: 2 worker processes for {types}, server {server.url}\n"


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        ((), 2, "nothing to run: name an App"),
        (("nowhere:app",), 2, "nowhere"),
        (("far:app", "--types", "recrod"), 2, "did you mean 'record'?"),
        (("far:app", "--pool", "media"), 2, "there is no pool 'media'"),
        (("far:app", "--concurrency", "2"), 2, "is not async"),
        (("far:app", "--server", "http://x"), 2, "http://x"),
        (("far:app", "--server", "kqs+unix:nowhere.sock", "--check"), 1, "no KQS server reached"),
    ],
)
def test_refused(args: tuple[str, ...], status: int, text: str, tmp_path: Path) -> None:
    done = kqs("worker", *args, cwd=tmp_path)
    assert done.status == status and text in done.err and done.out == "", done


def test_the_token_says_whether_it_may_work(start: Start, worker: Work, notes: Notes, tmp_path: Path) -> None:
    tokens = {
        role: kqs("token", "new", "--role", role, "--data", str(tmp_path / "data")).out.strip()
        for role in ("work", "insert")
    }
    server = start()
    check = ("worker", "far:app", "--server", server.url, "--check")
    assert kqs(*check, cwd=tmp_path, KQS_TOKEN=tokens["work"]).status == 0
    for wrong, text in ((tokens["insert"], "forbidden"), ("", "unauthorized"), ("x", "unauthorized")):
        done = kqs(*check, cwd=tmp_path, KQS_TOKEN=wrong)
        assert done.status == 1 and text in done.err, done
    id = server.client(tokens["insert"]).insert("record", {"path": notes.path})
    refused = worker(server.url, "--processes", "1", env={"KQS_TOKEN": tokens["insert"]})
    refused.stderr.wait_for("may not call reserve")
    assert refused.stop() == 0 and not notes.lines
    worker(server.url, "--processes", "1", env={"KQS_TOKEN": tokens["work"]})
    notes.wait_for("ended", id)
