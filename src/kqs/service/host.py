"""What a server stands on: disk, thread, clock, chance and sockets, in one place.

Nothing else of ``service`` but the local workers reaches for the machine, so a simulated one
(``kqs.testing.simulation``) can run the same server.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
from collections.abc import Callable
from random import Random, SystemRandom
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import structlog

from ..errors import ConfigError, DataDirError
from ..journal.disk import RealDisk, ThreadExecutor
from ..journal.recovery import lock_directory
from ..ports import BulkStore, Clock, Disk, Executor
from ..settings.config import split_address
from ..stores.files import FileStore
from .clock import SystemClock, wall

if TYPE_CHECKING:
    import ssl

    from .server import Server

    #: Gives the context of the next TLS handshake.
    Certificates = Callable[[], ssl.SSLContext]

#: File descriptors kept for files, workers and listeners.
OWN_FILES = 192


class Host(Protocol):
    """The machine below one server.

    Attributes:
        disk: where the journal is.
        clock: time of day.
        wall: the same, microseconds since 1970, of a clock that people set while the server runs.
        monotonic: seconds that never run backwards; only differences mean something.
        random: of ids, receipts and jitter.
    """

    disk: Disk
    clock: Clock
    wall: Callable[[], int]
    monotonic: Callable[[], float]
    random: Random

    def claim(self, data: str) -> None:
        """Make the data directory ours, and say so when it is on something that does not keep data.

        Raises:
            DataDirInUse: another server has it.
            DataDirError, OSError: it cannot be used.
        """
        ...

    def executor(self) -> Executor:
        """The journal's thread; reports on the running loop."""
        ...

    def store(self, data: str) -> BulkStore:
        """Where oversize payloads go."""
        ...

    def connections(self, wanted: int) -> int:
        """How many of these connections the machine has room for."""
        ...

    async def listen(self, server: Server, address: str, data: str, tls: Certificates | None) -> None:
        """Open the server's ports; the TCP one with TLS when that is given.

        Raises:
            ConfigError: the address cannot be used.
            DataDirError: the Unix socket cannot be made.
        """
        ...

    def started(self) -> None:
        """The server is complete; what it consists of now lives as long as the process."""
        ...

    def process(self) -> dict[str, Any]:
        """``pid rss_bytes uptime``, as ``stats`` shows them."""
        ...


class RealHost:
    """The machine this process runs on. See :class:`Host`."""

    def __init__(self) -> None:
        self.disk: Disk = RealDisk()
        self.clock: Clock = SystemClock()
        self.wall: Callable[[], int] = wall
        self.monotonic: Callable[[], float] = monotonic
        self.random: Random = SystemRandom()
        self._process = psutil.Process()
        self._since = monotonic()
        self._lock: int | None = None

    def claim(self, data: str) -> None:
        self._lock = lock_directory(data)
        os.makedirs(f"{data}/log", mode=0o700, exist_ok=True)
        log = structlog.get_logger()
        kind = file_system(data)
        if kind in ("tmpfs", "ramfs"):
            log.warning("the data directory is in memory: jobs do not survive a reboot", file_system=kind)
        elif kind in ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"):
            log.warning(
                "the data directory is on a network file system: its fsync and locks may not hold",
                file_system=kind,
            )

    def executor(self) -> Executor:
        return ThreadExecutor(asyncio.get_running_loop())

    def store(self, data: str) -> BulkStore:
        return FileStore(f"{data}/bulk")

    def connections(self, wanted: int) -> int:
        # The soft limit on open files is raised as far as the hard one allows: 1024 is common, and is for
        # programs that call select().
        needed = wanted + OWN_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < needed:
            try:
                raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
                resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
                soft = raised
            except (OSError, ValueError):  # macOS has another, smaller limit
                pass
        return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - OWN_FILES))

    async def listen(self, server: Server, address: str, data: str, tls: Certificates | None) -> None:
        host, port = split_address(address, "server.listen")
        unix = f"{data}/kqs.sock"
        try:
            os.unlink(unix)  # ours to remove: we hold the directory's lock
        except FileNotFoundError:
            pass
        except OSError as error:
            raise DataDirError(f"data directory {data} cannot be used: {unix}: {error.strerror}") from None
        before = os.umask(0o177)
        try:
            await server.listen(host, port, unix, tls=tls)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address}: {os.strerror(error.errno or 0)}; "
                f"choose another address with --listen"
            ) from None
        finally:
            os.umask(before)

    def started(self) -> None:
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        sys.setswitchinterval(0.001)

    def process(self) -> dict[str, Any]:
        try:
            rss = self._process.memory_info().rss
        except OSError:  # no descriptor left to look: the other figures are wanted all the more
            rss = None
        return {"pid": self._process.pid, "rss_bytes": rss, "uptime": monotonic() - self._since}


def file_system(path: str) -> str:
    """The type of the file system a path is on, or ``unknown``."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
            lines = [line.split() for line in mounts]
    except OSError:
        return "unknown"
    best, kind = "", "unknown"
    for fields in lines:
        mount = fields[4]
        if (path == mount or path.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, fields[fields.index("-") + 1]
    return kind
