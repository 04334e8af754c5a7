"""Restart: everything that was answered is as it was, whether the engine was stopped or killed."""

from __future__ import annotations

from typing import Any

import pytest

from kqs.core.job import PRIOS
from kqs.core.retry import RetryPolicy
from kqs.errors import Conflict, NotFound
from kqs.ports import Selection

from .harness import Cases, Queue, new_job
from .put import EVERY_BYTE, JSON_TEXTS

ways = pytest.mark.parametrize("way", ["restart", "crash"])


class RestartCases(Cases):
    @ways
    async def test_an_empty_engine_is_empty(self, queue: Queue, way: str) -> None:
        await queue.restart(way)
        assert await queue.everything() == []
        assert await queue.take() == []

    @ways
    async def test_every_job_is_as_it_was(self, queue: Queue, way: str) -> None:
        ids = await queue.put(
            *(new_job("abc"[number % 3], b"%d" % number, prio=PRIOS[number % 5]) for number in range(40))
        )
        await queue.put_one("later", delay=500)
        for number, lease in enumerate(await queue.take(15)):
            if number % 5 != 4:
                outcome = ("ok", "again", "fail", "release")[number % 5]
                await queue.settle(lease, outcome, reason=f"reason {number}", delay=50)
        await queue.engine.control("bury", Selection([ids[-1]]))
        await queue.engine.control("delete", Selection([ids[-2]]))
        before, counts = await queue.everything(), await queue.counts()
        assert len({view["state"] for view in before}) == 4
        for _ in range(3):
            await queue.restart(way)
            assert await queue.everything() == before
            after = await queue.counts()
            for state in ("delayed", "ready", "reserved", "buried"):
                assert after[state] == counts[state]

    @ways
    async def test_order_is_the_same(self, queue: Queue, way: str) -> None:
        jobs = [new_job("ab"[number % 2], prio=PRIOS[number * 3 % 5]) for number in range(60)]
        ids = await queue.put(*jobs)
        for lease in await queue.take(10):
            await queue.settle(lease, "release")
        expected = [
            id for _prio, id in sorted(zip((job.prio for job in jobs), ids, strict=True), key=lambda x: x[0])
        ]
        await queue.restart(way)
        leases = await queue.take(25)
        assert [lease.id for lease in leases] == expected[:25]
        for lease in leases:
            assert await queue.settle(lease) is None
        await queue.restart(way)
        assert await queue.take_ids() == expected[25:]

    @ways
    async def test_a_later_job_does_not_overtake(self, queue: Queue, way: str) -> None:
        first = await queue.put_one()
        await queue.restart(way)
        second = await queue.put_one()
        assert await queue.take_ids() == [first, second]

    @ways
    async def test_payloads_are_the_same(self, queue: Queue, way: str) -> None:
        payloads = [(text, False) for text in JSON_TEXTS]
        payloads += [(EVERY_BYTE * 300, True), (b"", True), (b"KFRM" * 1000, True), (EVERY_BYTE * 5000, True)]
        await queue.put(*(new_job(data=data, binary=binary) for data, binary in payloads))
        await queue.restart(way)
        assert [(lease.data, lease.binary) for lease in await queue.take(50)] == payloads

    @ways
    async def test_a_delay_goes_on_where_it_was(self, queue: Queue, way: str) -> None:
        short, long = await queue.put(new_job(delay=10), new_job(delay=100))
        await queue.advance(6)
        await queue.restart(way)
        await queue.advance(3.9)
        assert await queue.take() == []
        await queue.advance(0.1 + queue.harness.slack)
        lease = await queue.take_one()
        assert (lease.id, await queue.take()) == (short, [])
        assert await queue.settle(lease) is None
        await queue.restart(way)
        await queue.advance(89.5 - queue.harness.slack)
        assert await queue.take() == []
        await queue.advance(0.5 + queue.harness.slack)
        assert await queue.take_ids() == [long]

    async def test_a_delay_that_ended_meanwhile_is_over(self, queue: Queue) -> None:
        id = await queue.put_one(delay=10)
        await queue.engine.close()
        await queue.harness.advance(11)
        await queue.reopen()
        await queue.engine.tick()
        assert await queue.take_ids() == [id]

    @ways
    async def test_attempts_deaths_and_the_last_error_are_kept(self, queue: Queue, way: str) -> None:
        id = await queue.put_one(max_attempts=5, retry=RetryPolicy("fixed", base=0, jitter=0))
        await queue.settle(await queue.take_one(), "again", reason="first")
        await queue.engine.rescue([(await queue.take_one()).receipt], died=True, reason="second")
        before = await queue.view(id)
        await queue.restart(way)
        assert await queue.view(id) == before
        lease = await queue.take_one()
        assert lease.attempt == 3
        await queue.engine.rescue([lease.receipt], died=True)
        await queue.restart(way)
        lease = await queue.take_one()
        assert lease.attempt == 4
        await queue.engine.rescue([lease.receipt], died=True)
        view = await queue.view(id)
        assert (view["state"], view["deaths"]) == ("buried", 3)

    @ways
    async def test_the_limit_of_attempts_is_kept(self, queue: Queue, way: str) -> None:
        id = await queue.put_one(max_attempts=2)
        await queue.settle(await queue.take_one(), "again", delay=0)
        await queue.restart(way)
        await queue.settle(await queue.take_one(), "again", delay=0)
        assert await queue.state(id) == "buried"

    @ways
    async def test_a_retry_policy_is_kept(self, queue: Queue, way: str) -> None:
        await queue.put_one(retry=RetryPolicy("linear", base=10, cap=1000, jitter=0))
        await queue.settle(await queue.take_one(), "again", delay=0)
        await queue.restart(way)
        await queue.settle(await queue.take_one(), "again")
        await queue.advance(19.9)
        assert await queue.take() == []
        await queue.advance(0.1 + queue.harness.slack)
        assert (await queue.take_one()).attempt == 3

    @ways
    async def test_a_changed_priority_is_kept(self, queue: Queue, way: str) -> None:
        first, second = await queue.put(new_job(), new_job())
        await queue.settle(await queue.take_one(), "release", prio="bulk")
        await queue.restart(way)
        leases = await queue.take(2)
        assert [(lease.id, lease.prio) for lease in leases] == [(second, 2), (first, 4)]

    @ways
    async def test_buried_stays_buried_and_can_be_kicked(self, queue: Queue, way: str) -> None:
        id = await queue.put_one()
        await queue.settle(await queue.take_one(), "fail", reason="why")
        await queue.restart(way)
        assert await queue.take() == []
        assert (await queue.view(id))["last_error"]["message"] == "why"
        await queue.engine.control("kick", Selection([id]))
        await queue.restart(way)
        assert await queue.take_ids() == [id]

    @ways
    async def test_what_is_over_stays_over(self, queue: Queue, way: str) -> None:
        acked, deleted, live = await queue.put(new_job(), new_job(), new_job())
        await queue.settle(await queue.take_one())
        await queue.engine.control("delete", Selection([deleted]))
        for _ in range(3):
            await queue.restart(way)
            for id in (acked, deleted):
                try:
                    assert await queue.state(id) == "done"
                except NotFound:
                    pass  # forgotten, which is as good
                with pytest.raises((Conflict, NotFound)):
                    await queue.engine.control("kick", Selection([id]))
        assert await queue.take_ids() == [live]

    # -- leases ---------------------------------------------------------------------------------

    @ways
    async def test_leases_that_end_with_the_engine_are_as_if_they_had_never_been(
        self, queue: Queue, way: str
    ) -> None:
        if "leases" in queue.engine.capabilities:
            pytest.skip("leases outlive this engine")
        ids = await queue.put(*(new_job() for _ in range(4)))
        leases = await queue.take(3)
        await queue.restart(way)
        for lease in leases:
            assert await queue.settle(lease) == "stale_receipt"
            assert await queue.engine.renew([lease.receipt]) == ["lost"]
        assert queue.engine.held_by("worker") == []
        assert await queue.take_ids() == ids

    @ways
    async def test_a_lease_lasts_until_it_ends(self, queue: Queue, way: str) -> None:
        queue.require("leases")
        id = await queue.put_one(ttr=60)
        lease = await queue.take_one(holder="far")
        await queue.advance(20)
        before = await queue.view(id)
        await queue.restart(way)
        assert await queue.view(id) == before
        assert await queue.take() == []
        assert queue.engine.held_by("far") == [lease.receipt]
        assert await queue.advance(39.5) == []
        [expired] = await queue.advance(0.5 + queue.harness.slack)
        assert (expired.receipt, expired.id, expired.holder, expired.ttr) == (lease.receipt, id, "far", 60)
        await queue.engine.rescue([expired.receipt])
        assert (await queue.take_one()).attempt == 2

    @ways
    @pytest.mark.parametrize("outcome", ["ok", "again", "fail", "release"])
    async def test_a_worker_that_finished_meanwhile_is_believed(
        self, queue: Queue, way: str, outcome: str
    ) -> None:
        queue.require("leases")
        id = await queue.put_one()
        lease = await queue.take_one()
        await queue.restart(way)
        assert await queue.settle(lease, outcome, reason="why") is None
        expected = {"ok": "done", "again": "delayed", "fail": "buried", "release": "ready"}[outcome]
        assert await queue.state(id) == expected
        before = await queue.counts()
        await queue.restart(way)
        after = await queue.counts()
        assert all(after[state] == before[state] for state in ("delayed", "ready", "reserved", "buried"))

    @ways
    async def test_a_renewed_lease_is_restored_as_renewed(self, queue: Queue, way: str) -> None:
        queue.require("leases")
        await queue.put_one(ttr=10)
        lease = await queue.take_one()
        await queue.advance(8)
        assert await queue.engine.renew([lease.receipt]) == ["renewed"]
        await queue.restart(way)
        assert await queue.advance(9.9) == []
        assert await queue.engine.renew([lease.receipt]) == ["renewed"]
        assert await queue.advance(9.9) == []
        assert [e.receipt for e in await queue.advance(0.1 + queue.harness.slack)] == [lease.receipt]

    async def test_a_lease_that_ended_meanwhile_is_told_first(self, queue: Queue) -> None:
        queue.require("leases")
        await queue.put_one(ttr=10)
        lease = await queue.take_one()
        await queue.engine.close()
        await queue.harness.advance(11)
        await queue.reopen()
        assert [e.receipt for e in await queue.engine.tick()] == [lease.receipt]

    @ways
    async def test_a_lease_that_was_told_and_not_rescued_is_told_again(self, queue: Queue, way: str) -> None:
        queue.require("leases")
        await queue.put_one(ttr=10)
        lease = await queue.take_one()
        assert [e.receipt for e in await queue.run_out(10)] == [lease.receipt]
        await queue.restart(way)
        assert [e.receipt for e in await queue.engine.tick()] == [lease.receipt]

    @ways
    async def test_leases_of_workers_that_died_with_the_server_are_released_at_once(
        self, queue: Queue, way: str
    ) -> None:
        queue.require("leases")
        near, far = await queue.put(new_job(max_attempts=1), new_job())
        local = await queue.take_one(holder="near", local=True)
        remote = await queue.take_one(holder="far")
        for _ in range(2):
            await queue.restart(way)
            assert queue.engine.held_by("near") == []
            assert queue.engine.held_by("far") == [remote.receipt]
            assert await queue.states([near, far]) == ["ready", "reserved"]
            assert (await queue.view(near))["attempt"] == 0
            assert await queue.settle(local) == "stale_receipt"
        lease = await queue.take_one()
        assert (lease.id, lease.attempt) == (near, 1)
        assert lease.receipt != local.receipt

    @ways
    async def test_a_stale_receipt_stays_stale(self, queue: Queue, way: str) -> None:
        queue.require("leases")
        id = await queue.put_one()
        old = await queue.take_one()
        await queue.engine.rescue([old.receipt])
        await queue.restart(way)
        assert await queue.settle(old) == "stale_receipt"
        new = await queue.take_one()
        await queue.restart(way)
        assert await queue.settle(old) == "stale_receipt"
        assert await queue.engine.renew([old.receipt]) == ["lost"]
        assert await queue.settle(new) is None
        assert await queue.state(id) == "done"

    @ways
    async def test_a_repeated_ack_after_a_restart_does_nothing(self, queue: Queue, way: str) -> None:
        _done, other = await queue.put(new_job(), new_job())
        lease = await queue.take_one()
        assert await queue.settle(lease) is None
        await queue.restart(way)
        assert await queue.settle(lease) in (None, "stale_receipt")
        assert await queue.settle(lease, "release") == "stale_receipt"
        assert await queue.take_ids() == [other]

    # -- never twice ----------------------------------------------------------------------------

    @ways
    async def test_ids_and_receipts_are_never_given_twice(self, queue: Queue, way: str) -> None:
        ids: list[str] = []
        receipts: list[str] = []
        for round_ in range(12):
            for _ in range(round_ % 3):
                ids += await queue.put(*(new_job() for _ in range(1 + round_ % 4)))
                leases = await queue.take(3, local=round_ % 2 == 0)
                receipts += [lease.receipt for lease in leases]
                for lease in leases:
                    if round_ % 4 != 3:
                        await queue.settle(lease, ("ok", "release")[round_ % 2])
            await queue.restart(way)
        assert len(set(ids)) == len(ids) > 20
        assert len(set(receipts)) == len(receipts) > 10

    @ways
    async def test_a_long_life_of_many_restarts(self, queue: Queue, way: str) -> None:
        """Jobs that stay for long, among many that come and go, are the same to the end."""
        stay = await queue.put(
            new_job(data=EVERY_BYTE, binary=True, delay=1e6), new_job("lease", ttr=1e6), new_job("bury")
        )
        await queue.take_one(["lease"])
        await queue.settle(await queue.take_one(["bury"]), "fail", reason="kept")
        before: list[dict[str, Any]] = [await queue.view(id, data=True) for id in stay]
        for _ in range(8):
            await queue.put(*(new_job("pass", b'"%s"' % (b"x" * 2000)) for _ in range(25)))
            for lease in await queue.take(25, ["pass"]):
                assert await queue.settle(lease) is None
            await queue.restart(way)
            assert [await queue.view(id, data=True) for id in stay] == before
            assert (await queue.counts())["ready"] == 0
