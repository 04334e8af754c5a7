"""watch: what happens to jobs is told, once, when it is true."""

from __future__ import annotations

import pytest

from kqs.ports import JobEvent, Selection

from .harness import Cases, Queue, new_job


class WatchCases(Cases):
    needs = "watch"

    async def test_a_jobs_life(self, queue: Queue) -> None:
        told: list[JobEvent] = []
        end = queue.engine.watch(told.append)
        id = await queue.put_one("a", ttr=5)
        lease = await queue.take_one()
        await queue.engine.renew([lease.receipt], {"fraction": 0.5, "message": ""})
        await queue.settle(lease, "again", delay=0)
        lease = await queue.take_one()
        await queue.engine.rescue([lease.receipt])
        lease = await queue.take_one()
        await queue.settle(lease, "release")
        lease = await queue.take_one()
        await queue.settle(lease, "fail")
        await queue.engine.control("kick", Selection([id]))
        await queue.settle(await queue.take_one())
        assert [event.event for event in told] == [
            *("accepted", "reserved", "progress", "again", "reserved", "rescued", "reserved", "released"),
            *("reserved", "buried", "kicked", "reserved", "done"),
        ]
        assert {event.job["id"] for event in told} == {id}
        assert [event.job["state"] for event in told][::4] == ["ready", "reserved", "reserved", "done"]
        end()
        await queue.put_one("a")
        assert told[-1].event == "done"

    @pytest.mark.parametrize(("verb", "said"), [("delete", "deleted"), ("cancel", "cancelled")])
    async def test_ends_by_hand(self, queue: Queue, verb: str, said: str) -> None:
        if verb == "cancel":
            queue.require("cancel")
        told: list[str] = []
        id = await queue.put_one()
        queue.engine.watch(lambda event: told.append(event.event), id=id)
        await queue.engine.control(verb, Selection([id]))
        assert told == [said]

    async def test_by_job_and_by_type(self, queue: Queue) -> None:
        one, two, other = await queue.put(new_job("a"), new_job("a"), new_job("b"))
        by_job: list[str] = []
        by_type: list[str] = []
        queue.engine.watch(lambda event: by_job.append(event.job["id"]), id=two)
        queue.engine.watch(lambda event: by_type.append(event.job["id"]), type="a")
        for lease in await queue.take(3):
            await queue.settle(lease)
        assert by_job == [two, two]
        assert sorted(by_type) == sorted([one, one, two, two])
        assert other not in by_type
