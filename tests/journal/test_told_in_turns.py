"""Waiters of a large frame are told over several turns of the loop, in order, and nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kqs.core import record
from kqs.journal.disk import RealDisk
from kqs.journal.log import TOLD_AT_ONCE, Journal


class _ByHand:
    """An executor that works when it is told to."""

    def __init__(self) -> None:
        self._queue: list[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = []

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self._queue.append((work, done))

    def run(self) -> None:
        """Do all that was submitted up to now."""
        queue, self._queue = self._queue, []
        for work, done in queue:
            done(work(), None)

    def close(self) -> None:
        self.run()


@pytest.fixture
def executor() -> _ByHand:
    return _ByHand()


@pytest.fixture
async def journal(tmp_path: Path, executor: _ByHand) -> Journal:
    (tmp_path / "journal").mkdir()
    return Journal.open(
        RealDisk(), executor, str(tmp_path), lambda *entry: None, now=1, segment_size=1024 * 1024
    )


def _append(journal: Journal, entries: int) -> asyncio.Future[Any]:
    first = journal.take_sequences(entries)
    parts = [record.encode_accept(first + k, 0, 1, 1, 1000, 2, b"t", b"", b"1") for k in range(entries)]
    return journal.append(parts, first)


async def test_a_large_frame_takes_several_turns(journal: Journal, executor: _ByHand) -> None:
    _append(journal, 1)  # on its way: what follows gathers into the next frame
    waiting = [_append(journal, TOLD_AT_ONCE // 2) for _ in range(5)]
    executor.run()
    executor.run()
    told = []
    while not told or told[-1] < len(waiting):
        told.append(sum(future.done() for future in waiting))
        await asyncio.sleep(0)
    assert told == [2, 4, 5]
    offsets = [future.result().offset for future in waiting]
    assert offsets == sorted(offsets)
    await journal.close()


async def test_a_frame_that_follows_waits_for_its_place(journal: Journal, executor: _ByHand) -> None:
    order: list[int] = []
    _append(journal, 1)
    for number in range(4):
        _append(journal, TOLD_AT_ONCE).add_done_callback(lambda _future, number=number: order.append(number))
    executor.run()
    executor.run()
    last = _append(journal, 1)
    executor.run()
    assert not last.done()
    await last
    assert order == [0, 1, 2, 3]
    await journal.close()


async def test_sync_and_close_come_after_everybody_was_told(journal: Journal, executor: _ByHand) -> None:
    waiting = [_append(journal, TOLD_AT_ONCE) for _ in range(3)]
    executor.run()
    executor.run()
    await asyncio.wait_for(journal.close(), 5)
    assert all(future.done() for future in waiting)
