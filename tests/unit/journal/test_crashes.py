"""Power cut at every operation of a journal's life: nothing acked is lost, everything starts again.

One life creates the journal, appends, rotates, gives up segments, closes and opens again: every place where
the manifest, a segment or the spare is half made comes up. What the disk keeps is drawn anew for each seed.
"""

from __future__ import annotations

from random import Random

import pytest

from kqs.testing.disk import SimDisk
from kqs.testing.faults import CHANGES, CRASH, SHORT, Fault, FaultAt, Operation

from .ledger import ENDS, Ledger, check_after, live
from .rig import DATA, FOLDER, Rig, fill, numbered, write

MANIFEST = f"{DATA}/manifest"

SEEDS = 4


def small(seed: int) -> Rig:
    return Rig(SimDisk(seed), segment_size=1024)


async def count_changes() -> int:
    """How many operations of a life change the disk."""
    rig = small(0)
    before = sum(rig.disk.counts[kind] for kind in CHANGES)
    await live(rig, Ledger())
    return sum(rig.disk.counts[kind] for kind in CHANGES) - before


async def test_a_life_without_faults() -> None:
    rig, ledger = small(1), Ledger()
    await live(rig, ledger)
    assert len(ledger.acked) == 22
    assert ledger.dropped > 5
    await check_after(rig, ledger)


async def test_power_cut_at_every_operation() -> None:
    total = await count_changes()
    assert total > 100
    cuts = 0
    for nth in range(1, total + 1):
        for seed in range(SEEDS):
            rig, ledger = small(seed * 1000 + nth), Ledger()
            fault = rig.disk.inject = FaultAt(nth, CRASH, kinds=CHANGES)
            with pytest.raises(ENDS):
                await live(rig, ledger)
            cuts += fault.met
            rig.disk.crash()
            await check_after(rig, ledger)
    assert cuts == total * SEEDS


@pytest.mark.parametrize("first", ["power", "kill"])
async def test_a_second_power_cut_while_the_first_end_is_being_recovered(first: str) -> None:
    """Also after a process that died alone: what it had not synced is in the cache, and is lost later."""
    total = await count_changes()
    random = Random(first)
    for nth in range(1, total + 1):
        for _ in range(SEEDS):
            rig, ledger = small(random.randrange(1 << 30)), Ledger()
            rig.disk.inject = FaultAt(nth, CRASH, kinds=CHANGES)
            with pytest.raises(ENDS):
                await live(rig, ledger)
            if first == "power":
                rig.disk.crash()
            else:
                rig.disk.revive()
            rig.disk.inject = FaultAt(random.randrange(1, 25), CRASH, kinds=CHANGES)
            try:
                journal = rig.open()
                ledger.check(rig, journal)
                await ledger.write(journal, 100, 2)
                await journal.close()
            except ENDS:
                pass
            rig.disk.crash()
            await check_after(rig, ledger)


async def test_a_torn_tail_is_never_cut_without_being_kept() -> None:
    for nth in range(1, 20):
        for seed in range(10 * SEEDS):
            rig = small(seed * 100 + nth)
            journal = rig.open()
            await fill(journal, numbered(3))
            await journal.close()
            whole = rig.disk.content(rig.path(1))
            last = rig.frames()[-1]
            torn = whole[: last.start + 80].ljust(len(whole), b"\0")
            rig.disk.put(rig.path(1), torn)
            rig.disk.inject = FaultAt(nth, CRASH, kinds=CHANGES)
            try:
                await rig.open().close()
            except ENDS:
                pass
            rig.disk.inject = None
            rig.disk.crash()
            kept = [data for path, data in rig.disk.files().items() if ".torn" in path]
            if rig.disk.content(rig.path(1)) != torn:
                assert kept == [whole[last.start : last.start + 80].rstrip(b"\0")]
            journal = rig.open()
            assert rig.data == numbered(2)
            assert journal.next_sequence > 1_000_000
            await journal.close()


async def test_a_renewed_segment_holds_nothing_behind_its_last_frame() -> None:
    """Not even when a start that broke off had used the same spare, for a tail that the power cut took."""
    lost = 0
    for nth in range(1, 25):
        for seed in range(10 * SEEDS):
            rig = small(seed * 100 + nth)
            journal = rig.open()
            await fill(journal, numbered(3))
            rig.disk.inject = FaultAt(1, CRASH, kinds=("datasync",))
            with pytest.raises(ENDS):
                await write(journal, b"in the cache only")
            rig.disk.revive()  # the process died alone
            rig.disk.inject = FaultAt(nth, CRASH, kinds=CHANGES)
            try:
                await rig.open().close()
            except ENDS:
                pass
            rig.disk.inject = None
            rig.disk.crash()
            journal = rig.open()
            assert rig.data in (numbered(3), [*numbered(3), b"in the cache only"])
            lost += len(rig.data) == 3
            assert not rig.disk.content(rig.path(1))[journal.size :].strip(b"\0")
            await journal.close()
    assert lost > 50


async def test_short_writes_at_every_operation_make_no_difference() -> None:
    for seed in range(10):
        rig, ledger = small(seed), Ledger()
        rig.disk.inject = FaultAt(1, SHORT, kinds=("pwrite",), lasting=True)
        await live(rig, ledger)
        rig.disk.crash()
        await check_after(rig, ledger)


async def test_a_disk_that_lies_about_syncs_is_found_out_here() -> None:
    """The proof that these tests can fail: without syncs, acked calls are lost."""

    def lie(operation: Operation) -> Fault | None:
        return Fault("lie") if operation.kind in ("datasync", "sync_dir") else None

    lost = 0
    for seed in range(30):
        rig, ledger = small(seed), Ledger()
        rig.disk.inject = lie
        await live(rig, ledger)
        rig.disk.crash()
        try:
            await check_after(rig, ledger)
        except Exception:
            lost += 1
    assert lost > 20


async def test_a_crash_before_the_first_sync_of_the_data_directory() -> None:
    """A journal whose folder's name was not durable yet begins anew; nobody had been told anything."""
    for seed in range(40):
        rig = small(seed)
        rig.disk.inject = FaultAt(1, CRASH, kinds=("sync_dir",), path=DATA)
        with pytest.raises(ENDS):
            rig.open()
        rig.disk.inject = None
        rig.disk.crash()
        journal = rig.open()
        assert rig.replayed == []
        await write(journal, b"x")
        await journal.close()
        assert any(path.startswith(FOLDER) for path in rig.disk.files())


async def test_a_crash_before_the_manifest_of_a_new_journal_is_durable() -> None:
    """The manifest's name may have reached the disk: then the folder's had, which it says segments are in."""
    seen = 0
    for seed in range(60):
        rig = small(seed)
        rig.disk.inject = FaultAt(1, CRASH, kinds=("rename",), path="manifest")
        with pytest.raises(ENDS):
            rig.open()
        rig.disk.inject = None
        rig.disk.crash()
        seen += MANIFEST in rig.disk.files()
        await rig.open().close()
    assert seen > 5
