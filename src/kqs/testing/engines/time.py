"""Time: a delay is never early, and the engine says when it wants to be woken."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from kqs.ports import Selection

from .harness import Cases, Queue, new_job

YEAR = 365 * 86400.0


class TimeCases(Cases):
    @pytest.mark.parametrize("delay", [0.001, 1, 59.5, 86400, 50 * YEAR])
    async def test_a_delay_is_never_early(self, queue: Queue, delay: float) -> None:
        id = await queue.put_one(delay=delay)
        await queue.advance(delay * 0.999)
        assert await queue.take() == []
        assert await queue.state(id) == "delayed"
        await queue.advance(delay * 0.001 + queue.harness.slack)
        assert await queue.take_ids() == [id]

    async def test_a_delay_ends_without_anybody_asking(self, queue: Queue) -> None:
        told: list[str] = []

        def notify(types: Sequence[str]) -> None:
            told.extend(types)

        queue.engine.on_ready(notify)
        await queue.put(new_job("a", delay=5), new_job("b", delay=5), new_job("c", delay=50))
        await queue.advance(4.9)
        assert told == []
        await queue.advance(0.1 + queue.harness.slack)
        assert sorted(told) == ["a", "b"]

    async def test_delays_end_one_after_the_other(self, queue: Queue) -> None:
        delays = [40, 10, 30, 20]
        ids = await queue.put(*(new_job(delay=delay) for delay in delays))
        for delay in sorted(delays):
            await queue.advance(10)
            await queue.advance(queue.harness.slack)
            assert await queue.take_ids() == [ids[delays.index(delay)]]

    async def test_jobs_that_became_due_stand_in_line_as_they_came_in(self, queue: Queue) -> None:
        ids = await queue.put(
            new_job(delay=20),
            new_job(delay=10, prio="low"),
            new_job(delay=5),
            new_job(),
            new_job(prio="high"),
        )
        await queue.advance(20 + queue.harness.slack)
        assert await queue.take_ids() == [ids[4], ids[0], ids[2], ids[3], ids[1]]

    async def test_a_delay_that_was_cut_short_does_not_cut_short_the_next(self, queue: Queue) -> None:
        id = await queue.put_one(delay=10)
        await queue.engine.control("kick", Selection([id]))
        assert await queue.settle(await queue.take_one(), "again", delay=100) is None
        await queue.advance(10 + queue.harness.slack)
        assert await queue.state(id) == "delayed"
        await queue.advance(89.9 - queue.harness.slack)
        assert await queue.take() == []
        await queue.advance(0.1 + queue.harness.slack)
        assert await queue.take_ids() == [id]

    async def test_a_lease_that_is_over_does_not_end_the_next(self, queue: Queue) -> None:
        await queue.put_one(ttr=10)
        first = await queue.take_one()
        await queue.advance(6)
        assert await queue.settle(first, "release") is None
        second = await queue.take_one()
        assert await queue.advance(9.9) == []
        told = await queue.advance(0.1 + queue.harness.slack)
        assert [e.receipt for e in told] == [second.receipt]

    async def test_the_ttr_runs_from_the_lease(self, queue: Queue) -> None:
        await queue.put_one(ttr=10)
        assert await queue.advance(1000) == []
        lease = await queue.take_one()
        assert await queue.advance(9.9) == []
        assert [e.receipt for e in await queue.advance(0.1 + queue.harness.slack)] == [lease.receipt]

    @pytest.mark.parametrize("ttr", [0.001, 0.5, 3600, 30 * 86400])
    async def test_a_lease_never_ends_early(self, queue: Queue, ttr: float) -> None:
        await queue.put_one(ttr=ttr)
        lease = await queue.take_one()
        assert await queue.advance(ttr * 0.99) == []
        told = await queue.advance(ttr * 0.01 + queue.harness.slack)
        assert [e.receipt for e in told] == [lease.receipt]

    async def test_an_idle_engine_wants_no_wake_up(self, queue: Queue) -> None:
        assert queue.engine.next_wake() is None
        id = await queue.put_one()
        assert queue.engine.next_wake() is None
        assert await queue.settle(await queue.take_one()) is None
        assert queue.engine.next_wake() is None
        assert await queue.state(id) == "done"

    async def test_an_engine_that_is_woken_when_it_asks_is_never_late(self, queue: Queue) -> None:
        """Whoever sleeps until ``next_wake`` and ticks then sees every delay and every lease end in time."""
        start = queue.harness.now()
        delays = {await queue.put_one(delay=delay): delay for delay in (3, 11, 7.5)}
        await queue.put_one("lease", ttr=5)
        lease = await queue.take_one(["lease"])
        ready_at: dict[str, float] = {}
        expired_at: float | None = None
        for _ in range(20):
            wake = queue.engine.next_wake()
            if wake is None:
                break
            told = await queue.advance(max(0.0, (wake - queue.harness.now()) / 1e6))
            passed = (queue.harness.now() - start) / 1e6
            for id in await queue.take_ids():
                ready_at[id] = passed
                await queue.engine.control("delete", Selection([id]))
            if told:
                assert [e.receipt for e in told] == [lease.receipt]
                expired_at = passed
        assert queue.engine.next_wake() is None
        assert ready_at.keys() == delays.keys()
        for id, delay in delays.items():
            assert delay <= ready_at[id] <= delay + queue.harness.slack
        assert expired_at is not None
        assert 5 <= expired_at <= 5 + queue.harness.slack

    async def test_a_turn_with_nothing_to_do_does_nothing(self, queue: Queue) -> None:
        id = await queue.put_one(delay=60)
        before = await queue.view(id)
        for _ in range(3):
            assert await queue.engine.tick() == []
        assert await queue.view(id) == before

    async def test_many_that_are_due_at_once_are_released_some_at_a_time(self, queue: Queue) -> None:
        """After a downtime; nobody else waits for all of them."""
        ids = await queue.put(*(new_job(delay=5 + number % 3) for number in range(9000)))
        await queue.advance(60)
        ready = [(await queue.counts())["ready"]]
        while queue.engine.behind:
            await queue.engine.tick()
            ready.append((await queue.counts())["ready"])
        assert ready[-1] == len(ids)
        assert all(after > before for before, after in pairwise(ready))
        assert await queue.take_ids(len(ids)) == ids
