"""renew: a lease lasts another ttr, and only a current one does."""

from __future__ import annotations

import pytest

from kqs.ports import Selection

from .harness import Cases, Queue, new_job


class RenewCases(Cases):
    async def test_a_renewed_lease_lasts_a_ttr_from_now(self, queue: Queue) -> None:
        await queue.put_one(ttr=10)
        lease = await queue.take_one()
        for _ in range(3):
            assert await queue.advance(8) == []
            assert await queue.engine.renew([lease.receipt]) == ["renewed"]
        assert await queue.advance(9.9) == []
        assert [expired.receipt for expired in await queue.advance(0.1 + queue.harness.slack)] == [
            lease.receipt
        ]

    async def test_the_end_of_a_lease_renewed_at_once_is_told_once(self, queue: Queue) -> None:
        await queue.put_one(ttr=10)
        lease = await queue.take_one()
        assert await queue.engine.renew([lease.receipt]) == ["renewed"]
        assert [expired.receipt for expired in await queue.run_out(10)] == [lease.receipt]

    async def test_a_renewed_lease_stays_the_same_lease(self, queue: Queue) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        assert await queue.engine.renew([lease.receipt]) == ["renewed"]
        assert queue.engine.held_by("worker") == [lease.receipt]
        assert (await queue.view(id))["attempt"] == 1
        assert await queue.settle(lease) is None

    async def test_answers_stand_in_the_order_of_the_receipts(self, queue: Queue) -> None:
        await queue.put(*(new_job() for _ in range(3)))
        a, b, c = await queue.take(3)
        await queue.settle(b)
        receipts = ["nonsense", a.receipt, b.receipt, c.receipt, ""]
        assert await queue.engine.renew(receipts) == ["lost", "renewed", "lost", "renewed", "lost"]
        assert await queue.engine.renew([]) == []

    @pytest.mark.parametrize("end", ["ok", "again", "fail", "release", "rescue", "bury", "delete"])
    async def test_a_lease_that_is_over_is_not_renewed(self, queue: Queue, end: str) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        if end in ("bury", "delete"):
            await queue.engine.control(end, Selection([id]))
        elif end == "rescue":
            await queue.engine.rescue([lease.receipt])
        else:
            await queue.settle(lease, end)
        before = await queue.view(id)
        assert await queue.engine.renew([lease.receipt]) == ["lost"]
        assert await queue.view(id) == before

    async def test_renewing_after_the_end_works_or_does_not_but_not_both(self, queue: Queue) -> None:
        id = await queue.put_one(ttr=5)
        lease = await queue.take_one()
        expired = await queue.run_out(5)
        [became] = await queue.engine.renew([lease.receipt])
        if became == "renewed":
            assert [lease.receipt for lease in expired] in ([], [lease.receipt])
            assert await queue.advance(4.9) == []
            assert await queue.state(id) == "reserved"
            assert [e.receipt for e in await queue.advance(0.1 + queue.harness.slack)] == [lease.receipt]
        else:
            assert await queue.settle(lease) == "stale_receipt"

    async def test_progress_is_shown_while_the_lease_lasts(self, queue: Queue) -> None:
        queue.require("inspect")
        id = await queue.put_one()
        lease = await queue.take_one()
        assert "progress" not in await queue.view(id)
        progress = {"fraction": 0.25, "message": "one of four"}
        assert await queue.engine.renew([lease.receipt], progress) == ["renewed"]
        assert (await queue.view(id))["progress"] == progress
        assert await queue.engine.renew([lease.receipt]) == ["renewed"]
        assert (await queue.view(id))["progress"] == progress
        await queue.settle(lease, "release")
        assert "progress" not in await queue.view(id)
