"""What tests of a running server share: real processes, real sockets, ways to wait for what they do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any, TypeVar

import psutil

from kqs.cli.main import main
from kqs.client import Client

T = TypeVar("T")

TESTS = Path(__file__).parent
#: How long a test waits for what must happen before it says that it did not, seconds. Never a speed limit.
PATIENCE = float(os.environ.get("KQS_PATIENCE", "60"))
#: Bytes of a segment of the tests' servers. Each reserves three: of the default's 64 MiB, that costs time.
SEGMENT_SIZE = 1 << 20


def small(config: str) -> str:
    """A config with small segments, unless it says how large they are."""
    if "segment_size" in config:
        return config
    before, _table, after = config.partition("[journal]\n")
    return f"{before}\n[journal]\nsegment_size = {SEGMENT_SIZE}\n{after}"


def until(check: Callable[[], T], what: str | Callable[[], str] = "", patience: float = PATIENCE) -> T:
    """Look until ``check`` gives something true, and return that.

    Only for what no event tells: the state of a job, the life of a process.
    """
    deadline = monotonic() + patience
    while not (found := check()):
        if monotonic() > deadline:
            awaited = what() if callable(what) else what or check
            raise AssertionError(f"waited {patience:g} s in vain for {awaited}: last seen {found!r}")
        sleep(0.01)
    return found


class Output:
    """Everything a process writes to one of its pipes, line by line, with waiting.

    Args:
        pipe: read to its end.
        tap: told of every line.
    """

    def __init__(self, pipe: IO[bytes], tap: Callable[[str], None] | None = None) -> None:
        self._pipe = pipe
        self._tap = tap
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for raw in self._pipe:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self.add(line)
            if self._tap is not None:
                self._tap(line)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._pipe.close()

    def add(self, line: str) -> None:
        """A line more."""
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        with self._changed:
            return self._ended

    @property
    def lines(self) -> list[str]:
        with self._changed:
            return list(self._lines)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(
        self, wanted: str | Callable[[str], bool], *, times: int = 1, patience: float = PATIENCE
    ) -> list[str]:
        """The first ``times`` lines that hold a text (or that a function likes), once they are there."""
        likes = wanted if callable(wanted) else lambda line: wanted in line
        found: list[str] = []
        looked = 0
        deadline = monotonic() + patience
        with self._changed:
            while True:
                while looked < len(self._lines) and len(found) < times:
                    if likes(self._lines[looked]):
                        found.append(self._lines[looked])
                    looked += 1
                if len(found) == times:
                    return found
                if self._ended or not self._changed.wait(max(0.0, deadline - monotonic())):
                    why = "the process ended" if self._ended else f"waited {patience:g} s"
                    raise AssertionError(f"{wanted!r} x {times} not seen: {why}; lines: {self._lines[-40:]}")

    def join(self) -> None:
        """Return when the pipe is at its end."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "somebody still holds the pipe open"


class ServerProcess:
    """``kqs serve`` as users start it, on a port of its own choice.

    Args:
        folder: where it lives: its working directory, its config and its data.
        config: text of its ``kqs.toml``, made :func:`small`; None for no config file: the defaults.
        args: further arguments.
        env: further environment.
        data: its data directory; ``data`` in its folder when not given.
        under: a command line that runs the server's, which stays the process's own: ``prlimit ..``.
    """

    def __init__(
        self,
        folder: Path,
        config: str | None = "",
        args: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        *,
        data: Path | None = None,
        under: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.data = data or folder / "data"
        self._argv = [*under, sys.executable, "-m", "kqs.cli.main", "serve", "--log-json"]
        self._argv += ["--listen", "127.0.0.1:0", "--data", str(self.data), *args]
        if config is not None:
            (folder / "kqs.toml").write_text(small(config))
            self._argv += ["--config", "kqs.toml"]
        self._env = environment(env)
        self._clients: list[Client | Wire] = []
        self.traceback_expected = False

    def start(self) -> ServerProcess:
        """Start it and return when it serves."""
        self.spawn()
        assert self.serves(), f"the server did not start: {self.stderr.text}"
        return self

    def serves(self) -> bool:
        """Whether a server that was spawned comes to serve; False: it ended before. Waits for either."""
        try:
            line = self.stderr.wait_for('"event": "ready"')[0]
        except AssertionError:
            if self.process.poll() is None and not self.stderr.ended:
                raise
            return False
        self.ready = json.loads(line)
        self.port = int(self.ready["listen"].rpartition(":")[2])
        return True

    def spawn(self) -> None:
        self.process = subprocess.Popen(
            self._argv,
            cwd=self.folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.stdout = Output(self.process.stdout)
        self.stderr = Output(self.process.stderr, self._printed)

    def _printed(self, line: str) -> None:
        """What jobs print is logged; the tests find it on stdout, as if it were not."""
        logged = json.loads(line) if line.startswith("{") else {}
        if logged.get("stream") == "stdout":
            self.stdout.add(logged["line"])

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"kqs://127.0.0.1:{self.port}"

    def client(self, token: str | None = None, timeout: float = PATIENCE) -> Client:
        """A client of this server, closed when the server is stopped."""
        client = Client(self.url, token=token, timeout=timeout)
        self._clients.append(client)
        return client

    def connect(self, receive_buffer: int = 0) -> Wire:
        """A bare connection; the kernel holds few replies for it when it gives a small buffer."""
        wire = Wire(("127.0.0.1", self.port), receive_buffer)
        self._clients.append(wire)
        return wire

    def logged(self, event: str = "") -> list[dict[str, Any]]:
        """The lines it logged, those of one event or all."""
        lines = [json.loads(line) for line in self.stderr.lines if line.startswith("{")]
        return [line for line in lines if not event or line["event"] == event]

    def wait_for_workers(self) -> ServerProcess:
        """Return when all its workers wait for work."""
        with self.client() as client:

            def waiting() -> bool:
                stats = client.stats()
                return int(stats["reserves_waiting"]) == len(stats["workers"])

            until(waiting, "the workers to wait for work")
        return self

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return [p for p in psutil.Process(self.pid).children() if "kqs.runners.worker" in p.cmdline()]

    def wait(self, patience: float = PATIENCE) -> int:
        """Its exit status, once it ended."""
        status = self.process.wait(patience)
        self.stderr.join()
        return status

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL it, and return when it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        """End it, if it has not ended yet, and see that it ended well."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"the server did not stop: {self.stderr.lines[-20:]}") from None
            assert self.process.returncode == 0, self.stderr.text
        if not self.traceback_expected:
            assert "Traceback" not in self.stderr.text, self.stderr.text
            assert '"level": "error"' not in self.stderr.text, self.stderr.text

    def discard(self) -> None:
        """Leave nothing of it behind, whatever happened."""
        for client in self._clients:
            client.close()
        if hasattr(self, "process") and self.process.poll() is None:
            self.kill()


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a process of the tests: nothing of KQS's own, the tests' handlers importable."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("KQS_")}
    path = [str(TESTS / "handlers"), env.get("PYTHONPATH", "")]
    return {**env, "PYTHONPATH": os.pathsep.join(part for part in path if part), **(more or {})}


@contextmanager
def server(folder: Path, config: str | None = "", *args: str, **env: str) -> Iterator[ServerProcess]:
    """A server for the length of a block."""
    made = ServerProcess(folder, config, args, env)
    try:
        yield made.start()
        made.stop()
    finally:
        made.discard()


def kqs(*args: str, input: str | bytes | None = None, cwd: Path | None = None, **env: str) -> Finished:
    """Run the ``kqs`` command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "kqs.cli.main", *args],
        input=input.encode() if isinstance(input, str) else input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        cwd=cwd,
        env=environment({"COLUMNS": "200", **env}),
        timeout=PATIENCE,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


def kqs_here(*args: str, cwd: Path) -> Finished:
    """:func:`kqs` without a process of its own, for many quick cases."""
    out, err = io.StringIO(), io.StringIO()
    status: Any = 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(args)
        except SystemExit as end:
            status = end.code
    return Finished(int(status or 0), out.getvalue(), err.getvalue())


class Finished:
    """What a command came to."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"status {self.status}\n--- stdout\n{self.out}--- stderr\n{self.err}"


def request(name: str, argument: Any = ..., id: str = "1") -> bytes:
    """A call's line as any client would write it."""
    envelope = {"v": 1, "id": id, "n": name, **({} if argument is ... else {"m": argument})}
    return json.dumps(envelope).encode() + b"\n"


class Wire:
    """A connection spoken byte by byte."""

    def __init__(self, address: tuple[str, int], receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines: deque[bytes] = deque()
        self._rest = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def line(self) -> dict[str, Any] | None:
        """The next reply, or None when the server closed."""
        while not self._lines:
            data = self._receive()
            if not data:
                assert not self._rest, f"half a reply: {self._rest[:1000]!r}"
                return None
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines.extend(lines)
        reply: dict[str, Any] = json.loads(self._lines.popleft())
        return reply

    def rest(self) -> list[dict[str, Any]]:
        """All replies until the server closes."""
        replies = []
        while (reply := self.line()) is not None:
            replies.append(reply)
        return replies

    def ask(self, line: bytes) -> dict[str, Any]:
        """Send one line and return its reply."""
        self.send(line + b"\n")
        reply = self.line()
        assert reply is not None, "the server closed without an answer"
        return reply

    def call(self, name: str, argument: Any = ..., id: str = "1") -> dict[str, Any]:
        """Make a call as any client would; returns the whole reply."""
        return self.ask(request(name, argument, id).rstrip(b"\n"))

    def closed(self) -> bool:
        """Whether the server closes the connection without another byte; waits for it."""
        return not self._lines and not self._rest and not self._receive()

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(1 << 20)
        except ConnectionResetError:
            return b""
