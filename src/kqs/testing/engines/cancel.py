"""cancel: a job that waits ends at once, one that runs ends with its lease."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kqs.ports import Revoked, Selection

from .harness import Cases, Queue


class CancelCases(Cases):
    needs = "cancel"

    async def _cancelled(self, queue: Queue, id: str) -> None:
        assert await queue.state(id) == "done"
        assert (await queue.view(id))["outcome"] == "cancelled"
        assert await queue.take() == []

    @pytest.mark.parametrize("state", ["ready", "delayed", "buried"])
    async def test_a_waiting_job_ends_at_once(self, queue: Queue, state: str) -> None:
        id = await queue.put_one(delay=60 if state == "delayed" else 0)
        if state == "buried":
            await queue.engine.control("bury", Selection([id]))
        assert await queue.engine.control("cancel", Selection([id])) == 1
        await queue.advance(100)
        await self._cancelled(queue, id)

    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    @pytest.mark.parametrize("end", ["again", "fail", "release", "rescue", "died"])
    async def test_a_running_job_ends_with_its_lease(self, queue: Queue, end: str, way: str) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        assert await queue.engine.control("cancel", Selection([id])) == 1
        assert await queue.state(id) == "reserved"
        if way:
            await queue.restart(way)
        assert await queue.engine.renew([lease.receipt]) == ["cancelled"]
        if end in ("rescue", "died"):
            await queue.engine.rescue([lease.receipt], died=end == "died")
        else:
            assert await queue.settle(lease, end) is None
            assert await queue.settle(lease, end) is None  # said again
        await self._cancelled(queue, id)

    async def test_a_job_that_was_done_before_it_could_be_stopped_is_done(self, queue: Queue) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        await queue.engine.control("cancel", Selection([id]))
        assert await queue.settle(lease) is None
        assert (await queue.view(id))["outcome"] == "ok"

    async def test_a_local_workers_job_is_over_after_a_restart(self, queue: Queue) -> None:
        id = await queue.put_one()
        await queue.take_one(local=True)
        await queue.engine.control("cancel", Selection([id]))
        await queue.restart()
        assert await queue.take() == []
        assert (await queue.counts())["reserved"] == 0

    async def test_cancelling_twice_is_cancelling(self, queue: Queue) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        for _ in range(2):
            assert await queue.engine.control("cancel", Selection([id])) == 1
        assert await queue.settle(lease, "again") is None
        await self._cancelled(queue, id)

    @pytest.mark.parametrize("verb", ["cancel", "delete", "bury"])
    async def test_whoever_runs_the_job_is_told(self, queue: Queue, verb: str) -> None:
        told: list[Revoked] = []

        def notify(leases: Sequence[Revoked]) -> None:
            told.extend(leases)

        queue.engine.on_revoked(notify)
        running = await queue.put_one("a")
        lease = await queue.take_one(["a"], holder="w7")
        waiting = await queue.put_one("b")
        assert await queue.engine.control(verb, Selection([running, waiting])) == 2
        assert told == [Revoked(lease.receipt, "w7")]
