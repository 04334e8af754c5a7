"""SIGHUP and --watch: a changed config is taken over, and no job is lost, waits, or runs twice for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tests.support import PATIENCE, ServerProcess, environment, small, until

Start = Callable[..., ServerProcess]

#: Every run appends a line to a file of its type: the job's id, the process, what the job says.
MODULE = """
import os, time

VERSION = 1

def note(job):
    line = f"{job.id} {os.getpid()} {VERSION}"
    with open(f"ran.{job.type}", "a") as file:
        file.write(line + "\\n")

def hold(job):
    note(job)
    while not os.path.exists(f"go.{job.data}"):
        time.sleep(0.01)
"""

ONE = """
[pools.default]
processes = 1
[pools.other]
processes = 1
[handlers.a]
python = "work:note"
[handlers.hold]
python = "work:hold"
[handlers.b]
python = "side:note"
pool = "other"
"""


class Reloading:
    """A server with the handlers above, whose config and code can be changed."""

    def __init__(self, start: Start, folder: Path, config: str = ONE, *args: str) -> None:
        self.folder = folder
        (folder / "work.py").write_text(MODULE)
        (folder / "side.py").write_text(MODULE)
        self.server = start(config, *args).wait_for_workers()
        self.client = self.server.client()

    def write(self, name: str, text: str) -> None:
        """Change a file all at once, as an editor does."""
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(self.folder / name)

    def configure(self, config: str) -> None:
        self.write("kqs.toml", small(config))

    def hang_up(self, said: str = "config reloaded") -> None:
        """SIGHUP, and wait until the server said so."""
        times = len(self.server.logged(said)) + 1
        self.server.process.send_signal(signal.SIGHUP)
        self.server.stderr.wait_for(f'"event": "{said}"', times=times)

    def replaced(self, times: int = 1) -> None:
        """Return when the workers of so many pools were replaced, since the server started."""
        self.server.stderr.wait_for('"event": "workers replaced"', times=times)

    def runs(self, type_: str) -> list[list[str]]:
        """The runs of a type: id, process, version."""
        try:
            return [line.split() for line in (self.folder / f"ran.{type_}").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def run(self, type_: str, data: Any = None) -> list[str]:
        """Insert a job and return its run."""
        id = self.client.insert(type_, data)
        return until(lambda: next((run for run in self.runs(type_) if run[0] == id), []), f"{type_} to run")

    def workers(self) -> dict[str, list[int]]:
        """The processes of every pool."""
        pools: dict[str, list[int]] = {}
        for worker in self.client.stats()["workers"]:
            pools.setdefault(worker["pool"], []).append(worker["pid"])
        return pools


def niced(number: int) -> str:
    """The config with another setting of the pool ``default``."""
    return ONE.replace("[pools.default]\n", f"[pools.default]\nnice = {number}\n")


def test_an_attempt_is_finished_and_no_job_waits_for_the_change(start: Start, tmp_path: Path) -> None:
    it = Reloading(start, tmp_path)
    id, old, _version = it.run("hold", "first")
    it.configure(niced(1))
    it.hang_up()
    _id, new, _version = it.run("a")  # while the one process the pool had is busy
    assert new != old
    it.replaced()
    states = {worker["pid"]: worker["state"] for worker in it.client.stats()["workers"]}
    assert states[int(old)] == "stopping"
    assert it.client.job(id)["state"] == "reserved"
    (tmp_path / "go.first").touch()
    until(lambda: it.client.job(id)["state"] == "done")
    until(lambda: int(old) not in it.workers()["default"], "the old worker to go")
    assert it.client.job(id)["attempt"] == 1
    assert len(it.runs("hold")) == 1


def test_under_load_every_job_runs_once(start: Start, tmp_path: Path) -> None:
    it = Reloading(start, tmp_path)
    ids: list[str] = []
    enough = Event()

    def insert() -> None:
        with it.server.client() as client:
            while not enough.is_set():
                ids.extend(client.insert_many([{"type": type_} for type_ in ("a", "b") * 5]))

    thread = Thread(target=insert)
    thread.start()
    try:
        for times in range(1, 5):
            it.configure(niced(times))
            it.hang_up()
            it.replaced(times)
            it.run("a")
    finally:
        enough.set()
        thread.join()
    until(lambda: it.client.stats()["types"]["a"]["ready"] == it.client.stats()["types"]["b"]["ready"] == 0)
    ran = {type_: it.runs(type_) for type_ in ("a", "b")}
    until(lambda: it.client.stats()["jobs"]["reserved"] == 0)
    counts = Counter(run[0] for type_ in ("a", "b") for run in it.runs(type_))
    assert set(ids) <= counts.keys() and set(counts.values()) == {1}
    assert len({run[1] for run in ran["a"]}) == 5  # every generation of workers had a part in it
    assert len({run[1] for run in ran["b"]}) == 1  # the pool that did not change is the one there was


def test_what_changes_and_what_does_not(start: Start, tmp_path: Path) -> None:
    it = Reloading(start, tmp_path)
    before = it.workers()
    waiting = it.client.insert("c")
    config = ONE.replace("[pools.default]\nprocesses = 1", "[pools.default]\nprocesses = 3")
    config = config.replace('[handlers.b]\npython = "side:note"\npool = "other"\n', "")
    it.configure(
        config + '[handlers.c]\npython = "work:note"\n[classes.all]\ntypes = ["?"]\nttr = 77\nprio = "low"\n'
    )
    it.hang_up()
    it.replaced(2)
    until(lambda: it.client.job(waiting)["state"] == "done", "the new handler to run what waited")
    after = it.workers()
    assert len(after["default"]) == 3 and not set(after["default"]) & set(before["default"])
    until(lambda: "other" not in it.workers(), "the pool without a handler to go")
    assert after["builtin"] == before["builtin"]
    left = it.client.job(it.client.insert("b"))
    assert (left["state"], left["ttr"], left["prio"]) == ("ready", 77, "low")
    it.configure(ONE)
    it.hang_up()
    until(lambda: it.client.job(left["id"])["state"] == "done", "the handler that came back")
    until(lambda: len(it.workers()["default"]) == 1, "the other processes to go")
    assert it.client.job(it.client.insert("b", delay=9))["ttr"] == 30


def test_a_config_that_is_bad_changes_nothing(start: Start, tmp_path: Path) -> None:
    it = Reloading(start, tmp_path)
    it.server.traceback_expected = True  # the refusal is logged as an error
    before = it.workers()
    for bad in (
        "[server",
        niced(1) + '[handlers.c]\npython = "work:missing"\n',
        niced(1) + "[defaults]\nttr = 99\nmax_runtime = 5\n",
    ):
        it.configure(bad)
        it.hang_up("config refused; nothing was changed")
        assert it.client.job(it.client.insert("b", delay=9))["ttr"] == 30
    reasons = [line["reason"] for line in it.server.logged("config refused; nothing was changed")]
    for reason, text in zip(reasons, ("not TOML", "handlers.c", "defaults.max_runtime"), strict=True):
        assert text in reason
    assert it.workers() == before
    it.configure(niced(1))
    it.hang_up()
    it.replaced()
    assert it.workers()["default"] != before["default"]


def test_settings_that_need_a_restart_are_named(start: Start, tmp_path: Path) -> None:
    it = Reloading(start, tmp_path)
    it.configure('[server]\nname = "x"\n[journal]\nkey_cap = 7\n[defaults]\nttr = 9\n' + ONE)
    it.hang_up()
    (warning,) = it.server.logged("settings changed that need a restart of the server")
    assert warning["settings"] == ["server.name", "journal.key_cap"]
    assert it.client.job(it.client.insert("b", delay=9))["ttr"] == 9  # the others were taken over
    assert it.client.stats()["name"] == "kqs"


def test_changed_code_replaces_the_workers_that_have_it(start: Start, tmp_path: Path) -> None:
    it = Reloading(start, tmp_path)
    before = it.workers()
    assert it.run("a")[2] == "1"
    it.write("work.py", MODULE.replace("VERSION = 1", "VERSION = 22"))
    it.hang_up()
    it.replaced()
    assert it.run("a")[2] == "22"
    assert it.workers()["other"] == before["other"]


def test_workers_that_do_not_come_up_leave_the_old_ones_at_work(start: Start, tmp_path: Path) -> None:
    """The new code can be imported where it is checked, and not where it runs."""
    it = Reloading(start, tmp_path)
    it.server.traceback_expected = True
    old, other = it.run("a")[1], it.run("b")[1]
    bad = 'import sys\nassert "kqs.runners.check" in sys.orig_argv, "not here"\n'
    for name in ("work.py", "side.py"):
        it.write(name, bad + MODULE)
    it.configure(ONE.replace('pool = "other"\n', ""))  # its type moves to the pool that is not there yet
    it.hang_up()
    it.server.stderr.wait_for("not here")
    assert it.run("a")[1] == old
    assert it.run("b")[1] == other
    for name in ("work.py", "side.py"):
        it.write(name, MODULE.replace("VERSION = 1", "VERSION = 22"))
    it.hang_up()
    it.replaced(2)
    assert it.run("a")[2] == "22"
    until(lambda: len(it.workers()["default"]) == 1, "those that did not come up to go")
    assert "other" not in it.workers()
    assert it.run("b")[1] == it.run("a")[1]


def test_a_hangup_does_not_keep_the_server_from_stopping(start: Start, tmp_path: Path) -> None:
    it = Reloading(start, tmp_path)
    id = it.run("hold", "first")[0]
    it.configure(niced(1))
    it.hang_up()
    it.replaced()
    it.client.call("quit", {"grace": 0})  # with an old worker that is still busy
    assert it.server.wait() == 0
    (tmp_path / "go.first").touch()
    with start(ONE).client() as client:
        until(lambda: client.job(id)["state"] == "done")
        assert client.job(id)["attempt"] == 1  # it was given back, it did not fail
    assert len(it.runs("hold")) == 2


def test_a_terminal_that_closes_ends_the_server(tmp_path: Path) -> None:
    """It gets the same signal, but there is nobody left who would know of it."""
    ours, its = os.openpty()
    argv = [sys.executable, "-m", "kqs.cli.main", "serve", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        argv, cwd=tmp_path, env=environment(), stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    try:
        os.close(its)
        said = b""
        while b"ready" not in said:
            said += os.read(ours, 1000)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == -signal.SIGHUP
    finally:
        process.kill()
        process.wait()


# -- watch ---------------------------------------------------------------------------------------


def test_watch_sees_code_and_config(start: Start, tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text(MODULE)
    it = Reloading(start, tmp_path, ONE.replace("work:note", "pack.inner:note"), "--watch")
    assert it.run("a")[2] == "1"
    other = it.run("b")[1]
    it.write("pack/inner.py", MODULE.replace("VERSION = 1", "VERSION = 22"))
    it.replaced()
    assert it.run("a")[2] == "22"
    it.server.traceback_expected = True
    it.write("pack/inner.py", "def f(:\n")  # a half-written file: the handlers there are stay
    it.server.stderr.wait_for("config refused; nothing was changed")
    assert it.run("a")[2] == "22"
    it.write("pack/inner.py", MODULE.replace("VERSION = 1", "VERSION = 333"))
    it.replaced(2)
    assert it.run("a")[2] == "333"
    it.configure(ONE.replace("work:note", "pack.inner:note") + "[defaults]\nttr = 9\n")
    it.server.stderr.wait_for('"event": "config reloaded"', times=3)
    assert it.client.job(it.client.insert("b", delay=9))["ttr"] == 9
    assert it.run("b")[1] == other  # nothing that changed was its


# -- pools ---------------------------------------------------------------------------------------


def test_only_the_pools_named_run_here(start: Start, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(MODULE)
    config = ONE.replace("side:note", "not_on_this_machine:note")
    server = start(config, KQS_POOL="default").wait_for_workers()
    with server.client() as client:
        queued, ran = client.insert("b"), client.insert("a")
        until(lambda: client.job(ran)["state"] == "done")
        assert {worker["pool"] for worker in client.stats()["workers"]} == {"default", "builtin"}
        assert client.job(queued)["state"] == "ready"
    server.stop()
    (tmp_path / "not_on_this_machine.py").write_text(MODULE)
    server = start(config, "--pool", "other")
    with server.client() as client:
        until(lambda: client.job(queued)["state"] == "done")
        assert [worker["pool"] for worker in client.stats()["workers"]] == ["other"]
        left = client.insert("ping")
        assert client.job(left)["state"] == "ready"


def test_a_pool_says_how_its_processes_run(start: Start, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "show.py").write_text(
        "import json, os\n"
        "def show(job):\n"
        "    niceness = os.getpriority(os.PRIO_PROCESS, 0)\n"
        "    told = [os.getcwd(), os.environ['SHOP'], niceness]\n"
        "    open('told', 'w').write(json.dumps(told))\n"
    )
    config = """
    [classes.shown]
    types = ["show", "sh*"]
    pool = "own"
    [pools.own]
    processes = 1
    directory = "deep"
    env = { SHOP = "flowers" }
    nice = 7
    [handlers.show]
    python = "show:show"
    [handlers.shell]
    command = ["sh", "-c", 'echo "$PWD $SHOP $(nice)" > shell']
    """
    server = start(config)
    with server.client() as client:
        for id in client.insert_many([{"type": "show"}, {"type": "shell"}]):
            until(lambda id=id: client.job(id)["state"] == "done")  # type: ignore[misc]
    deep = tmp_path / "deep"
    assert json.loads((deep / "told").read_text()) == [str(deep), "flowers", 7]
    assert (deep / "shell").read_text() == f"{deep} flowers 7\n"
