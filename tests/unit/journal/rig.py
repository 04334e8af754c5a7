"""A journal on a simulated disk, and what the journal's tests look at it with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from kqs.core import record
from kqs.errors import JournalFailed
from kqs.journal import manifest as manifests
from kqs.journal.log import Journal, Location
from kqs.journal.manifest import Manifest
from kqs.journal.scan import ApplyEntry, each_entry
from kqs.testing.disk import SimDisk
from kqs.testing.executor import InlineExecutor, SteppedExecutor
from kqs.testing.faults import Operation

DATA = "/data"
FOLDER = "/data/journal"
NOW = 1_767_225_600_000_000


class Replayed(NamedTuple):
    """One entry as recovery told it."""

    kind: int
    entry: bytes
    segment: int
    offset: int

    @property
    def data(self) -> bytes:
        """The payload of an accept."""
        accept = record.decode_accept(self.entry)
        return self.entry[accept.data_start : accept.data_end]

    @property
    def sequence(self) -> int:
        return record.decode_accept(self.entry).sequence


class FrameAt(NamedTuple):
    """One frame as it lies on the disk."""

    segment: int
    start: int
    end: int
    frame: int
    first_sequence: int
    entries: int


def accept(sequence: int, data: bytes) -> bytes:
    """An accept entry."""
    return record.encode_accept(sequence, record.FLAG_BINARY, NOW, NOW, 30_000, 2, b"t", b"", data)


class Rig:
    """A data directory on a simulated disk, with the journal opened on it again and again.

    Args:
        disk: the disk; its ``/data`` is made if it is missing.
        segment_size: of the journals that are opened.
        stepped: whether work is done only when the test says so.
    """

    def __init__(
        self, disk: SimDisk | None = None, *, segment_size: int = 2048, stepped: bool = False
    ) -> None:
        self.disk = disk or SimDisk(trace=True)
        self.disk.makedirs(DATA)
        self.disk.sync_dir("/")
        self.segment_size = segment_size
        self.random = Random(7)
        self.stepped = SteppedExecutor()
        self._step = stepped
        self.replayed: list[Replayed] = []
        self.failures: list[JournalFailed] = []

    def open(self, apply: ApplyEntry | None = None, **settings: Any) -> Journal:
        """Recover and open; entries go to :attr:`replayed` unless ``apply`` takes them."""
        self.replayed = []
        self.stepped = SteppedExecutor()
        executor = self.stepped if self._step else InlineExecutor(asyncio.get_running_loop())

        def keep(kind: int, entry: bytes, segment: int, offset: int) -> None:
            self.replayed.append(Replayed(kind, entry, segment, offset))

        return Journal.open(
            self.disk.attach(),
            executor,
            DATA,
            each_entry(apply or keep),
            now=NOW,
            segment_size=self.segment_size,
            random=self.random.randbytes,
            on_failure=self.failures.append,
            **settings,
        )

    def open_at_rest(self) -> Journal:
        """Open, and do what opening leaves to the executor."""
        journal = self.open()
        self.stepped.run()
        return journal

    @property
    def data(self) -> list[bytes]:
        """Payloads that were replayed."""
        return [entry.data for entry in self.replayed]

    # -- looking at the disk --------------------------------------------------------------------

    def manifest(self) -> Manifest:
        return manifests.decode(self.disk.content(f"{DATA}/manifest"))

    def path(self, number: int) -> str:
        """Path of a segment."""
        return f"{FOLDER}/{number:010d}.seg"

    def names(self) -> list[str]:
        """Files of the journal's folder."""
        paths = [path for path in self.disk.files() if path.startswith(FOLDER)]
        return sorted(path.removeprefix(FOLDER + "/") for path in paths)

    def frames(self) -> list[FrameAt]:
        """All valid frames of the listed segments."""
        return frames_of(self.disk.files())

    def operations(self, *kinds: str, path: str = "", since: int = 0) -> list[Operation]:
        """Operations of these kinds on paths that contain ``path``, after the first ``since``."""
        assert self.disk.trace is not None
        return [
            operation
            for operation in self.disk.trace
            if operation.number > since and operation.kind in kinds and path in operation.path
        ]


def frames_of(files: dict[str, bytes]) -> list[FrameAt]:
    """All valid frames of the segments a manifest lists."""
    found = []
    for info in manifests.decode(files[f"{DATA}/manifest"]).segments:
        data = files[f"{FOLDER}/{info.file}"]
        header, _crc = record.decode_segment_header(data)
        at = record.SEGMENT_HEADER
        while True:
            try:
                frame, _previous = record.decode_frame(data, at, header.salt)
            except record.Damaged:
                break
            place = (info.number, at, frame.end)
            found.append(FrameAt(*place, frame.frame, frame.first_sequence, frame.entries))
            at = frame.end
    return found


def append(journal: Journal, *payloads: bytes) -> asyncio.Future[Location]:
    """Append accepts of these payloads as one call."""
    first = journal.take_sequences(len(payloads))
    return journal.append([accept(first + n, data) for n, data in enumerate(payloads)], first)


async def write(journal: Journal, *payloads: bytes) -> Location:
    """Append and wait until it is durable."""
    async with asyncio.timeout(10):  # a journal that never answers is a failure, not a hang
        return await append(journal, *payloads)


async def fill(journal: Journal, payloads: Sequence[bytes]) -> None:
    """Append payloads one after the other, each durable before the next."""
    for data in payloads:
        await write(journal, data)


def numbered(count: int, size: int = 100, first: int = 0) -> list[bytes]:
    """Distinct payloads."""
    return [b"%06d" % number + bytes(size - 6) for number in range(first, first + count)]
