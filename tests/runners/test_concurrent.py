"""Pools with concurrency: many attempts in one process, and what one of them can do to the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kqs.client import Client
from tests.runners.test_chaos import in_state
from tests.support import ServerProcess, kqs, until

Start = Callable[..., ServerProcess]

TYPES = ["hold", "deaf", "blocks", "dies", "prints", "renew", "sleep", "context", "grow"]
TYPES += ["child_exits", "forked_return", "forks", "says"]
CONFIG = """
[pools.default]
processes = 1
concurrency = {concurrency}
{pool}
[defaults.retry]
backoff = "fixed"
base = 0
jitter = 0
"""


def serve(
    start: Start, concurrency: int = 20, pool: str = "", more: str = ""
) -> tuple[ServerProcess, Client]:
    handlers = "".join(f'[handlers.{type_}]\npython = "ajobs:{type_}"\n' for type_ in TYPES)
    server = start(CONFIG.format(concurrency=concurrency, pool=pool) + handlers + more)
    return server, server.client()


def began(server: ServerProcess, id: str, attempt: int = 1) -> None:
    server.stdout.wait_for(lambda line: f" began {id} {attempt} " in line)


def begin_holds(server: ServerProcess, client: Client, count: int) -> list[str]:
    ids = [client.insert("hold", "go") for _ in range(count)]
    for id in ids:
        began(server, id)
    return ids


def pids(server: ServerProcess) -> set[str]:
    return {line.split()[4] for line in server.stdout.lines if " began " in line}


def test_attempts_run_at_the_same_time_in_one_process(start: Start) -> None:
    server, client = serve(start)
    ids = begin_holds(server, client, 20)
    assert len(pids(server)) == 1
    waiting = client.insert("hold", "go")
    assert client.job(waiting)["state"] == "ready"  # no slot is free, and it is not held ahead
    (server.folder / "go").touch()
    for id in [*ids, waiting]:
        assert in_state(client, id, "done")["attempt"] == 1


def test_ttr_ends_that_attempt_alone(start: Start) -> None:
    server, client = serve(start)
    ids = begin_holds(server, client, 5)
    late = client.insert("hold", "never", ttr=0.5, max_attempts=2)
    job = in_state(client, late, "buried")
    assert (job["attempt"], job["last_error"]["kind"]) == (2, "ttr")
    assert job["last_error"]["message"].endswith("ttr of 0.5 s exceeded")
    assert "deaths" not in job
    server.stdout.wait_for(f"hold cancelled {late} True", times=2)
    (server.folder / "go").touch()
    for id in ids:
        assert in_state(client, id, "done")["attempt"] == 1
    assert len(pids(server)) == 1


def test_one_that_cannot_be_cancelled_ends_its_process_and_costs_no_other(start: Start) -> None:
    server, client = serve(start)
    ids = begin_holds(server, client, 5)
    deaf = client.insert("deaf", ttr=0.5)
    job = in_state(client, deaf, "done")
    assert (job["attempt"], job["last_error"]["kind"]) == (2, "ttr")
    (server.folder / "go").touch()
    for id in ids:
        job = in_state(client, id, "done")
        assert (job["attempt"], job.get("last_error"), job.get("deaths")) == (1, None, None)
    assert len(pids(server)) == 2


def test_one_that_blocks_the_loop_pays_alone(start: Start) -> None:
    """Its ttr is long; that of another, which is not at fault, is over first."""
    server, client = serve(start)
    late = client.insert("hold", "go", ttr=2)
    began(server, late)
    blocks = client.insert("blocks", "never", ttr=60)
    job = in_state(client, blocks, "done")
    assert (job["attempt"], job["last_error"]["message"]) == (
        2,
        "kept the event loop of its worker from running",
    )
    (server.folder / "go").touch()
    assert in_state(client, late, "done")["attempt"] == 1


def test_after_a_death_each_suspect_runs_alone(start: Start) -> None:
    server, client = serve(start)
    innocent = begin_holds(server, client, 3)
    guilty = client.insert("dies", ["die", 9])
    began(server, guilty)
    (server.folder / "die").touch()
    for id in [guilty, *innocent]:
        until(lambda id=id: client.job(id).get("deaths") == 1, "the death to be counted")
    (server.folder / "go").touch()
    job = in_state(client, guilty, "buried")
    assert job["deaths"] == 3
    for id in innocent:
        job = in_state(client, id, "done")
        assert (job["attempt"], job["deaths"]) == (2, 1)
    lines = [line.split() for line in server.stdout.lines if line.startswith(("hold ", "dies "))]
    alone = [words[2] for words in lines if words[1] == "began" and words[3] != "1"]
    assert sorted(alone) == sorted([guilty, guilty, *innocent])
    for id in innocent:  # from the begin of its second attempt to the end nothing else began
        at = next(n for n, words in enumerate(lines) if words[:4] == ["hold", "began", id, "2"])
        assert lines[at + 1][:3] == ["hold", "ended", id]


def test_a_suspect_waits_until_the_others_are_done(start: Start) -> None:
    server, client = serve(start)
    suspect = client.insert("dies", ["die", 1], ttr=1.5)
    began(server, suspect)
    (server.folder / "die").touch()
    until(lambda: client.job(suspect).get("deaths") == 1)
    assert in_state(client, suspect, "done")["attempt"] == 2


def test_it_finishes_what_runs_when_the_server_stops(start: Start) -> None:
    server, client = serve(start)
    ids = begin_holds(server, client, 5)
    server.terminate()
    server.stderr.wait_for('"event": "stopping"')
    (server.folder / "go").touch()
    assert server.process.wait(60) == 0
    for id in ids:
        server.stdout.wait_for(f"hold ended {id}")


def test_what_attempts_print_by_turns_is_logged_with_their_ids(start: Start) -> None:
    server, client = serve(start)
    ids = client.insert_many([{"type": "prints"}] * 10)
    for id in ids:
        in_state(client, id, "done")
        printed = [line for line in server.logged("output") if line.get("job") == id]
        out = [line["line"] for line in printed if line["stream"] == "stdout"]
        assert [line for line in out if line.startswith("line")] == [f"line {n}" for n in range(5)]
        assert out.count("from a thread") == 5
        assert out[-1] == "no end of line"
        assert [line["line"] for line in printed if line["stream"] == "stderr"] == ["on stderr"] * 5


def test_a_cancelled_job_is_stopped(start: Start) -> None:
    server, client = serve(start)
    other, id = begin_holds(server, client, 2)
    client.call("cancel", {"id": id})
    server.stdout.wait_for(f"hold cancelled {id} True")
    assert in_state(client, id, "done")["outcome"] == "cancelled"
    (server.folder / "go").touch()
    assert in_state(client, other, "done")["outcome"] == "ok"


def test_renewing_outlives_the_ttr(start: Start) -> None:
    server, client = serve(start)
    id = client.insert("renew", {"times": 6, "every": 0.3}, ttr=0.9)
    server.stdout.wait_for(f"renew ended {id} 1")
    assert in_state(client, id, "done")["attempt"] == 1


def test_contexts_are_apart(start: Start) -> None:
    server, client = serve(start)
    for id in client.insert_many([{"type": "context"}] * 30):
        server.stdout.wait_for(f"context {id} nothing True")


@pytest.mark.parametrize("type", ["child_exits", "forked_return"])
def test_what_a_handler_starts_does_not_end_or_double_the_worker(start: Start, type: str) -> None:
    server, client = serve(start)
    ids = begin_holds(server, client, 3)
    odd = client.insert_many([{"type": type}] * 5)
    for id in odd:
        assert in_state(client, id, "done")["attempt"] == 1
    (server.folder / "go").touch()
    for id in ids:
        assert in_state(client, id, "done")["attempt"] == 1
    assert "child went on" not in server.stdout.text
    assert sum(worker["restarts"] for worker in client.stats()["workers"]) == 0


def test_the_child_of_a_handler_does_not_run_the_jobs_that_are_ready_beside_it(start: Start) -> None:
    server, client = serve(start)
    jobs = [{"type": "forks", "prio": "urgent"}] + [{"type": "says"}] * 5
    for _round in range(3):
        for id in client.insert_many(jobs):
            in_state(client, id, "done")
    assert sum(worker["restarts"] for worker in client.stats()["workers"]) == 0
    server.stop()
    said = [line.split()[1] for line in server.stdout.lines if "says" in line]
    assert len(said) == len(set(said)) == 15


def test_a_handler_that_is_not_async_is_refused(tmp_path: Any) -> None:
    text = CONFIG.format(concurrency=2, pool="") + '[handlers.note]\npython = "jobs:note"\n'
    (tmp_path / "kqs.toml").write_text(text)
    done = kqs("config", "check", cwd=tmp_path)
    assert done.status == 2
    assert "'note' is not async" in done.err


# -- how long a process lives ---------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 10])
def test_a_process_is_replaced_after_so_many_jobs(start: Start, concurrency: int) -> None:
    server, client = serve(start, concurrency, "max_jobs = 10")
    ids = client.insert_many([{"type": "sleep", "data": 0}] * 45)
    for id in ids:
        job = in_state(client, id, "done")
        assert (job["attempt"], job.get("last_error")) == (1, None)
    assert len(pids(server)) >= 3
    assert sum(worker["restarts"] for worker in client.stats()["workers"]) == 0
    assert [line for line in server.logged() if line["level"] != "info"] == []


def test_a_process_is_replaced_when_it_has_grown(start: Start) -> None:
    server, client = serve(start, 2, "memory = 200_000_000")
    for _ in range(12):
        id = client.insert("grow", 30)
        assert in_state(client, id, "done")["attempt"] == 1
    assert len({line.split()[3] for line in server.stdout.lines if line.startswith("grow ended")}) > 1
    assert [line for line in server.logged() if line["level"] != "info"] == []


@pytest.mark.parametrize("concurrency", [1, 10])
def test_an_attempt_is_kept_alive_until_max_runtime(start: Start, concurrency: int) -> None:
    more = "".join(
        f'[handlers.{type_}]\npython = "ajobs:hold"\nttr = 0.3\nkeep_alive = true\n{limit}\n'
        for type_, limit in (("long", ""), ("short", "max_runtime = 1.2\nmax_attempts = 1"))
    )
    server, client = serve(start, concurrency, more=more)
    short = client.insert("short", "never")
    job = in_state(client, short, "buried")
    assert job["last_error"]["message"].endswith("max_runtime of 1.2 s exceeded")
    assert _age(job) >= 1.2
    long = client.insert("long", "go")
    began(server, long)
    first = client.job(long)["lease_expires_at"]
    until(lambda: client.job(long)["lease_expires_at"] > first, "the lease to be renewed")
    (server.folder / "go").touch()
    assert in_state(client, long, "done")["attempt"] == 1


def _age(job: dict[str, Any]) -> float:
    from datetime import datetime

    at = (datetime.fromisoformat(text) for text in (job["last_error"]["at"], job["started_at"]))
    return (next(at) - next(at)).total_seconds()


# -- handlers that break while the server runs ------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 10])
def test_a_module_that_broke_stops_its_own_type_only(start: Start, concurrency: int, tmp_path: Any) -> None:
    module = "async def run(job):\n    print('mine ran', job.id)\n"
    (tmp_path / "mine.py").write_text(module)
    more = '[handlers.mine]\npython = "mine:run"\n'
    server, client = serve(start, concurrency, more=more)
    assert server.folder == tmp_path
    in_state(client, client.insert("mine"), "done")
    (tmp_path / "mine.py").write_text("import os\n\nraise ValueError('broken')\n")
    for worker in server.wait_for_workers().workers():
        worker.kill()
    assert in_state(client, client.insert("sleep", 0), "done")["attempt"] == 1
    waits = client.insert("mine")
    (logged,) = server.stderr.wait_for("cannot be imported")
    assert "handlers.mine" in logged and "ValueError: broken" in logged and "mine.py line 3" in logged
    check = until(lambda: [c for c in client.call("health")["checks"] if "imported" in c["text"]])[0]
    assert (check["name"], check["status"]) == ("workers", "degraded")
    assert check["text"].endswith(": mine")
    assert client.job(waits)["state"] == "ready"
    (tmp_path / "mine.py").write_text(module)
    for worker in server.wait_for_workers().workers():
        worker.kill()
    assert in_state(client, waits, "done")["attempt"] == 1
    server.traceback_expected = True  # the broken handler is an error in the log
