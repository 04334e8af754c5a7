"""Results: kept as long as their jobs want, over restarts, and no longer."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw

from kqs.errors import NotFound

from .harness import Cases, Queue, new_job

LARGE = b'"%s"' % (b"r" * 300_000)


class ResultCases(Cases):
    needs = "results"

    async def _done(self, queue: Queue, ttl: float, result: Any = None) -> str:
        """A job that was run to its end; returns its id."""
        id = await queue.put_one(result_ttl=ttl)
        rest = {} if result is None else {"result": Raw(result)}
        assert await queue.settle(await queue.take_one(), "ok", **rest) is None
        return id

    @pytest.mark.parametrize("ttl", [0, 10])
    async def test_a_lease_says_whether_a_result_is_wanted(self, queue: Queue, ttl: float) -> None:
        await queue.put_one(result_ttl=ttl)
        assert (await queue.take_one()).wants_result == (ttl > 0)

    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    async def test_a_result_is_shown_until_its_time_is_over(self, queue: Queue, way: str) -> None:
        id = await self._done(queue, 10, b'{"a":[1,"\\u00e9"]}')
        if way:
            await queue.restart(way)
        await queue.advance(9)
        view = await queue.view(id)
        assert (view["state"], view["outcome"], view["result"]) == ("done", "ok", {"a": [1, "\u00e9"]})
        await queue.advance(1 + queue.harness.slack)
        try:
            assert "result" not in await queue.view(id)
        except NotFound:
            pass

    async def test_a_handler_that_returned_nothing_has_null_as_its_result(self, queue: Queue) -> None:
        id = await self._done(queue, 10)
        assert (await queue.view(id))["result"] is None

    async def test_a_result_nobody_wants_is_not_kept(self, queue: Queue) -> None:
        id = await self._done(queue, 0, b"1")
        assert "result" not in await queue.view(id)

    @pytest.mark.parametrize("outcome", ["again", "fail", "release"])
    async def test_only_a_job_that_is_done_has_a_result(self, queue: Queue, outcome: str) -> None:
        id = await queue.put_one(result_ttl=10)
        await queue.settle(await queue.take_one(), outcome, result=Raw(b"1"))
        assert "result" not in await queue.view(id)

    async def test_a_settlement_said_twice_leaves_the_first_result(self, queue: Queue) -> None:
        id = await queue.put_one(result_ttl=10)
        lease = await queue.take_one()
        assert await queue.settle(lease, "ok", result=Raw(b"1")) is None
        assert await queue.settle(lease, "ok", result=Raw(b"2")) is None
        assert (await queue.view(id))["result"] == 1

    @pytest.mark.parametrize("way", ["", "restart"])
    async def test_a_large_result(self, queue: Queue, way: str) -> None:
        id = await self._done(queue, 10, LARGE)
        if way:
            await queue.restart(way)
        assert (await queue.view(id))["result"] == "r" * 300_000

    async def test_results_outlive_the_log_they_were_written_to(self, queue: Queue) -> None:
        ids = [await self._done(queue, 1_000_000, b"%d" % number) for number in range(20)]
        for _ in range(30):  # enough to go round the log of any engine that compacts
            await queue.put(*(new_job(data=b'"%s"' % (b"x" * 1000)) for _ in range(20)))
            for lease in await queue.take(20):
                await queue.settle(lease)
            await queue.advance(1)
        await queue.restart()
        assert [(await queue.view(id))["result"] for id in ids] == list(range(20))
