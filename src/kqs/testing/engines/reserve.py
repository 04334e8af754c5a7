"""reserve: who is next, and that nobody is next twice."""

from __future__ import annotations

import asyncio
from itertools import permutations

import pytest

from kqs.core.job import PRIOS
from kqs.ports import Selection

from .harness import Cases, Queue, new_job


class ReserveCases(Cases):
    async def test_nothing_is_given_from_an_empty_queue(self, queue: Queue) -> None:
        assert await queue.take(10) == []
        assert await queue.take(10, ["t"]) == []

    async def test_priorities_are_strict_whatever_the_order_of_arrival(self, queue: Queue) -> None:
        for order in list(permutations(PRIOS))[::17]:
            ids = {prio: await queue.put_one(prio=prio) for prio in order}
            assert await queue.take_ids() == [ids[prio] for prio in PRIOS]

    async def test_inside_a_priority_first_in_is_first_out_across_types(self, queue: Queue) -> None:
        ids = [await queue.put_one("abc"[number % 3]) for number in range(30)]
        assert await queue.take_ids() == ids

    async def test_order_holds_when_jobs_are_taken_one_by_one(self, queue: Queue) -> None:
        jobs = [new_job("ab"[number % 2], prio=PRIOS[number * 7 % 5]) for number in range(40)]
        ids = await queue.put(*jobs)
        expected = [
            id for _prio, id in sorted(zip((job.prio for job in jobs), ids, strict=True), key=lambda x: x[0])
        ]
        assert [(await queue.take_one()).id for _ in ids] == expected

    async def test_an_urgent_job_overtakes_between_two_calls(self, queue: Queue) -> None:
        first, second = await queue.put(new_job(), new_job())
        assert await queue.take_ids(1) == [first]
        urgent = await queue.put_one(prio="urgent")
        assert await queue.take_ids() == [urgent, second]

    async def test_only_the_types_asked_for_are_given(self, queue: Queue) -> None:
        a, b, c = await queue.put(new_job("a", prio="bulk"), new_job("b"), new_job("c"))
        assert await queue.take_ids(types=["none"]) == []
        assert await queue.take_ids(types=["a", "c", "none"]) == [c, a]
        assert await queue.take_ids() == [b]

    @pytest.mark.parametrize("kind", [list, set, frozenset, tuple])
    async def test_types_may_be_any_collection(self, queue: Queue, kind: type) -> None:
        id = await queue.put_one("a")
        await queue.put_one("b")
        assert await queue.take_ids(types=kind(["a"])) == [id]

    async def test_as_many_as_asked_for_and_there_are(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job("ab"[number % 2]) for number in range(10)))
        assert await queue.take_ids(3) == ids[:3]
        assert await queue.take_ids(4) == ids[3:7]
        assert await queue.take_ids(4) == ids[7:]

    async def test_a_job_is_given_to_one_only(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job() for _ in range(60)))
        answers = await asyncio.gather(*(queue.take(7, holder=f"w{number}") for number in range(12)))
        given = [lease.id for leases in answers for lease in leases]
        assert sorted(given) == sorted(ids)

    async def test_every_lease_has_a_receipt_of_its_own(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job() for _ in range(5)))
        receipts = set()
        for _ in range(4):
            leases = await queue.take(5)
            assert sorted(lease.id for lease in leases) == sorted(ids)
            receipts |= {lease.receipt for lease in leases}
            for lease in leases:
                assert await queue.settle(lease, "release") is None
        assert len(receipts) == 20

    async def test_a_lease_ends_its_ttr_after_it_was_given(self, queue: Queue) -> None:
        await queue.put_one(ttr=12.5)
        await queue.advance(100)
        before = queue.harness.now()
        lease = await queue.take_one()
        assert before + 12_500_000 <= lease.expires <= queue.harness.now() + 12_500_000

    async def test_jobs_that_are_not_ready_are_not_given(self, queue: Queue) -> None:
        delayed, buried, leased, ready = await queue.put(
            new_job(delay=60), new_job("bury"), new_job("lease"), new_job()
        )
        await queue.engine.control("bury", Selection([buried]))
        assert (await queue.take_one(["lease"])).id == leased
        assert await queue.take_ids() == [ready]
        assert await queue.states([delayed, buried, leased]) == ["delayed", "buried", "reserved"]

    async def test_what_a_worker_holds_in_the_order_it_was_given(self, queue: Queue) -> None:
        await queue.put(*(new_job() for _ in range(4)))
        mine = await queue.take(2, holder="me")
        other = await queue.take(1, holder="other")
        mine += await queue.take(1, holder="me")
        assert queue.engine.held_by("me") == [lease.receipt for lease in mine]
        assert queue.engine.held_by("other") == [other[0].receipt]
        assert queue.engine.held_by("nobody") == []
        await queue.settle(mine[0])
        await queue.settle(mine[2], "release")
        assert queue.engine.held_by("me") == [mine[1].receipt]

    async def test_a_job_that_went_back_and_forth_counts_once(self, queue: Queue) -> None:
        first, second, third = await queue.put(new_job(), new_job(), new_job())
        for _ in range(3):
            await queue.engine.control("bury", Selection([first]))
            await queue.engine.control("kick", Selection([first]))
        assert await queue.take_ids(2) == [first, second]
        assert await queue.take_ids(2) == [third]

    async def test_a_priority_that_was_changed_counts(self, queue: Queue) -> None:
        first, second, third = await queue.put(new_job(), new_job(), new_job())
        lease = await queue.take_one()
        assert await queue.settle(lease, "release", prio="bulk") is None
        assert await queue.take_ids(1) == [second]
        lease = (await queue.take(2))[1]
        assert (lease.id, lease.prio) == (first, 4)
        assert await queue.settle(lease, "release", prio="normal") is None
        assert await queue.take_ids() == [first]
        assert await queue.state(third) == "reserved"

    async def test_a_closed_engine_gives_nothing(self, queue: Queue) -> None:
        id = await queue.put_one()
        await queue.engine.close()
        assert await queue.take() == []
        await queue.reopen()
        assert await queue.take_ids() == [id]
