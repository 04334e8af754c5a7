"""pause and resume: a type whose jobs wait, durably, without holding up any other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kqs.ports import Selection

from .harness import Cases, Queue, new_job


class PauseCases(Cases):
    needs = "pause"

    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    async def test_a_paused_types_jobs_wait(self, queue: Queue, way: str) -> None:
        before, other = await queue.put(new_job("a"), new_job("b"))
        await queue.engine.pause("a", True)
        after = await queue.put_one("a", prio="urgent")
        if way:
            await queue.restart(way)
        assert await queue.engine.paused() == ["a"]
        assert dict(await queue.engine.ready_types()) == {"b": 1}
        assert await queue.take_ids(types=["a"]) == []
        lease = await queue.take_one()
        assert (lease.id, await queue.take()) == (other, [])
        assert await queue.settle(lease) is None
        await queue.engine.pause("a", False)
        if way:
            await queue.restart(way)
        assert await queue.engine.paused() == []
        assert await queue.take_ids() == [after, before]

    async def test_delays_and_retries_go_on_while_it_is_paused(self, queue: Queue) -> None:
        delayed, running = await queue.put(new_job("a", delay=5), new_job("a"))
        lease = await queue.take_one(["a"])
        await queue.engine.pause("a", True)
        assert await queue.settle(lease, "release") is None
        await queue.advance(10)
        assert await queue.states([delayed, running]) == ["ready", "ready"]
        assert await queue.take() == []
        await queue.engine.pause("a", False)
        assert await queue.take_ids() == [delayed, running]

    async def test_a_resumed_type_is_announced(self, queue: Queue) -> None:
        await queue.engine.pause("a", True)
        await queue.put_one("a")
        told: list[str] = []

        def notify(types: Sequence[str]) -> None:
            told.extend(types)

        queue.engine.on_ready(notify)
        await queue.engine.pause("a", False)
        assert "a" in told

    async def test_pausing_what_is_paused_or_unknown(self, queue: Queue) -> None:
        for type in ("a", "a", "never seen"):
            await queue.engine.pause(type, True)
        assert await queue.engine.paused() == ["a", "never seen"]
        for type in ("a", "a", "b"):
            await queue.engine.pause(type, False)
        assert await queue.engine.paused() == ["never seen"]

    async def test_a_paused_job_can_be_deleted(self, queue: Queue) -> None:
        id = await queue.put_one("a")
        await queue.engine.pause("a", True)
        assert await queue.engine.control("delete", Selection([id])) == 1
        await queue.engine.pause("a", False)
        assert await queue.take() == []

    async def test_a_pause_outlives_the_log_it_was_written_to(self, queue: Queue) -> None:
        id = await queue.put_one("a")
        await queue.engine.pause("a", True)
        for _ in range(30):
            await queue.put(*(new_job("b", b'"%s"' % (b"x" * 1000)) for _ in range(20)))
            for lease in await queue.take(20):
                await queue.settle(lease)
            await queue.advance(1)
        await queue.restart()
        assert await queue.engine.paused() == ["a"]
        assert await queue.take() == []
        await queue.engine.pause("a", False)
        assert await queue.take_ids() == [id]
