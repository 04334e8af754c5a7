"""Expiry: a job that waits too long is buried, not lost, and never runs too late."""

from __future__ import annotations

import pytest

from kqs.ports import Selection

from .harness import Cases, Queue, new_job


class ExpiryCases(Cases):
    needs = "expiry"

    async def _is_expired(self, queue: Queue, id: str) -> None:
        view = await queue.view(id)
        assert (view["state"], view["last_error"]["kind"]) == ("buried", "expired")
        assert await queue.take() == []

    @pytest.mark.parametrize("delay", [0, 5, 9.5])
    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    async def test_a_job_that_waits_too_long_is_buried(self, queue: Queue, delay: float, way: str) -> None:
        id = await queue.put_one(expires=10, delay=delay)
        await queue.advance(9)
        assert await queue.state(id) == ("ready" if delay < 9 else "delayed")
        if way:
            await queue.restart(way)
        await queue.advance(1 + queue.harness.slack)
        await self._is_expired(queue, id)

    async def test_a_job_is_not_handed_out_when_it_is_over_though_nobody_looked(self, queue: Queue) -> None:
        late, other = await queue.put(new_job(expires=10), new_job())
        await queue.harness.advance(10)
        assert [lease.id for lease in await queue.take(5)] == [other]
        await self._is_expired(queue, late)

    async def test_a_running_job_is_not_taken_from_its_worker(self, queue: Queue) -> None:
        id = await queue.put_one(expires=10, ttr=100)
        lease = await queue.take_one()
        await queue.advance(50)
        assert await queue.state(id) == "reserved"
        assert await queue.settle(lease) is None
        assert await queue.state(id) == "done"

    @pytest.mark.parametrize("outcome", ["again", "release"])
    async def test_a_job_that_comes_back_too_late_is_buried(self, queue: Queue, outcome: str) -> None:
        id = await queue.put_one(expires=10, ttr=100)
        lease = await queue.take_one()
        await queue.advance(50)
        assert await queue.settle(lease, outcome, reason="too slow") is None
        await self._is_expired(queue, id)
        assert (await queue.view(id))["attempt"] == (0 if outcome == "release" else 1)
        assert await queue.settle(lease, outcome) is None  # said again

    async def test_a_rescued_job_that_is_over_is_buried(self, queue: Queue) -> None:
        id = await queue.put_one(expires=10, ttr=20)
        lease = await queue.take_one()
        await queue.run_out(20)
        await queue.engine.rescue([lease.receipt], reason="ttr")
        await self._is_expired(queue, id)

    async def test_a_job_that_failed_for_good_says_why_it_failed(self, queue: Queue) -> None:
        id = await queue.put_one(expires=10, ttr=100)
        lease = await queue.take_one()
        await queue.advance(50)
        assert await queue.settle(lease, "fail", reason="no such file") is None
        assert (await queue.view(id))["last_error"]["message"] == "no such file"

    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    async def test_an_expired_job_that_is_kicked_runs(self, queue: Queue, way: str) -> None:
        id = await queue.put_one(expires=10)
        await queue.advance(10 + queue.harness.slack)
        assert await queue.engine.control("kick", Selection([id])) == 1
        if way:
            await queue.restart(way)
        await queue.advance(100)
        assert await queue.take_ids() == [id]

    async def test_many_jobs_that_expire_at_once(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job(expires=10) for _ in range(3000)))
        await queue.advance(10 + queue.harness.slack)
        for _ in range(5):
            await queue.engine.tick()
        assert (await queue.counts())["buried"] == 3000
        assert await queue.engine.control("delete", Selection(ids)) == 3000
