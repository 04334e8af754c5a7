"""Starting and stopping the servers that are measured, each on a port of the system's choice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psutil

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass
class Running:
    """A server that takes connections.

    Attributes:
        port: on 127.0.0.1.
        process: the server's; its children are its workers.
    """

    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Processor time used by the server so far, all its threads, without its children."""
        times = self.process.cpu_times()
        return times.user + times.system


@contextlib.contextmanager
def running(argv: list[str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process; ``how`` as :class:`subprocess.Popen` takes it."""
    process = subprocess.Popen(argv, **how)
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()  # ends the null server
        else:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def family(argv: list[str], env: dict[str, str]) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """A process and those it starts; gives what stops them all for a while. They are silent."""

    def members() -> list[psutil.Process]:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        held = members()
        for member in held:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
        try:
            yield
        finally:
            for member in held:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.resume()

    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running(argv, env=env, cwd=HERE, **silent) as process:
        try:
            yield hold
        finally:
            left = members()
            process.terminate()
            for member in psutil.wait_procs(left, 5)[1]:  # some leave without their children
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()


@contextlib.contextmanager
def kqs(directory: str) -> Iterator[Running]:
    """``kqs serve`` with its defaults and a new data directory under ``directory``."""
    with tempfile.TemporaryDirectory(prefix="bench-kqs-", dir=directory) as data, kqs_on(data) as running:
        yield running


@contextlib.contextmanager
def kqs_on(data: str, *more: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """``kqs serve`` with its defaults on a data directory, and more arguments."""
    argv = [sys.executable, "-m", "kqs.cli.main", "serve", "--log-json"]
    argv += ["--listen", "127.0.0.1:0", "--data", data, *more]
    with running(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env) as process:
        said = []
        for line in process.stderr:
            said.append(line.decode(errors="replace"))
            entry = json.loads(line) if line.startswith(b"{") else {}
            if entry.get("event") == "ready":
                port = int(entry["listen"].rpartition(":")[2])
                yield Running(port, psutil.Process(process.pid))
                return
        raise SystemExit("kqs serve did not start:\n" + "".join(said))


@contextlib.contextmanager
def beanstalkd(directory: str, journal: str) -> Iterator[Running]:
    """``beanstalkd`` with no journal, its ``default`` one, or one with ``fsync`` before every reply."""
    program = shutil.which("beanstalkd")
    if program is None:
        raise SystemExit("beanstalkd is not installed: apt-get install beanstalkd, or --servers kqs")
    with tempfile.TemporaryDirectory(prefix="bench-beanstalkd-", dir=directory) as data:
        options = {"none": [], "default": ["-b", data], "fsync": ["-b", data, "-f", "0"]}[journal]
        with running([program, "-l", "127.0.0.1", "-p", "0", *options]) as process:
            yield Running(_listening_port(process.pid), psutil.Process(process.pid))


@contextlib.contextmanager
def redis(directory: str) -> Iterator[int]:
    """``redis-server`` as it is without a config file: snapshots now and then; gives its port."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed: apt-get install redis-server")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    argv = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", directory]
    with running(argv, stdout=subprocess.DEVNULL) as process:
        _listening_port(process.pid)
        yield port


def _listening_port(pid: int) -> int:
    """The port a process listens on, once it does."""
    process = psutil.Process(pid)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return connection.laddr.port
        time.sleep(0.01)
    raise SystemExit(f"{process.name()} does not listen after 10 s")


class NullServer:
    """Compiles the null server once; runs it as often as asked.

    Attributes:
        language: ``C``, or ``Python`` where there is no C compiler.
    """

    def __init__(self, directory: str) -> None:
        compiler = shutil.which("cc")
        self.language = "C" if compiler else "Python"
        self._argv = [sys.executable, f"{HERE}/nullserver.py"]
        if compiler:
            self._argv = [f"{directory}/nullserver"]
            source = f"{HERE}/nullserver.c"
            subprocess.run([compiler, "-O2", "-o", self._argv[0], source], check=True)

    @contextlib.contextmanager
    def run(self, lines: int, size: int) -> Iterator[Running]:
        """Answers ``size`` bytes for every ``lines`` newlines."""
        argv = [*self._argv, str(lines), str(size)]
        with running(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            yield Running(int(process.stdout.readline()), psutil.Process(process.pid))
