"""why: what keeps a job from running, looked up when asked."""

from __future__ import annotations

from typing import Any

import pytest

from kqs.core.shares import Share
from kqs.errors import NotFound

from .fair import shares
from .harness import Cases, Queue, new_job


class WhyCases(Cases):
    needs = "inspect"

    async def _why(self, queue: Queue, id: str) -> dict[str, dict[str, Any]]:
        """The reasons by code; the answer names the job and its state."""
        answer = await queue.engine.why(id)
        view = await queue.view(id)
        assert (answer["id"], answer["type"], answer["state"]) == (id, view["type"], view["state"])
        codes = [reason["code"] for reason in answer["reasons"]]
        assert len(set(codes)) == len(codes) or set(codes) == {"limit"}
        assert all(reason["text"] for reason in answer["reasons"])
        return {reason["code"]: reason for reason in answer["reasons"]}

    async def test_a_delay(self, queue: Queue) -> None:
        id = await queue.put_one(delay=50)
        reasons = await self._why(queue, id)
        assert list(reasons) == ["delayed"]
        assert reasons["delayed"]["due_at"] == (await queue.view(id))["due_at"]
        assert reasons["delayed"]["seconds"] == pytest.approx(50, abs=1)

    async def test_a_retry(self, queue: Queue) -> None:
        id = await queue.put_one()
        await queue.settle(await queue.take_one(), "again", delay=20, reason="no route")
        retrying = (await self._why(queue, id))["retrying"]
        assert "no route" in retrying["text"]
        assert retrying["last_error"]["message"] == "no route"
        assert retrying["seconds"] == pytest.approx(20, abs=1)

    @pytest.mark.parametrize("way", ["", "restart", "crash"])
    async def test_a_pause_and_who_made_it(self, queue: Queue, way: str) -> None:
        queue.require("pause")
        id = await queue.put_one("a")
        await queue.engine.pause("a", True, by="ada")
        if way:
            await queue.restart(way)
        paused = (await self._why(queue, id))["paused"]
        assert paused["by"] == "ada"
        assert "ada" in paused["text"]
        await queue.engine.pause("a", False)
        assert await self._why(queue, id) == {}

    async def test_it_is_next(self, queue: Queue) -> None:
        assert await self._why(queue, await queue.put_one()) == {}

    async def test_others_are_before_it(self, queue: Queue) -> None:
        queue.require("fair_share")
        first, second, third = await queue.put(*(new_job("a") for _ in range(3)))
        assert await self._why(queue, first) == {}
        assert (await self._why(queue, second))["behind"]["ahead"] == 1
        assert (await self._why(queue, third))["behind"]["ahead"] == 2
        assert "seconds" not in (await self._why(queue, third))["behind"], "nobody knows how fast it goes yet"
        await queue.settle(await queue.take_one())
        await queue.advance(10)
        await queue.settle(await queue.take_one())
        await queue.put(*(new_job("a") for _ in range(5)))
        last = await queue.put_one("a")
        await queue.take()
        behind = (await self._why(queue, last))["behind"]
        assert (behind["ahead"], behind["running"]) == (5, 1)
        assert behind["seconds"] > 0

    async def test_a_higher_priority(self, queue: Queue) -> None:
        queue.require("fair_share")
        await queue.take()  # somebody asks
        low, _urgent = await queue.put(new_job("a", prio="low"), new_job("b", prio="urgent"))
        assert (await self._why(queue, low))["priority"]["lanes"] == 1

    async def test_another_lanes_turn(self, queue: Queue) -> None:
        queue.require("fair_share")
        await queue.put(*(new_job("a", fair="A") for _ in range(3)))
        await queue.settle(await queue.take_one(), "ok")
        other, last = await queue.put(new_job("a", fair="B"), new_job("a", fair="A"))
        assert await self._why(queue, other) == {}
        reasons = await self._why(queue, last)
        assert (reasons["behind"]["ahead"], reasons["turn"]["lanes"]) == (2, 1)

    async def test_limits(self, queue: Queue) -> None:
        queue.require("fair_share")
        queue.engine.arrange(shares({"a": Share(concurrency=1), "b": Share(rate=0.1, burst=1)}))
        await queue.advance(60)
        await queue.put(new_job("a"), new_job("b"))
        await queue.take(10)
        many, soon = await queue.put(new_job("a"), new_job("b"))
        limit = (await self._why(queue, many))["limit"]["limit"]
        assert limit == {"kind": "type", "name": "a", "running": 1, "concurrency": 1}
        limit = (await self._why(queue, soon))["limit"]["limit"]
        assert (limit["kind"], limit["name"], limit["rate"], limit["burst"]) == ("type", "b", 0.1, 1)
        assert 9 <= limit["next_in"] <= 10

    async def test_it_runs(self, queue: Queue) -> None:
        id = await queue.put_one(ttr=30)
        await queue.take_one(holder="w7")
        running = (await self._why(queue, id))["running"]
        view = await queue.view(id)
        assert running["leased_by"] == "w7"
        assert running["lease_expires_at"] == view["lease_expires_at"]

    async def test_it_is_buried(self, queue: Queue) -> None:
        id = await queue.put_one()
        await queue.settle(await queue.take_one(), "fail", reason="bad file")
        buried = (await self._why(queue, id))["buried"]
        assert buried["last_error"]["message"] == "bad file"

    async def test_it_is_over(self, queue: Queue) -> None:
        id = await queue.put_one()
        await queue.settle(await queue.take_one())
        assert (await self._why(queue, id))["done"]["outcome"] == "ok"

    async def test_an_unknown_job(self, queue: Queue) -> None:
        with pytest.raises(NotFound):
            await queue.engine.why("nonsense")
