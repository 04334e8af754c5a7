"""Real stores for tests: one that speaks MongoDB's wire, one that speaks S3's, each in its own folder.

``mongod`` where it is installed, else FerretDB with its SQLite backend; versitygw for S3. Both are built by
``scripts/test-servers``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.conftest import unavailable

#: Where scripts/test-servers puts what it builds.
BUILT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kqs-test-servers"
KEY, SECRET, BUCKET = "kqs-test", "kqs-test-secret", "payloads"


def program(*names: str) -> str:
    """The first of these programs that is there; the test is skipped without one, and fails in CI."""
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=str(BUILT))
        if found:
            return found
    unavailable(f"needs {' or '.join(names)}; run scripts/test-servers")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StoreServer:
    """A store in a process of its own.

    Attributes:
        url: for ``[bulk]``.
        options: the same.
    """

    url: str
    options: dict[str, str]

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="kqs-store-")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and return when it listens."""
        self._process = subprocess.Popen(
            self.command(), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(3000):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        raise RuntimeError(f"{self.command()[0]} does not listen")

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once; what it stored stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()

    def discard(self) -> None:
        """End it, and remove all."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class MongoServer(StoreServer):
    """MongoDB's wire."""

    def __init__(self) -> None:
        self._program = program("mongod", "ferretdb")
        super().__init__()
        self.url = f"mongodb://127.0.0.1:{self.port}/payloads"
        self.options = {}

    def command(self) -> list[str]:
        if self._program.endswith("mongod"):
            return [
                self._program,
                "--dbpath",
                self.folder,
                "--port",
                str(self.port),
                "--bind_ip",
                "127.0.0.1",
            ]
        return [
            self._program,
            "--handler=sqlite",
            f"--sqlite-url=file:{self.folder}/",
            f"--listen-addr=127.0.0.1:{self.port}",
            f"--state-dir={self.folder}",
            "--debug-addr=-",
            "--telemetry=disable",
            "--log-level=error",
        ]


class S3Server(StoreServer):
    """S3's wire. Versitygw keeps a bucket as a folder, and an object as a file."""

    def __init__(self) -> None:
        self._program = program("versitygw")
        super().__init__()
        self.objects = Path(self.folder) / "data" / BUCKET
        self.objects.mkdir(parents=True)
        self.url = f"s3://{BUCKET}/"
        self.options = {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "region": "us-east-1",
            "access_key_id": KEY,
            "secret_access_key": SECRET,
        }

    def command(self) -> list[str]:
        return [
            self._program,
            *("--access", KEY, "--secret", SECRET, "--port", f"127.0.0.1:{self.port}", "--quiet"),
            *("posix", f"{self.folder}/data"),
        ]
