"""Attempts that overrun, die, escape and leave things behind: only that attempt suffers, nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from kqs.client import Client
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]

CONFIG = """
[pools.default]
processes = {processes}
[defaults.retry]
backoff = "fixed"
base = 0
jitter = 0
[handlers.end]
python = "jobs:end"
[handlers.spawn]
python = "jobs:spawn"
[handlers.sleep]
python = "jobs:sleep"
[handlers.block]
python = "jobs:block"
[handlers.note]
python = "jobs:note"
[handlers.renew]
python = "jobs:renew"
[handlers.hold]
python = "jobs:hold"
[handlers.close_all]
python = "jobs:close_all"
[handlers.forked_return]
python = "jobs:forked_return"
[handlers.until_cancelled]
python = "jobs:until_cancelled"
[handlers.daemon]
python = "ajobs:with_daemon"
[handlers.sh]
command = ["sh"]
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two workers, for the tests that need not have one of their own."""
    made = ServerProcess(tmp_path_factory.mktemp("pair"), CONFIG.format(processes=2))
    try:
        yield made.start()
        made.stop()
    finally:
        made.discard()


def serve(start: Start, processes: int = 1) -> tuple[ServerProcess, Client]:
    server = start(CONFIG.format(processes=processes))
    return server, server.client()


def in_state(client: Client, id: str, *states: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        job = client.job(id)
        return job if job["state"] in states else None

    return until(there, f"the job to be {' or '.join(states)}")  # type: ignore[return-value]


def gone(pid: int) -> bool:
    """Whether a process does nothing any more (a zombie waits only to be counted)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- ttr -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["sleep", "block"])
def test_an_attempt_over_its_ttr_is_ended_and_the_job_runs_again(pair: ServerProcess, type: str) -> None:
    server, client = pair, pair.client()
    id = client.insert(type, 600, ttr=0.5, max_attempts=2)
    server.stdout.wait_for(f"{type} began {id} 1")
    server.stdout.wait_for(f"{type} began {id} 2")
    job = in_state(client, id, "buried")
    assert (job["attempt"], job["last_error"]["kind"]) == (2, "ttr")
    assert job["last_error"]["message"] == "ttr of 0.5 s exceeded"
    assert "deaths" not in job  # its own fault, not a crash
    assert f"{type} ended" not in server.stdout.text


@pytest.mark.parametrize(
    "leave",
    [
        ["sh"],
        ["setsid"],
        ["clean"],
        ["deaf"],
        ["fork"],
        ["fork setsid"],
        ["sh", "setsid", "deaf", "fork"] * 3,
    ],
    ids=["child", "own session", "no environment", "deaf to signals", "fork", "fork in own session", "many"],
)
def test_ttr_ends_the_whole_process_tree(pair: ServerProcess, leave: list[str]) -> None:
    server, client = pair, pair.client()
    id = client.insert("spawn", {"leave": leave, "stay": True}, ttr=1, max_attempts=1)
    server.stdout.wait_for(f"spawn began {id}")
    pids = [int(line.split()[2]) for line in server.stdout.lines if line.startswith(f"left {id} ")]
    assert len(pids) == len(leave)
    in_state(client, id, "buried")
    for pid in pids:
        until(lambda pid=pid: gone(pid), f"{pid} to be ended")


def test_ttr_ends_a_commands_process_tree(pair: ServerProcess) -> None:
    server, client = pair, pair.client()
    file = server.folder / "pids"
    script = f"sleep 600 & a=$!; setsid sleep 600 & echo $$ $a $! >{file}.new; mv {file}.new {file}; wait"
    id = client.insert("sh", script.encode(), ttr=1, max_attempts=1)
    until(file.exists, "the command to begin")
    in_state(client, id, "buried")
    for pid in map(int, file.read_text().split()):
        until(lambda pid=pid: gone(pid), f"{pid} to be ended")


def test_ttr_of_one_attempt_does_not_touch_the_others(start: Start) -> None:
    server, client = serve(start, processes=3)
    holds = [client.insert("hold", "go") for _ in range(2)]
    for id in holds:
        server.stdout.wait_for(f"hold began {id}")
    over = client.insert("sleep", 600, ttr=0.3, max_attempts=1)
    in_state(client, over, "buried")
    (server.folder / "go").touch()
    for id in holds:
        assert in_state(client, id, "done")["attempt"] == 1


def test_a_job_that_renews_outlives_its_ttr(pair: ServerProcess) -> None:
    server, client = pair, pair.client()
    id = client.insert("renew", {"times": 8, "every": 0.3}, ttr=0.9)
    server.stdout.wait_for(f"renew ended {id} 1 True False")
    assert in_state(client, id, "done")["attempt"] == 1


def test_a_handler_sees_that_its_job_was_cancelled(pair: ServerProcess) -> None:
    server, client = pair, pair.client()
    id = client.insert("until_cancelled")
    server.stdout.wait_for(f"until_cancelled began {id}")
    client.call("cancel", {"id": id})
    server.stdout.wait_for(f"until_cancelled ended {id}")
    in_state(client, id, "done")


# -- workers that die --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["signal", "_exit", "close"])
def test_a_job_that_kills_its_worker_three_times_is_buried_as_poison(pair: ServerProcess, how: str) -> None:
    server, client = pair, pair.client()
    if how == "close":
        id = client.insert("close_all")
    else:
        id = client.insert("end", {"how": how, "value": int(signal.SIGKILL)})
    job = in_state(client, id, "buried")
    assert (job["deaths"], job["attempt"]) == (3, 3)
    assert job["last_error"]["kind"] == "worker_died"
    assert job["last_error"]["message"].startswith("buried as poison after 3 worker deaths: the worker ")
    note = client.insert("note")
    server.stdout.wait_for(f"note began {note}")


def test_bystanders_of_a_death_run_at_no_cost(start: Start) -> None:
    """One worker: it holds the jobs behind the one that kills it, and they lose no attempt."""
    server, client = serve(start)
    warm = [client.insert("note") for _ in range(50)]  # so that it learns how short they are
    in_state(client, warm[-1], "done")
    killer = {"type": "end", "data": {"how": "signal", "value": int(signal.SIGKILL)}, "max_attempts": 1}
    jobs: list[dict[str, Any]] = [{"type": "note"}] * 20 + [killer] + [{"type": "note"}] * 20
    ids = client.insert_many(jobs)
    for position, id in enumerate(ids):
        job = in_state(client, id, "done", "buried")
        if position == 20:
            assert (job["state"], job["attempt"], job["deaths"]) == ("buried", 1, 1)
        else:
            assert (job["state"], job["attempt"], job.get("deaths")) == ("done", 1, None)
    assert len([line for line in server.stdout.lines if line.startswith("end began")]) == 1


def test_an_idle_worker_that_is_killed_is_replaced(start: Start) -> None:
    server, client = serve(start)
    server.wait_for_workers()
    for worker in server.workers():
        worker.send_signal(signal.SIGKILL)
    id = client.insert("note")
    server.stdout.wait_for(f"note began {id}")
    assert in_state(client, id, "done")["attempt"] == 1
    assert sum(worker["restarts"] for worker in client.stats()["workers"]) == 2


def test_a_worker_killed_from_outside_costs_its_job_an_attempt(start: Start) -> None:
    server, client = serve(start)
    id = client.insert("hold", "go")
    server.stdout.wait_for(f"hold began {id} 1")
    for worker in server.workers():
        worker.send_signal(signal.SIGKILL)
    server.stdout.wait_for(f"hold began {id} 2")
    (server.folder / "go").touch()
    job = in_state(client, id, "done")
    assert (job["attempt"], job["deaths"]) == (2, 1)


def test_a_stopped_worker_is_ended_by_the_ttr_of_its_job(start: Start) -> None:
    server, client = serve(start)
    id = client.insert("hold", "go", ttr=1)
    server.stdout.wait_for(f"hold began {id} 1")
    (pid,) = [worker["pid"] for worker in client.stats()["workers"] if worker["state"] == "running"]
    psutil.Process(pid).suspend()
    server.stdout.wait_for(f"hold began {id} 2")
    (server.folder / "go").touch()
    assert in_state(client, id, "done")["last_error"]["kind"] == "ttr"


def test_a_stopped_worker_that_never_started_its_job_is_replaced(start: Start) -> None:
    server, client = serve(start)
    server.wait_for_workers()
    (pid,) = [worker["pid"] for worker in client.stats()["workers"] if worker["pool"] == "default"]
    psutil.Process(pid).suspend()
    id = client.insert("note", ttr=1)
    server.stdout.wait_for(f"note began {id}")
    assert in_state(client, id, "done")["attempt"] == 1
    until(lambda: gone(pid), "the stopped worker to be ended")


@pytest.mark.parametrize("end", ["ttr", "death", "exit"])
def test_daemons_end_with_their_attempt(start: Start, end: str) -> None:
    """They left process group, session and parent; their worker is killed, or dies by itself."""
    server, client = serve(start)
    id = client.insert("daemon", {"end": end}, ttr=2 if end == "ttr" else 60, max_attempts=1)
    (line,) = server.stdout.wait_for(f"daemon {id}")
    pid = int(line.split()[2])
    in_state(client, id, "buried")
    until(lambda: gone(pid), "the daemon to be ended")


def test_workers_die_with_the_server(start: Start) -> None:
    server, client = serve(start, processes=2)
    id = client.insert("hold", "go")
    server.stdout.wait_for(f"hold began {id}")
    pids = [worker.pid for worker in server.workers()]
    assert len(pids) == 3
    server.kill()
    for pid in pids:
        until(lambda pid=pid: gone(pid), f"worker {pid} to end")


# -- what is left behind --------------------------------------------------------------------------------


def test_children_that_linger_hold_nothing_up(start: Start) -> None:
    """They may live on; their jobs are done, others run, and the server stops."""
    server, client = serve(start)
    for leave in ("sh", "fork", "setsid"):
        id = client.insert("spawn", {"leave": [leave]})
        assert in_state(client, id, "done")["attempt"] == 1
    note = client.insert("note")
    server.stdout.wait_for(f"note began {note}")
    pids = [int(line.split()[2]) for line in server.stdout.lines if line.startswith("left")]
    server.terminate()
    assert server.process.wait(60) == 0
    psutil.Process(pids[2]).kill()  # it left the worker's process group, and was told nothing
    for pid in pids:
        until(lambda pid=pid: gone(pid), "the child to end")


def test_a_forked_child_that_comes_back_is_no_second_worker(start: Start) -> None:
    server, client = serve(start)
    ids = [client.insert("forked_return") for _ in range(5)]
    for id in ids:
        assert in_state(client, id, "done")["attempt"] == 1
    notes = [client.insert("note") for _ in range(50)]
    for id in notes:
        assert in_state(client, id, "done")["attempt"] == 1
    ran = [line.split()[2] for line in server.stdout.lines if line.startswith("note began")]
    assert sorted(ran) == sorted(notes)


# -- prefetch -----------------------------------------------------------------------------------------


def test_short_jobs_are_fetched_many_at_a_time(pair: ServerProcess) -> None:
    def calls(name: str) -> int:
        return int(client.stats()["calls"].get(name, {"count": 0})["count"])

    with pair.client() as client:
        reserves, settles = calls("reserve"), calls("settle")
        ids = client.insert_many([{"type": "note"}] * 2000)
        in_state(client, ids[-1], "done")
        assert calls("reserve") - reserves < 500
        assert calls("settle") - settles < 1800  # far fewer where nothing else runs


def test_a_slow_job_holds_no_others(start: Start) -> None:
    """Those its worker fetched with it go to the other worker, unharmed."""
    server, client = serve(start, processes=2)
    warm = client.insert_many([{"type": "note"}] * 400)  # both learn that jobs are short
    in_state(client, warm[-1], "done")
    jobs = [{"type": "note"}] * 10 + [{"type": "hold", "data": "go"}] + [{"type": "note"}] * 100
    ids = client.insert_many(jobs)
    for id in ids[:10] + ids[11:]:
        assert in_state(client, id, "done")["attempt"] == 1
    assert client.job(ids[10])["state"] == "reserved"  # still running all the while
    (server.folder / "go").touch()
    assert in_state(client, ids[10], "done")["attempt"] == 1
    ran = [line.split()[2] for line in server.stdout.lines if line.startswith("note began")]
    assert len(ran) == len(set(ran))


def test_a_slow_job_on_the_only_worker_gives_back_what_it_held(start: Start) -> None:
    server, client = serve(start)
    warm = client.insert_many([{"type": "note"}] * 200)
    in_state(client, warm[-1], "done")
    ids = client.insert_many([{"type": "hold", "data": "go"}] + [{"type": "note"}] * 50)
    server.stdout.wait_for(f"hold began {ids[0]}")
    until(lambda: client.call("stats", {"type": "note"})["jobs"]["ready"] == 50, "all to be ready again")
    with server.client() as other:  # anybody else may take them
        leases = other.call("reserve", {"types": ["note"], "max": 10})["jobs"]
        assert [lease["attempt"] for lease in leases] == [1] * 10
        other.call("settle", [{"receipt": lease["receipt"], "outcome": "release"} for lease in leases])
    (server.folder / "go").touch()
    for id in ids:
        assert in_state(client, id, "done")["attempt"] == 1


def test_jobs_that_became_slower_are_not_held(start: Start) -> None:
    """As many were fetched as if they were quick; all but a few of them go back after a moment."""
    server, client = serve(start)
    lengths = [0.001] * 200 + [0.02] * 60
    ids = client.insert_many([{"type": "sleep", "data": seconds} for seconds in lengths])
    in_state(client, ids[200], "done")
    urgent = client.insert("note", prio="urgent")
    for id in (urgent, *ids):
        assert in_state(client, id, "done")["attempt"] == 1
    ran = [line.split()[2] for line in server.stdout.lines if " began " in line][200:]
    assert ran.index(urgent) <= 12, ran.index(urgent)


def test_a_more_urgent_job_overtakes_those_not_fetched(start: Start) -> None:
    server, client = serve(start)
    hold = client.insert("hold", "go")
    server.stdout.wait_for(f"hold began {hold}")
    low = client.insert_many([{"type": "note", "prio": "low"}] * 3)
    urgent = client.insert("note", prio="urgent")
    (server.folder / "go").touch()
    in_state(client, low[-1], "done")
    ran = [line.split()[2] for line in server.stdout.lines if line.startswith("note began")]
    assert ran == [urgent, *low]
