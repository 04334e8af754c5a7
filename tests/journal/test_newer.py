"""What a later version may have written into a golden journal is refused, and nothing is changed (G10)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from zlib import crc32

import msgspec
import pytest

from kqs.core import record
from kqs.errors import DamagedJournal, NewerFormat
from kqs.journal import manifest as manifests
from kqs.journal.disk import RealDisk, ThreadExecutor
from kqs.testing.clock import VirtualClock
from kqs.testing.embedded import open_embedded
from tests.support import ServerProcess

from .golden import Golden, contents, golden_journals

GOLDEN = golden_journals()


class Segment:
    """The open segment of a case, to write on in it as another version would."""

    def __init__(self, data: Path) -> None:
        manifest = manifests.decode((data / "manifest").read_bytes())
        self.path = data / "journal" / manifest.segments[-1].file
        self.bytes = bytearray(self.path.read_bytes())
        self.header, self.crc = record.decode_segment_header(bytes(self.bytes))
        self.end = record.SEGMENT_HEADER
        self.last = self.header.first_frame - 1
        self.sequence = self.header.first_sequence
        while True:
            try:
                frame, _previous = record.decode_frame(self.bytes, self.end, self.header.salt)
            except record.Damaged:
                break
            self.end, self.last, self.crc = frame.end, frame.frame, frame.crc
            self.sequence = frame.first_sequence + frame.entries

    def append(self, entry: bytes, flags: int = 0) -> None:
        """One more frame, with one entry."""
        frame, _crc = record.encode_frame(
            [entry],
            salt=self.header.salt,
            frame=self.last + 1,
            first_sequence=self.sequence,
            durable=self.last,
            count=1,
            previous=self.crc,
        )
        frame[40:44] = flags.to_bytes(4, "little")
        head = crc32(frame[:44], self.header.salt & 0xFFFFFFFF)
        frame[44:48] = crc32(frame[48:], head).to_bytes(4, "little")
        self.bytes[self.end : self.end + len(frame)] = frame
        self.path.write_bytes(self.bytes)


def _accept(sequence: int) -> bytes:
    return record.encode_accept(sequence, 0, 1, 1, 1000, 2, b"t", b"", b"null")


def _changed(entry: bytes, offset: int, value: int) -> bytes:
    """An entry with one byte set, and its CRC."""
    body = bytearray(entry[:-4])
    body[offset] = value
    return bytes(body) + crc32(body).to_bytes(4, "little")


def newer_manifest(data: Path) -> None:
    manifest = manifests.decode((data / "manifest").read_bytes())
    newer = msgspec.structs.replace(manifest, format=record.FORMAT + 1)
    (data / "manifest").write_bytes(manifests.encode(newer))


def newer_segment(data: Path) -> None:
    segment = Segment(data)
    segment.bytes[8] = record.FORMAT + 1
    segment.bytes[12:16] = crc32(segment.bytes[16:64], crc32(segment.bytes[:12])).to_bytes(4, "little")
    segment.path.write_bytes(segment.bytes)


def newer_frame(data: Path) -> None:
    segment = Segment(data)
    segment.append(_accept(segment.sequence), flags=1)


def _kind(kind: int) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        segment = Segment(data)
        segment.append(_changed(_accept(segment.sequence), 0, kind))

    change.__name__ = f"an entry of kind {kind}"
    return change


def _flag(name: str, entry: Callable[[int], bytes], flag: int) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        segment = Segment(data)
        segment.append(_changed(entry(segment.sequence), 1, flag))

    change.__name__ = f"{name} with flag {flag}"
    return change


def _lease(sequence: int) -> bytes:
    return record.encode_event(record.LEASE, sequence, 0, 1, 1, 1, 1, 1, 2, 0)


def _carry(sequence: int) -> bytes:
    return record.encode_carry(sequence, 0, 1, 1, 0, 2, 0, 1000, 1, 1, 0, b"t", b"", b"null")


def _keys(sequence: int) -> bytes:
    return record.encode_data(record.KEYS, sequence, b"[]")


CHANGES = [
    newer_manifest,
    newer_segment,
    newer_frame,
    *map(_kind, (0, max(record.KINDS) + 1, 128, 255)),
    *(_flag("an accept", _accept, flag) for flag in (4, 8, 128)),
    *(_flag("a lease", _lease, flag) for flag in (1, 2, 8, 128)),
    *(_flag("a carry", _carry, flag) for flag in (16, 128)),
    *(_flag("keys", _keys, flag) for flag in (1, 128)),
]


async def _refused(data: Path, error: type[Exception]) -> str:
    before = contents(data)
    executor = ThreadExecutor(asyncio.get_running_loop())
    try:
        with pytest.raises(error) as refusal:
            open_embedded(RealDisk(), executor, str(data), VirtualClock(), Random(1))
    finally:
        executor.close()
    assert contents(data) == before
    return str(refusal.value)


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
@pytest.mark.parametrize(
    "golden", [g for g in GOLDEN if g.name.endswith(("/carried", "/ends", "/torn"))], ids=lambda g: g.name
)
async def test_what_is_newer_is_refused(
    golden: Golden, change: Callable[[Path], None], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(golden.data, data)
    change(data)
    assert "newer KQS" in await _refused(data, NewerFormat) or change is newer_manifest


async def test_a_newer_frame_behind_a_damaged_one_is_damage(tmp_path: Path) -> None:
    """The torn tail ends at a frame of this segment, also at one that cannot be read."""
    golden = next(golden for golden in GOLDEN if golden.name.endswith("/singles"))
    data = tmp_path / "data"
    shutil.copytree(golden.data, data)
    first = Segment(data)
    first.append(_accept(first.sequence))
    second = Segment(data)
    second.append(_accept(second.sequence), flags=1)
    damaged = bytearray(second.path.read_bytes())
    damaged[first.end + record.FRAME_HEADER] ^= 1
    second.path.write_bytes(damaged)
    assert f"a valid one follows at byte {second.end}" in await _refused(data, DamagedJournal)


def test_the_command_refuses_and_leaves_the_data_alone(tmp_path: Path) -> None:
    golden = next(golden for golden in GOLDEN if golden.name.endswith("/bulk"))
    shutil.copytree(golden.data, tmp_path / "data")
    newer_manifest(tmp_path / "data")
    before = contents(tmp_path / "data")
    server = ServerProcess(tmp_path)
    server.spawn()
    try:
        assert server.wait() == 2
        assert f"the journal has format {record.FORMAT + 1}" in server.stderr.text
    finally:
        server.discard()
    after = contents(tmp_path / "data")
    assert {path: data for path, data in after.items() if path in before} == before
    assert all(path.partition("/")[0] in ("lock", "log") for path in after.keys() - before.keys())
