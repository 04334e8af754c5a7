"""``kqs worker`` as users start it, and a way to the server that can be cut."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support import PATIENCE, Output, environment, until


class WorkerProcess:
    """A ``kqs worker far:app`` process.

    Args:
        folder: its working directory.
        urls: of servers.
        args: further arguments.
        app: what it runs.
        env: further environment.
    """

    def __init__(
        self,
        folder: Path,
        urls: str,
        *args: str,
        app: tuple[str, ...] = ("far:app",),
        env: dict[str, str] | None = None,
    ) -> None:
        argv = [sys.executable, "-m", "kqs.cli.main", "worker", *app, "--log-json", *args]
        self.process = subprocess.Popen(
            argv,
            cwd=folder,
            env=environment({"KQS_URL": urls, **(env or {})}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.stdout = Output(self.process.stdout)
        self.stderr = Output(self.process.stderr)

    def ready(self) -> WorkerProcess:
        """Return when it is connected."""
        self.stderr.wait_for('"event": "connected"')
        return self

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.stderr.lines if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def processes(self) -> list[psutil.Process]:
        """The processes that run its handlers."""
        return [p for p in psutil.Process(self.process.pid).children() if "kqs.runners.worker" in p.cmdline()]

    def wait(self) -> int:
        """Its exit status, once it ended."""
        status = self.process.wait(PATIENCE)
        self.stderr.join()
        return status

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        self.terminate()
        return self.wait()

    def discard(self) -> None:
        """Leave nothing of it behind, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)


class Notes:
    """What attempts of ``far`` left in their file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    @property
    def lines(self) -> list[list[str]]:
        try:
            text = Path(self.path).read_text()
        except FileNotFoundError:
            return []
        return [line.split() for line in text.splitlines()]

    def count(self, what: str) -> Counter[str]:
        """How often it happened, by job id."""
        return Counter(line[1] for line in self.lines if line[0] == what)

    def wait_for(self, what: str, id: str, times: int = 1) -> None:
        until(lambda: self.count(what)[id] >= times, f"{what} {id} x {times}: {self.lines}")


_Pairs = list[tuple[socket.socket, socket.socket]]


def _reset(pairs: _Pairs) -> None:
    for pair in pairs:
        for end in pair:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RD)  # wakes the thread that reads it
            end.close()


class Forgotten:
    """Connections that are open and silent."""

    def __init__(self, pairs: _Pairs, flows: list[threading.Event]) -> None:
        self._pairs = pairs
        self._flows = flows

    def close(self) -> None:
        _reset(self._pairs)
        for flow in self._flows:
            flow.set()


class Proxy:
    """A TCP relay to a port, on a port of its own, that can cut, stop and refuse.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"kqs://127.0.0.1:{self.port}"
        self._pairs: _Pairs = []
        self._flows = {"up": threading.Event(), "down": threading.Event()}
        self._lock = threading.Lock()
        self.refusing = False
        self._held = {way: threading.Event() for way in self._flows}
        self.release()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.append((client, server))
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                ends = (source, sink, self._flows[way], self._held[way])
                threading.Thread(target=self._relay, args=ends, daemon=True).start()

    @staticmethod
    def _relay(
        source: socket.socket, sink: socket.socket, flow: threading.Event, held: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if not flow.is_set():
                    held.set()
                flow.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def hold(self, *ways: str) -> None:
        """Pass nothing on, ``up`` to the server, ``down`` to the client, or both; nobody is told."""
        for way in ways or tuple(self._flows):
            self._held[way].clear()
            self._flows[way].clear()

    def wait_until_held(self, way: str) -> None:
        """Return when there is something that is not passed on."""
        assert self._held[way].wait(PATIENCE)

    def release(self) -> None:
        """Pass on again."""
        for flow in self._flows.values():
            flow.set()

    def forget(self) -> Forgotten:
        """Connections that are open stay so, and silent; those to come are passed on as others are."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        old, self._flows = self._flows, {way: threading.Event() for way in self._flows}
        return Forgotten(pairs, list(old.values()))

    def cut(self) -> None:
        """RST all connections, whatever is on its way."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        _reset(pairs)

    def close(self) -> None:
        self.refusing = True
        self._listener.close()
        self.release()
        self.cut()
