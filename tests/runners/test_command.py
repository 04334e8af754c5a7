"""Command handlers: argv without a shell, payload on stdin, the outcome by the exit status."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from kqs.client import Client
from tests.support import ServerProcess, until

CONFIG = """
[pools.default]
processes = 2
[defaults.retry]
backoff = "fixed"
base = 1000
jitter = 0

[handlers.sh]  # runs its payload as a script
command = ["sh"]

[handlers.argv]
command = ["printf", "%s|", "a b", "$HOME", "*", ";exit 1", "\\u2603"]

[handlers.env]
command = ["env"]

[handlers.true]
command = ["true"]
"""

SECRETS = {"KQS_TOKEN": "canary-secret", "AWS_SECRET": "canary-secret", "LD_CANARY": "x"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("command"), CONFIG, env=SECRETS)
    try:
        yield made.start()
        made.stop()
    finally:
        made.discard()


@pytest.fixture
def client(running: ServerProcess) -> Iterator[Client]:
    with running.client() as client:
        yield client


def run(client: Client, script: str, **options: Any) -> dict[str, Any]:
    """A job whose command is this script, once its attempt is over."""
    return ended(client, client.insert("sh", script.encode(), **options))


def ended(client: Client, id: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        job = client.job(id)
        return job if job["state"] in ("done", "buried", "delayed") else None

    return until(over, "the attempt to end")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("status", "state", "message"),
    [
        (0, "done", None),
        (75, "delayed", "exit status 75 (try again later)"),
        (111, "delayed", "exit status 111 (try again later)"),
        (100, "buried", "exit status 100 (failed for good)"),
        (1, "delayed", "exit status 1"),
        (2, "delayed", "exit status 2"),
        (127, "delayed", "exit status 127"),
        (137, "delayed", "exit status 137"),
        (255, "delayed", "exit status 255"),
    ],
)
def test_exit_statuses(client: Client, status: int, state: str, message: str | None) -> None:
    job = run(client, f"exit {status}")
    assert (job["state"], job["attempt"]) == (state, 1)
    assert "deaths" not in job  # the worker lives
    if message is None:
        assert "last_error" not in job
    else:
        assert (job["last_error"]["message"], job["last_error"]["kind"]) == (message, "exit")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGHUP])
def test_signals_are_again(client: Client, number: signal.Signals) -> None:
    job = run(client, f"kill -{int(number)} $$; sleep 600")
    assert job["state"] == "delayed"
    error = job["last_error"]
    assert (error["message"], error["kind"]) == (f"killed by signal {int(number)}", "signal")


def test_what_it_said_last_is_kept_with_a_failure(client: Client) -> None:
    error = run(client, "echo to stdout; echo to stderr >&2; exit 1")["last_error"]
    assert error["traceback"] == "to stderr"
    error = run(client, "echo to stdout; exit 1")["last_error"]
    assert error["traceback"] == "to stdout"


def test_megabytes_of_output_are_read_and_the_end_is_kept(client: Client) -> None:
    script = (
        "head -c 5000000 /dev/zero | tr '\\0' o; head -c 5000000 /dev/zero | tr '\\0' e >&2; echo end >&2"
    )
    error = run(client, script + "; exit 1", ttr=60)["last_error"]
    assert error["traceback"].endswith("eeend")
    assert len(error["traceback"]) <= 8192
    assert run(client, script)["state"] == "done"


def test_gigabytes_of_output_are_not_kept(running: ServerProcess, client: Client) -> None:
    assert run(client, "head -c 2G /dev/zero", ttr=600)["state"] == "done"
    assert all(worker.memory_info().rss < 200_000_000 for worker in running.workers())


def test_binary_output_is_shown_as_text(client: Client) -> None:
    error = run(client, "printf '\\377\\376\\0\\033[31mred' >&2; exit 1")["last_error"]
    assert error["traceback"].endswith("[31mred")


def test_argv_is_not_a_shells(running: ServerProcess, client: Client) -> None:
    """The command prints to the runner, not to the server; its failure would show what it got."""
    assert ended(client, client.insert("argv"))["state"] == "done"
    job = run(client, "printf '%s|' 'a b' '$HOME' '*' ';exit 1' >&2; exit 1")
    assert job["last_error"]["traceback"] == "a b|$HOME|*|;exit 1|"
    assert "a b" not in running.stdout.text


def test_the_environment_is_clean(client: Client) -> None:
    id = client.insert("sh", b"env >&2; exit 1")
    lines = ended(client, id)["last_error"]["traceback"].splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert found.pop("KQS_JOB_ID") == id
    assert found.pop("KQS_TYPE") == "sh"
    assert found.pop("KQS_ATTEMPT") == "1"
    assert found.pop("KQS_WORKER")
    shells_own = {"PWD", "SHLVL", "_", "OLDPWD"}
    inherited = {"HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"}
    assert found.keys() - shells_own <= inherited
    assert "canary-secret" not in found.values()


def test_a_command_that_does_not_read_its_stdin(client: Client) -> None:
    data = b"exit 0\n" + b"#" * 5_000_000
    assert ended(client, client.insert("sh", data, ttr=60))["state"] == "done"
    assert ended(client, client.insert("true", b"#" * 5_000_000))["state"] == "done"


def test_an_empty_payload_is_an_empty_stdin(client: Client) -> None:
    assert ended(client, client.insert("sh", b""))["state"] == "done"


def test_a_json_payload_is_its_text(client: Client) -> None:
    id = client.insert("sh", "exit 75")  # as JSON: a word in quotes, which is no command
    assert ended(client, id)["last_error"]["message"] == "exit status 127"


def test_no_descriptor_of_the_worker_is_inherited(client: Client) -> None:
    """Neither the worker's link nor the journal: what is open is stdin, stdout, stderr (and ls's own)."""
    error = run(client, "ls -l /proc/self/fd >&2; exit 1")["last_error"]
    targets = [line.rpartition(" -> ")[2] for line in error["traceback"].splitlines()[1:]]
    assert sorted(target.partition(":")[0] for target in targets)[-3:] == ["pipe"] * 3
    assert len(targets) == 4


def test_what_a_command_leaves_behind_is_ended(running: ServerProcess, client: Client) -> None:
    """In its process group, that is: a job that is over leaves nothing running."""
    file = running.folder / "left"
    job = run(client, f"sleep 600 & echo $! >{file}.new; sleep 600 & mv {file}.new {file}; exit 0")
    assert job["state"] == "done"
    pid = int(file.read_text())
    until(lambda: not psutil.pid_exists(pid), "the child to be ended")


@pytest.mark.parametrize(
    "escape",
    [
        "setsid sleep 600 &",
        "(setsid sleep 600 &) &",
        "setsid sh -c 'setsid sleep 600 & exec setsid sleep 600' &",
    ],
    ids=["session", "orphan", "both"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_what_left_its_session_is_ended_too(running: ServerProcess, client: Client, escape: str) -> None:
    """And that it holds the pipes open keeps nobody waiting."""
    id = client.insert("sh", f"{escape} echo $KQS_JOB_ID".encode())
    assert ended(client, id)["state"] == "done"
    assert left_of(id) == []


def left_of(id: str) -> list[psutil.Process]:
    """Processes of a job that run."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return process.environ().get("KQS_JOB_ID") == id
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


def test_a_child_that_floods_the_pipes_does_not_keep_the_job(client: Client) -> None:
    assert run(client, "yes & exit 0")["state"] == "done"
    assert run(client, "setsid yes >&2 & exit 0")["state"] == "done"


def test_closing_both_outputs_ends_nothing(client: Client) -> None:
    job = run(client, "exec >&- 2>&-; cat <&0 >/dev/null; exit 100")
    assert (job["state"], job["last_error"]["message"]) == ("buried", "exit status 100 (failed for good)")


@pytest.mark.parametrize(
    "stubborn",
    ["kill -STOP $$", "trap '' TERM INT HUP; while :; do sleep 600; done", "(setsid sleep 600 &); sleep 600"],
    ids=["stopped", "deaf", "daemon"],
)
def test_whatever_it_does_it_is_ended_by_its_ttr(
    running: ServerProcess, client: Client, stubborn: str
) -> None:
    file = running.folder / "begun"
    file.unlink(missing_ok=True)
    script = f"touch {file}; {stubborn}"
    id = client.insert("sh", script.encode(), ttr=0.5, max_attempts=1)
    until(file.exists, "it to begin")
    job = until(lambda: (job := client.job(id))["state"] == "buried" and job)
    assert (job["last_error"]["kind"], job["last_error"]["message"]) == ("ttr", "ttr of 0.5 s exceeded")
    assert left_of(id) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the environment of processes is seen on Linux")
def test_when_its_worker_is_killed_nothing_of_it_goes_on(running: ServerProcess, client: Client) -> None:
    """Not what left the command's session either: the job may be running again."""
    file = running.folder / "worker"
    script = f"(setsid sleep 600 &); echo $PPID >{file}.new; mv {file}.new {file}; sleep 600"
    id = client.insert("sh", script.encode(), max_attempts=1)
    until(file.exists, "it to begin")
    psutil.Process(int(file.read_text())).kill()
    until(lambda: client.job(id)["state"] == "buried", "the attempt to end")
    assert left_of(id) == []


def test_a_program_that_is_gone_is_again(start: Any, tmp_path: Any) -> None:
    """Checked at start; when it goes away later the job waits for it."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    server = start('[handlers.p]\ncommand = ["./program"]\nretry = {backoff = "fixed", base = 0.2}\n')
    client = server.client()
    assert ended(client, client.insert("p"))["state"] == "done"
    program.rename(tmp_path / "elsewhere")
    id = client.insert("p")
    error = until(lambda: client.job(id).get("last_error"))
    assert error["kind"] == "command"
    assert "cannot start" in error["message"] and "No such file" in error["message"]
    (tmp_path / "elsewhere").rename(program)
    until(lambda: client.job(id)["state"] == "done", "it to run when the program is back")


def test_the_last_error_of_a_command_is_json(client: Client) -> None:
    assert json.dumps(run(client, "exit 1")["last_error"])
