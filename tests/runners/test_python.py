"""Python handlers of a config: every way they can end, and what the job says of it afterwards."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from kqs.client import Client
from tests.support import ServerProcess, until

CONFIG = """
[pools.default]
processes = 1
[defaults.retry]
backoff = "fixed"
base = 1000
jitter = 0
[handlers.end]
python = "jobs:end"
[handlers."async.end"]
python = "jobs:async_end"
[handlers.note]
python = "jobs:note"
[handlers.once]
python = "jobs:once"
retry = { backoff = "fixed", base = 0, jitter = 0 }
[handlers.members]
python = "jobs:members"
[handlers.progress]
python = "jobs:progress"
[handlers.generator]
python = "jobs:generator"
[handlers.async_generator]
python = "jobs:async_generator"
[handlers."nested"]
python = "jobs:Holder.method"
[handlers.prints]
python = "jobs:prints"
[handlers.flood]
python = "jobs:flood"
[handlers.close_stdio]
python = "jobs:close_stdio"
[handlers.threads]
python = "jobs:threads"
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("python"), CONFIG)
    try:
        yield made.start()
        made.stop()
    finally:
        made.discard()


@pytest.fixture
def client(running: ServerProcess) -> Iterator[Client]:
    with running.client() as client:
        yield client


def ended(client: Client, id: str) -> dict[str, Any]:
    """The job, once its attempt is over."""

    def over() -> dict[str, Any] | None:
        job = client.job(id)
        return job if job["state"] in ("done", "buried", "delayed") else None

    return until(over, "the attempt to end")  # type: ignore[return-value]


def end(client: Client, how: str, value: Any = None, type: str = "end", **more: Any) -> dict[str, Any]:
    return ended(client, client.insert(type, {"how": how, "value": value, **more}))


@pytest.mark.parametrize("type", ["end", "async.end"])
class TestEveryWayToEnd:
    """The same for a plain function and for a coroutine function."""

    @pytest.mark.parametrize("value", [None, 1, "text", {"a": 1}, False])
    def test_return_is_ok_whatever_is_returned(self, client: Client, type: str, value: Any) -> None:
        job = end(client, "return", value, type)
        assert (job["state"], job["outcome"], job["attempt"]) == ("done", "ok", 1)
        assert "last_error" not in job

    def test_again_takes_its_own_delay(self, client: Client, type: str) -> None:
        job = end(client, "again", 500, type, reason="not yet")
        assert (job["state"], job["attempt"]) == ("delayed", 1)
        assert 450 < _seconds(job["started_at"], job["due_at"]) < 550
        assert (job["last_error"]["message"], job["last_error"]["kind"]) == ("not yet", "Again")
        assert "traceback" not in job["last_error"]

    def test_again_without_a_delay_waits_as_the_policy_says(self, client: Client, type: str) -> None:
        job = end(client, "again", None, type)
        assert job["state"] == "delayed"
        assert 950 < _seconds(job["started_at"], job["due_at"]) < 1050
        assert job["last_error"]["message"] == "asked to run again"

    def test_fail_buries(self, client: Client, type: str) -> None:
        job = end(client, "fail", None, type, reason="never")
        assert (job["state"], job["last_error"]["message"], job["last_error"]["kind"]) == (
            "buried",
            "never",
            "Fail",
        )

    def test_an_exception_is_again_with_its_traceback(self, client: Client, type: str) -> None:
        job = end(client, "raise", "oh no", type)
        assert job["state"] == "delayed"
        assert 950 < _seconds(job["started_at"], job["due_at"]) < 1050
        error = job["last_error"]
        assert (error["message"], error["kind"]) == ("oh no", "Odd")
        lines = error["traceback"].splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1] == "jobs.Odd: oh no"
        assert "_deeper" in error["traceback"] and "jobs.py" in error["traceback"]
        assert "kqs/runners" not in error["traceback"]  # the handler's own frames only

    @pytest.mark.parametrize(
        ("how", "value", "kind", "message"),
        [
            ("system_exit", 3, "SystemExit", "3"),
            ("system_exit", "bye", "SystemExit", "bye"),
            ("system_exit", None, "SystemExit", "SystemExit"),
            ("keyboard_interrupt", None, "KeyboardInterrupt", "KeyboardInterrupt"),
            ("generator_exit", None, "GeneratorExit", "GeneratorExit"),
            ("base_exception", None, "BaseException", "the root"),
            ("no_message", None, "Odd", "Odd"),
            ("many_lines", None, "Odd", "first"),
            ("recursion", None, "RecursionError", "maximum recursion depth exceeded"),
            ("surrogate", None, "Odd", "?"),
        ],
    )
    def test_every_other_exception_is_again(
        self, running: ServerProcess, client: Client, type: str, how: str, value: Any, kind: str, message: str
    ) -> None:
        workers = [worker.pid for worker in running.wait_for_workers().workers()]
        job = end(client, how, value, type)
        assert (job["state"], job["last_error"]["kind"]) == ("delayed", kind)
        assert job["last_error"]["message"].startswith(message)
        assert [worker.pid for worker in running.workers()] == workers  # it lives on
        assert end(client, "return", None, type)["state"] == "done"

    def test_the_cause_is_in_the_traceback(self, client: Client, type: str) -> None:
        trace = end(client, "chain", None, type)["last_error"]["traceback"]
        assert "KeyError: 'missing'" in trace
        assert "direct cause" in trace

    def test_what_cannot_be_shown_is_said(self, client: Client, type: str) -> None:
        error = end(client, "bad_str", None, type)["last_error"]
        assert error["kind"] == "Unprintable"
        assert "unprintable" in error["traceback"].lower() or "str() failed" in error["traceback"]

    def test_a_huge_message_is_cut(self, client: Client, type: str) -> None:
        error = end(client, "huge_message", None, type)["last_error"]
        assert 1000 <= len(error["message"]) <= 4000
        assert len(error["traceback"]) <= 8000

    def test_max_attempts_buries(self, client: Client, type: str) -> None:
        id = client.insert(type, {"how": "again", "value": 0}, max_attempts=3)
        job = until(lambda: (job := client.job(id))["state"] == "buried" and job)
        assert job["attempt"] == 3
        assert job["last_error"]["message"] == "attempt 3 of 3 failed: asked to run again"


def _seconds(earlier: str, later: str) -> float:
    import datetime as dt

    return (dt.datetime.fromisoformat(later) - dt.datetime.fromisoformat(earlier)).total_seconds()


DEATHS = [
    ("_exit", 0, "exited with status 0"),
    ("_exit", 9, "exited with status 9"),
    ("_exit", 3, "exited with status 3"),
    ("_exit", 5, "exited with status 5"),
    ("_exit", 137, "exited with status 137"),
    ("signal", signal.SIGKILL, "was killed by SIGKILL"),
    ("signal", signal.SIGUSR1, "was killed by SIGUSR1"),
    ("segfault", None, "was killed by SIGSEGV"),
    ("abort", None, "was killed by SIGABRT"),
]


@pytest.mark.parametrize(("how", "value", "text"), DEATHS)
def test_a_handler_that_kills_its_worker(client: Client, how: str, value: Any, text: str) -> None:
    job = end(client, how, value)
    assert (job["state"], job["attempt"], job["deaths"]) == ("delayed", 1, 1)
    error = job["last_error"]
    assert error["kind"] == "worker_died"
    assert error["message"] == f"the worker {text} while running the job"
    assert end(client, "return")["state"] == "done"  # there is a new one


def test_a_job_may_succeed_after_its_worker_died(running: ServerProcess, client: Client) -> None:
    id = client.insert("once")
    until(lambda: client.job(id)["state"] == "done")
    job = client.job(id)
    assert (job["attempt"], job["deaths"], job["outcome"]) == (2, 1, "ok")


def test_everything_a_job_has(running: ServerProcess, client: Client) -> None:
    id = client.insert("members", {"x": [1, None]}, prio="low", ttr=50)
    (line,) = running.stdout.wait_for(f'members {{"id": "{id}"')
    seen = json.loads(line.partition(" ")[2])
    left = seen.pop("ttr_left")
    assert 0 < left <= 50
    assert seen == {
        "id": id,
        "type": "members",
        "data": {"x": [1, None]},
        "attempt": 1,
        "prio": "low",
        "aware": [True, True],
        "cancelled": False,
        "repr": f"<Job {id} type='members' attempt=1>",
    }
    (logged,) = running.stderr.wait_for("something to note")
    said = json.loads(logged)
    assert (said["job"], said["type"], said["level"]) == (id, "members", "warning")


def test_progress_is_shown_while_it_runs(running: ServerProcess, client: Client) -> None:
    id = client.insert("progress", "progress-go")
    running.stdout.wait_for(f"progress began {id}")
    until(lambda: client.job(id).get("progress") == {"fraction": 0.25, "message": "a quarter"})
    (running.folder / "progress-go").touch()
    until(lambda: client.job(id)["state"] == "done")


@pytest.mark.parametrize("type", ["generator", "async_generator"])
def test_a_generator_never_ran_and_is_not_done(client: Client, type: str) -> None:
    """Calling one only makes it: the job would be acked and its work never done."""
    job = ended(client, client.insert(type))
    assert job["state"] == "buried"
    assert "generator" in job["last_error"]["message"]


def test_a_method_can_be_a_handler(running: ServerProcess, client: Client) -> None:
    id = client.insert("nested", 7)
    running.stdout.wait_for(f"nested {id} 7")
    assert ended(client, id)["state"] == "done"


@pytest.mark.parametrize("data", ["1e999", "[" + "1" * 5000 + "]"])
def test_json_that_python_cannot_read_fails_for_good(
    running: ServerProcess, client: Client, data: str
) -> None:
    with running.connect() as wire:
        line = f'{{"v":1,"id":"1","n":"insert","m":{{"type":"note","data":{data}}}}}'
        job = ended(client, wire.ask(line.encode())["m"]["id"])
    assert job["state"] == "buried"
    assert job["last_error"]["kind"] == "payload"


def test_a_job_nested_as_deep_as_is_taken_runs(running: ServerProcess, client: Client) -> None:
    data = "[" * 450 + "]" * 450
    with running.connect() as wire:
        line = f'{{"v":1,"id":"1","n":"insert","m":{{"type":"note","data":{data}}}}}'
        assert ended(client, wire.ask(line.encode())["m"]["id"])["state"] == "done"


def printed(running: ServerProcess, id: str, stream: str) -> list[str]:
    lines = running.logged("output")
    return [line["line"] for line in lines if (line["job"], line["stream"]) == (id, stream)]


def test_what_a_job_prints_is_logged_with_its_id(running: ServerProcess, client: Client) -> None:
    ids = [client.insert("prints", {"text": f"word {n}"}) for n in range(20)]
    for n, id in enumerate(ids):
        running.stderr.wait_for(lambda line, n=n: f"word {n} from a child" in line)
        assert ended(client, id)["state"] == "done"
        assert printed(running, id, "stdout") == [f"word {n}", f"word {n} from C", f"word {n} from a child"]
        assert printed(running, id, "stderr") == [f"word {n} on stderr", "no end of line"]


def test_what_a_job_prints_is_seen_while_it_runs(running: ServerProcess, client: Client) -> None:
    id = client.insert("progress", "print-go")
    running.stdout.wait_for(f"progress began {id}")
    assert client.job(id)["state"] == "reserved"
    (running.folder / "print-go").touch()
    assert ended(client, id)["state"] == "done"


def test_the_last_words_of_a_process_are_logged(running: ServerProcess, client: Client) -> None:
    id = client.insert("prints", {"text": "last words", "die": True})
    running.stderr.wait_for("last words from a child")
    assert ended(client, id)["deaths"] == 1
    assert printed(running, id, "stdout")[0] == "last words"


def test_much_output_is_cut(running: ServerProcess, client: Client) -> None:
    """The job neither waits nor fails for it; the next one's is whole."""
    id = client.insert("flood", 4000)
    running.stderr.wait_for("truncated after 65536 bytes")
    assert ended(client, id)["state"] == "done"
    lines = printed(running, id, "stdout") + printed(running, id, "stderr")
    assert 60_000 < sum(map(len, lines)) < 66_000
    id = client.insert("flood", 3)
    running.stdout.wait_for(f"flood ended {id}")
    assert printed(running, id, "stdout") == ["o" * 999] * 3 + [f"flood ended {id}"]


def test_a_thread_left_behind_does_not_keep_the_worker(running: ServerProcess, client: Client) -> None:
    """Seen at the end of the module: the server stops although the thread runs on."""
    assert ended(client, client.insert("threads"))["state"] == "done"


def test_closed_streams_hurt_nobody_else(running: ServerProcess, client: Client) -> None:
    assert ended(client, client.insert("close_stdio"))["state"] == "done"
    ids = [client.insert("note") for _ in range(3)]
    for id in ids:
        running.stdout.wait_for(f"note began {id}")
        assert ended(client, id)["state"] == "done"


@pytest.mark.parametrize("type", ["end", "async.end"])
@pytest.mark.parametrize("value", [None, 0, "text", {"a": [1, None]}])
def test_a_wanted_result_is_kept(client: Client, type: str, value: Any) -> None:
    job = ended(client, _insert_for_result(client, type, {"how": "return", "value": value}))
    assert (job["state"], job["result"]) == ("done", value)


@pytest.mark.parametrize("type", ["end", "async.end"])
def test_a_result_that_is_not_json_fails(client: Client, type: str) -> None:
    job = ended(client, _insert_for_result(client, type, {"how": "return_object"}))
    assert (job["state"], job["last_error"]["kind"]) == ("buried", "result")
    job = end(client, "return_object", None, type)
    assert job["state"] == "done"  # nobody wants it


def _insert_for_result(client: Client, type: str, data: Any) -> str:
    return str(client.call("insert", {"type": type, "data": data, "result_ttl": 60})["id"])
