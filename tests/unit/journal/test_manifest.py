"""The manifest: its text, and that after a crash the old or the new one is there, whole."""

from __future__ import annotations

from zlib import crc32

import pytest

from kqs.errors import DamagedJournal, NewerFormat
from kqs.journal import manifest as manifests
from kqs.journal.manifest import Manifest, SegmentInfo, write_all
from kqs.testing.disk import SimDisk
from kqs.testing.faults import CRASH, SHORT, FaultAt, PowerLost

OLD = Manifest(1, "0123456789abcdef", 3, (SegmentInfo(1, 1, 1),))
NEW = Manifest(1, "0123456789abcdef", 4, (SegmentInfo(1, 1, 1, 500, 7, 99), SegmentInfo(2, 8, 20)))


def signed(line: bytes) -> bytes:
    return b"%b\n%08x\n" % (line, crc32(line))


@pytest.mark.parametrize("manifest", [OLD, NEW])
def test_a_manifest_reads_back(manifest: Manifest) -> None:
    assert manifests.decode(manifests.encode(manifest)) == manifest


def test_a_person_can_read_it() -> None:
    line = manifests.encode(NEW).splitlines()[0]
    assert line.startswith(b'{"format":1,"journal":"0123456789abcdef","epoch":4,"segments":[{"number":1,')


def test_files_are_named_by_number() -> None:
    assert SegmentInfo(42, 1, 1).file == "0000000042.seg"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"{}",
        manifests.encode(OLD)[:-3],
        manifests.encode(OLD).replace(b'"epoch":3', b'"epoch":4'),
        signed(b""),
        signed(b"{}"),
        signed(b"[]"),
        signed(b'{"format":1}'),
        signed(b'{"format":"1"}'),
        signed(b'{"format":1,"journal":"0123456789abcdef","epoch":1,"segments":[]}'),
        signed(b'{"format":1,"journal":7,"epoch":1,"segments":[{"number":1}]}'),
        b"\xff\xfe" + manifests.encode(OLD),
    ],
)
def test_what_is_no_manifest_is_damage(text: bytes) -> None:
    with pytest.raises(DamagedJournal) as caught:
        manifests.decode(text)
    assert (caught.value.segment, caught.value.offset) == ("manifest", 0)


def test_a_later_format_is_not_read() -> None:
    with pytest.raises(NewerFormat, match="format 9"):
        manifests.decode(signed(b'{"format":9}'))


def test_there_may_be_none_yet() -> None:
    disk = SimDisk.holding({"/data/other": b""})
    assert manifests.load(disk, "/data") is None


def test_it_is_stored_and_loaded_and_files_are_closed() -> None:
    disk = SimDisk.holding({"/data/manifest": manifests.encode(OLD)}, trace=True)
    manifests.store(disk, "/data", NEW)
    assert manifests.load(disk, "/data") == NEW
    assert disk.open_files == 0
    assert list(disk.files()) == ["/data/manifest"]


def test_at_a_crash_anywhere_the_old_or_the_new_one_is_there() -> None:
    reached = {OLD.epoch: 0, NEW.epoch: 0}
    for nth in range(1, 20):
        for seed in range(30):
            disk = SimDisk.holding({"/data/manifest": manifests.encode(OLD)}, seed)
            fault = disk.inject = FaultAt(nth, CRASH)
            try:
                manifests.store(disk, "/data", NEW)
                stored = True
            except PowerLost:
                stored = False
            disk.inject = None
            disk.crash()
            found = manifests.load(disk, "/data")
            assert found in ((NEW,) if stored else (OLD, NEW))
            assert found is not None
            reached[found.epoch] += 1
            # And the next one can be stored whatever is left over.
            manifests.store(disk, "/data", OLD)
            assert manifests.load(disk, "/data") == OLD
    assert not fault.met  # the last rounds ran to the end
    assert min(reached.values()) > 30


def test_writing_goes_on_after_short_writes() -> None:
    disk = SimDisk.holding({"/f": b""}, 5)
    disk.inject = FaultAt(1, SHORT, lasting=True)
    write_all(disk.open("/f"), bytearray(range(200)), 10)
    assert disk.content("/f") == bytes(10) + bytes(range(200))


def test_writing_without_progress_ends() -> None:
    class Stuck:
        def pwrite(self, _data: object, _offset: int) -> int:
            return 0

    with pytest.raises(OSError, match="no progress"):
        write_all(Stuck(), b"x", 0)  # type: ignore[arg-type]
