"""Starting and stopping the servers that are measured, each on a port of the system's choice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

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
def _running(argv: list[str], **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, **pipes)
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
def kqs(directory: str) -> Iterator[Running]:
    """``kqs serve`` with its defaults and a new data directory under ``directory``."""
    with tempfile.TemporaryDirectory(prefix="bench-kqs-", dir=directory) as data, kqs_on(data) as running:
        yield running


@contextlib.contextmanager
def kqs_on(data: str) -> Iterator[Running]:
    """``kqs serve`` with its defaults on a data directory."""
    argv = [sys.executable, "-m", "kqs.cli.main", "serve", "--log-json"]
    argv += ["--listen", "127.0.0.1:0", "--data", data]
    with _running(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
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
        with _running([program, "-l", "127.0.0.1", "-p", "0", *options]) as process:
            yield Running(_listening_port(process.pid), psutil.Process(process.pid))


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
        with _running(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            yield Running(int(process.stdout.readline()), psutil.Process(process.pid))
