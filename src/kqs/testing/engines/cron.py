"""fire, fired and forget_cron: what a cron inserts, and up to when that was done, in one commit."""

from __future__ import annotations

import asyncio

import pytest

from kqs.core.job import SECOND
from kqs.errors import ShuttingDown
from kqs.ports import CronMark, Selection

from .harness import Cases, Queue, new_job

NOON = 1_767_268_800 * SECOND
MINUTE = 60 * SECOND


class CronCases(Cases):
    needs = "cron"

    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    async def test_jobs_and_mark_are_there_together(self, queue: Queue, way: str) -> None:
        before = await queue.put_one("other")
        jobs = [new_job("report", b'"%d"' % n, prio="high") for n in range(3)]
        ids = await queue.engine.fire("daily", NOON, jobs)
        assert ids is not None and len(set(ids)) == 3
        if way:
            await queue.restart(way)
        assert await queue.engine.fired() == {"daily": CronMark(NOON, NOON)}
        leases = await queue.take(10)
        assert [lease.id for lease in leases] == [*ids, before]
        assert [lease.data for lease in leases[:3]] == [b'"0"', b'"1"', b'"2"']

    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    async def test_a_run_that_was_made_is_not_made_again(self, queue: Queue, way: str) -> None:
        assert await queue.engine.fire("daily", NOON, [new_job()]) is not None
        if way:
            await queue.restart(way)
        for upto in (NOON, NOON - MINUTE):
            assert await queue.engine.fire("daily", upto, [new_job()]) is None
            assert await queue.engine.fire("daily", upto, []) is None
        assert (await queue.engine.fired())["daily"] == CronMark(NOON, NOON)
        assert (await queue.counts())["ready"] == 1
        assert await queue.engine.fire("daily", NOON + 1, [new_job()]) is not None
        assert await queue.engine.fire("hourly", NOON, [new_job()]) is not None
        assert (await queue.counts())["ready"] == 3

    async def test_of_calls_at_once_one_makes_the_run(self, queue: Queue) -> None:
        """Also when they must wait for space, as so much else comes just now."""
        data = b'"%s"' % (b"x" * 1000)
        others = [
            asyncio.ensure_future(queue.put(*(new_job("b", data) for _ in range(10)))) for _ in range(10)
        ]
        calls = [queue.engine.fire("daily", NOON, [new_job("a", data)]) for _ in range(5)]
        answers = await asyncio.gather(*calls)
        await asyncio.gather(*others)
        assert sum(ids is not None for ids in answers) == 1
        assert len(await queue.take_ids(types=["a"])) == 1

    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    async def test_a_mark_moves_without_a_run(self, queue: Queue, way: str) -> None:
        assert await queue.engine.fire("daily", NOON, []) == []
        assert await queue.engine.fired() == {"daily": CronMark(NOON)}
        await queue.engine.fire("daily", NOON + MINUTE, [new_job()])
        assert await queue.engine.fire("daily", NOON + 2 * MINUTE, []) == []
        if way:
            await queue.restart(way)
        assert await queue.engine.fired() == {"daily": CronMark(NOON + 2 * MINUTE, NOON + MINUTE)}
        assert (await queue.counts())["ready"] == 1

    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    async def test_a_cron_that_is_forgotten_begins_anew(self, queue: Queue, way: str) -> None:
        await queue.engine.fire("daily", NOON, [new_job()])
        await queue.engine.fire("hourly", NOON, [])
        await queue.engine.forget_cron("daily")
        await queue.engine.forget_cron("never seen")
        if way:
            await queue.restart(way)
        assert await queue.engine.fired() == {"hourly": CronMark(NOON)}
        assert await queue.engine.fire("daily", NOON - MINUTE, [new_job()]) is not None

    async def test_its_job_is_a_job_as_any_other(self, queue: Queue) -> None:
        ids = await queue.engine.fire("daily", NOON, [new_job(ttr=7, delay=60, max_attempts=3)])
        assert ids is not None
        view = await queue.view(ids[0])
        assert (view["state"], view["ttr"], view["attempt"]) == ("delayed", 7, 0)
        assert await queue.engine.control("kick", Selection(ids)) == 1
        assert await queue.settle(await queue.take_one()) is None
        assert await queue.state(ids[0]) == "done"

    @pytest.mark.parametrize("way", ["restart", "crash"])
    async def test_marks_outlive_the_log_they_were_written_to(self, queue: Queue, way: str) -> None:
        [id] = await queue.engine.fire("daily", NOON, [new_job("daily")]) or []
        await queue.engine.fire("daily", NOON + MINUTE, [])
        await queue.engine.fire("gone", NOON, [])
        await queue.engine.forget_cron("gone")
        for _ in range(30):
            await queue.put(*(new_job("b", b'"%s"' % (b"x" * 1000)) for _ in range(20)))
            for lease in await queue.take(20, ["b"]):
                await queue.settle(lease)
            await queue.advance(1)
        await queue.restart(way)
        assert await queue.engine.fired() == {"daily": CronMark(NOON + MINUTE, NOON)}
        assert await queue.engine.fire("daily", NOON + MINUTE, [new_job()]) is None
        assert await queue.take_ids() == [id]

    async def test_an_engine_that_stops_takes_no_runs(self, queue: Queue) -> None:
        await queue.engine.fire("daily", NOON, [])
        await queue.engine.close()
        for jobs in ([], [new_job()]):
            with pytest.raises(ShuttingDown):
                await queue.engine.fire("daily", NOON + MINUTE, jobs)
        await queue.reopen()
        assert await queue.engine.fired() == {"daily": CronMark(NOON)}
        assert (await queue.counts())["ready"] == 0
