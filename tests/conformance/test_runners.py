"""All runners pass one conformance suite."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kqs import Again, Fail, Job
from kqs.runners.command import MAX_OUTPUT, CommandRunner
from kqs.runners.http import HttpRunner
from kqs.runners.python import AsyncPythonRunner, PythonRunner
from kqs.testing.runners import AnyRunner, Behaviour, RunnerHarness, RunnerSuite, Running, new_job
from kqs.testing.runners.harness import WORDS
from tests.conformance.hanging import SCRIPT
from tests.support import until
from tests.target import PATIENCE, Exchange, Target


def behave(behaviour: Behaviour, job: Job) -> Any:
    """A Python handler."""
    match behaviour:
        case "again":
            raise Again("later", delay=7)
        case "fail":
            raise Fail("no such picture")
        case "crash":
            raise RuntimeError("out of paper")
        case "digest":
            return hashlib.sha256(job.data).hexdigest()
        case "echo":
            return job.data
        case "words":
            return WORDS
        case "flood":
            return "x" * 64 * 1024 * 1024
        case "unfit":
            return object()
    return None


class BlockingHarness(RunnerHarness):
    """For a runner that blocks: what hangs runs in a process that is killed, as a worker is."""

    kind: str

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._begun = folder / "begun"
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> Running:
        argv = [sys.executable, "-m", "tests.conformance.hanging", self.kind, str(self._begun)]
        self._process = subprocess.Popen(argv, cwd=Path(__file__).parents[2])
        until(self._begun.exists, "the handler to begin")
        return self

    def end(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait_gone(self) -> None:
        pid = int(self._begun.read_text())
        until(lambda: not (pid and _runs(pid)), "the command to be ended")

    def close(self) -> None:
        if self._process is not None:
            self.end()
        super().close()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class PythonHarness(BlockingHarness):
    kind = "python"
    delay = 7

    def runner(self, behaviour: Behaviour) -> AnyRunner:
        return PythonRunner(lambda job: behave(behaviour, job))


class AsyncPythonHarness(RunnerHarness):
    delay = 7

    def __init__(self) -> None:
        super().__init__()
        self._begun = threading.Event()
        self._left = threading.Event()

    def runner(self, behaviour: Behaviour) -> AsyncPythonRunner:
        async def handler(job: Job) -> Any:
            await asyncio.sleep(0)
            return behave(behaviour, job)

        return AsyncPythonRunner(self._hang if behaviour == "hang" else handler)

    async def _hang(self, _job: Job) -> None:
        self._begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self._left.set()

    def begin(self) -> Running:
        runner = self.runner("hang")
        running = self.loop.start(runner.arun(new_job(runner), b"null"))
        assert self._begun.wait(PATIENCE)
        return running

    def wait_gone(self) -> None:
        assert self._left.wait(PATIENCE), "the handler goes on"


class CommandHarness(BlockingHarness):
    kind = "command"
    max_result = MAX_OUTPUT

    def runner(self, behaviour: Behaviour) -> AnyRunner:
        scripts = {
            "quiet": ":",
            "again": "exit 75",
            "fail": "echo no such picture >&2; exit 100",
            "crash": "echo out of paper >&2; exit 1",
            "digest": 'printf %s "$(sha256sum | cut -c 1-64)"',
            "echo": "cat",
            "words": f"printf '{WORDS}'",
            "flood": "head -c 64M /dev/zero",
            "unfit": "printf '\\377\\376'",
            "hang": SCRIPT,
        }
        return CommandRunner(["sh", "-c", scripts[behaviour]])


class HttpHarness(RunnerHarness):
    delay = 7

    def __init__(self) -> None:
        super().__init__()
        self._target = Target()
        self._runners: dict[str, HttpRunner] = {}
        block = b"x" * 65536
        self._target.answers = {
            "/quiet": lambda exchange: exchange.reply(204),
            "/again": lambda exchange: exchange.reply(503, Retry_After="7"),
            "/fail": lambda exchange: exchange.reply(404, b"no such picture"),
            "/crash": lambda exchange: exchange.reply(500, b"out of paper"),
            "/digest": lambda exchange: exchange.reply(
                200, hashlib.sha256(exchange.body).hexdigest().encode()
            ),
            "/echo": lambda exchange: exchange.reply(200, exchange.body),
            "/words": lambda exchange: exchange.reply(200, WORDS.encode()),
            "/flood": lambda exchange: exchange.reply(200, block * 1024),
            "/unfit": lambda exchange: exchange.reply(200, b"\xff\xfe"),
            "/hang": Exchange.hang,
        }

    def runner(self, behaviour: Behaviour) -> HttpRunner:
        if behaviour not in self._runners:
            url = self._target.url(f"/{behaviour}")
            self._runners[behaviour] = HttpRunner(url, allow=["127.0.0.0/8"])
        return self._runners[behaviour]

    def begin(self) -> Running:
        runner = self.runner("hang")
        running = self.loop.start(runner.arun(new_job(runner), b"null"))
        assert self._target.begun.wait(PATIENCE)
        return running

    def wait_gone(self) -> None:
        assert self._target.left.wait(PATIENCE), "the request goes on"

    def close(self) -> None:
        for runner in self._runners.values():
            self.loop.run(runner.aclose())
        self._target.close()
        super().close()


class TestPython(RunnerSuite):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[RunnerHarness]:
        harness = PythonHarness(tmp_path)
        yield harness
        harness.close()


class TestAsyncPython(RunnerSuite):
    @pytest.fixture
    def harness(self) -> Iterator[RunnerHarness]:
        harness = AsyncPythonHarness()
        yield harness
        harness.close()


class TestCommand(RunnerSuite):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[RunnerHarness]:
        harness = CommandHarness(tmp_path)
        yield harness
        harness.close()


class TestHttp(RunnerSuite):
    @pytest.fixture
    def harness(self) -> Iterator[RunnerHarness]:
        harness = HttpHarness()
        yield harness
        harness.close()
