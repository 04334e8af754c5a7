"""What is measured: the servers, their calls, and the cases."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

import loadgen
import servers
from kqs import Client

BATCH = 1000
#: Jobs unanswered over all connections, in single calls and in batches.
WINDOW = 4000
WINDOW_BATCHES = 16 * BATCH


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        name: as shown.
        connections: how many share the jobs.
        batch: jobs in a call.
        jobs: inserted in one measurement; fewer by servers that are slow.
    """

    name: str
    connections: int
    batch: int
    jobs: int


SINGLES = Case("singles, 1 connection", 1, 1, 160_000)
CASES = {
    "singles": SINGLES,
    "eight": Case("singles, 8 connections", 8, 1, 160_000),
    "batches": Case("batches of 1,000, 1 connection", 1, BATCH, 320_000),
}


def payload(number: int) -> bytes:
    """The job's data: 100 bytes of JSON."""
    text = b'{"user":"u%08d","file":"/images/%08d.jpg","size":[640,480],"note":"' % (number, number)
    return text.ljust(98, b"-") + b'"}'


def kqs_calls(first: int, jobs: int, batch: int) -> bytes:
    """``insert`` calls of one job, or of ``batch`` jobs, each."""
    head = b'{"v":1,"id":"%08d","n":"insert","m":'
    job = b'{"type":"bench","data":%b}'
    numbers = range(first, first + jobs)
    if batch == 1:
        return b"".join((head + job + b"}\n") % (number, payload(number)) for number in numbers)
    return b"".join(
        head % number + b"[%b]}\n" % b",".join(job % payload(n) for n in range(number, number + batch))
        for number in numbers[::batch]
    )


def beanstalkd_calls(first: int, jobs: int, batch: int) -> bytes:
    """``put`` commands; it has no batches."""
    return b"".join(b"put 1024 0 30 100\r\n%b\r\n" % payload(number) for number in range(first, first + jobs))


@dataclass
class Subject:
    """A server under test.

    Attributes:
        name: as shown.
        start: context manager that runs it with a directory for its data.
        calls: makes the bytes of ``jobs`` jobs.
        ok: stands once in every reply that says done.
        ready: asks the server how many jobs it holds.
        batches: whether a call takes many jobs.
        lines: newlines in a call.
        share: of the case's jobs that is inserted.
    """

    name: str
    start: Callable[[str], contextlib.AbstractContextManager[servers.Running]]
    calls: Callable[[int, int, int], bytes]
    ok: bytes
    ready: Callable[[int], int]
    batches: bool = False
    lines: int = 1
    share: float = 1.0

    def loads(self, case: Case, window: int = 0) -> list[loadgen.Load]:
        """What each connection of a case sends.

        Args:
            case: which.
            window: most jobs unanswered over all of them; 0 for :data:`WINDOW` or :data:`WINDOW_BATCHES`.
        """
        batch = case.batch if self.batches else 1
        each = int(case.jobs * self.share) // case.connections // batch * batch
        window = window or (WINDOW if batch == 1 else WINDOW_BATCHES)
        calls = max(1, window // batch // case.connections)
        return [
            loadgen.Load(self.calls(10**7 + each * number, each, batch), each // batch, calls)
            for number in range(case.connections)
        ]

    def reply_size(self, case: Case) -> int:
        """Bytes of a typical reply, for the null server."""
        if not self.batches:
            return len(b"INSERTED 100000\r\n")
        one = len(b'{"v":1,"id":"10000000","e":null,"s":"end","m":{"id":"12345678-100000"}}\n')
        return one + 2 if case.batch == 1 else one + case.batch * len(b'"12345678-100000",')


def kqs_ready(port: int) -> int:
    with Client(f"kqs://127.0.0.1:{port}") as client:
        return client.call("stats", {"type": "bench"})["jobs"]["ready"]


def beanstalkd_ready(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"stats\r\n")
        text = connection.recv(65536)
    return int(text.partition(b"current-jobs-ready:")[2].split()[0])


def _beanstalkd(name: str, journal: str, share: float = 1.0) -> Subject:
    def start(directory: str) -> contextlib.AbstractContextManager[servers.Running]:
        return servers.beanstalkd(directory, journal)

    return Subject(name, start, beanstalkd_calls, b"INSERTED", beanstalkd_ready, lines=2, share=share)


SUBJECTS = {
    "kqs": Subject("KQS", servers.kqs, kqs_calls, b'"e":null', kqs_ready, batches=True),
    "none": _beanstalkd("beanstalkd, no journal", "none"),
    "default": _beanstalkd("beanstalkd -b DIR", "default"),
    "fsync": _beanstalkd("beanstalkd -b DIR -f 0", "fsync", share=0.05),
}
