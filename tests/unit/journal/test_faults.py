"""An error at every operation of a journal's life: it stops, says so, and nothing acked is lost (G1, G5)."""

from __future__ import annotations

import errno
from random import Random

import pytest

from kqs.testing.disk import SimDisk
from kqs.testing.faults import CHANGES, KINDS, Fault, FaultAt

from .ledger import ENDS, Ledger, check_after, live
from .rig import Rig

SYNCS = ("datasync", "sync_dir")


def small(seed: int) -> Rig:
    return Rig(SimDisk(seed, trace=True), segment_size=1024)


async def count_operations() -> int:
    rig = small(0)
    before = rig.disk.operations
    await live(rig, Ledger())
    return rig.disk.operations - before


async def broken_life(rig: Rig, ledger: Ledger, nth: int, number: int) -> int:
    """Live until the nth operation fails; returns that operation's number, or 0 if life went on."""
    fault = rig.disk.inject = FaultAt(nth, Fault("error", number), kinds=KINDS)
    before = rig.disk.operations
    went_on = False
    try:
        await live(rig, ledger)
        went_on = True
    except ENDS:
        pass
    rig.disk.inject = None
    assert fault.met == 1
    return 0 if went_on else before + nth


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("then", ["restart", "evict", "crash"])
async def test_an_error_at_every_operation(number: int, then: str) -> None:
    """Afterwards the process starts again, with the cache, without it, or after a power cut."""
    total = await count_operations()
    stopped = 0
    for nth in range(1, total + 1):
        rig, ledger = small(nth), Ledger()
        failed = await broken_life(rig, ledger, nth, number)
        if failed:
            stopped += 1
            self_check_stopped(rig, failed)
        elif number == errno.EIO:
            pytest.fail(f"operation {nth} failed and nobody noticed: {(rig.disk.trace or [])[-1]}")
        if then == "crash":
            rig.disk.crash()
        else:
            rig.disk.kill()
            if then == "evict":
                rig.disk.evict()
        await check_after(rig, ledger)
        rig.disk.crash()
        await check_after(rig, ledger)
    assert stopped > total * 0.8


def self_check_stopped(rig: Rig, failed: int) -> None:
    """After an operation that failed nothing is changed any more, but that a spare is tidied away.

    Least of all is a sync tried again: it would say yes to data that is lost.
    """
    assert rig.disk.trace is not None
    operation = next(operation for operation in rig.disk.trace if operation.number == failed)
    later = rig.operations(*CHANGES, since=failed)
    assert [o for o in later if o.kind in SYNCS] == []
    tidied = [("unlink", operation.path)] if operation.path.endswith("/spare") else []
    assert [(o.kind, o.path) for o in later] in ([], tidied)


async def test_errors_again_and_again_lose_nothing() -> None:
    """Many lives on a bad disk, ended by errors and power cuts in turn."""
    for seed in range(40):
        random = Random(seed)
        rig, ledger = small(seed), Ledger()
        for _ in range(6):
            rig.disk.inject = FaultAt(
                random.randrange(1, 160),
                Fault(random.choice(("error", "crash")), random.choice((errno.EIO, errno.ENOSPC))),
            )
            try:
                await live(rig, ledger)
            except ENDS:
                pass
            rig.disk.inject = None
            rig.disk.revive()
            if random.random() < 0.5:
                rig.disk.evict()
            if random.random() < 0.5:
                rig.disk.crash()
        await check_after(rig, ledger)
