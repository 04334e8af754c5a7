"""rescue: what expired or was orphaned comes back, costs its attempt, and is poison after three deaths."""

from __future__ import annotations

from collections.abc import Sequence

from kqs.core.retry import RetryPolicy

from .harness import Cases, Queue, new_job

AT_ONCE = RetryPolicy("fixed", base=0, jitter=0)


class RescueCases(Cases):
    async def test_an_expired_lease_is_told_once_and_not_before(self, queue: Queue) -> None:
        id = await queue.put_one(ttr=10)
        lease = await queue.take_one(holder="w1")
        assert await queue.advance(9.9) == []
        [expired] = await queue.advance(0.1 + queue.harness.slack)
        assert (expired.receipt, expired.id, expired.holder, expired.ttr) == (lease.receipt, id, "w1", 10)
        assert await queue.advance(100) == []

    async def test_an_expired_lease_is_nobody_elses_until_it_is_rescued(self, queue: Queue) -> None:
        id = await queue.put_one(ttr=1)
        lease = await queue.take_one()
        [expired] = await queue.run_out(1)
        assert await queue.take() == []
        await queue.engine.rescue([expired.receipt], reason="took too long")
        again = await queue.take_one()
        assert (again.id, again.attempt) == (id, 2)
        assert again.receipt != lease.receipt
        error = (await queue.view(id))["last_error"]
        assert error["message"] == "took too long"

    async def test_a_lease_renewed_after_it_was_told_can_be_left_alone(self, queue: Queue) -> None:
        """Between being told and rescuing, the worker may have been heard."""
        await queue.put(new_job(ttr=1), new_job(ttr=1))
        renewed, late = await queue.take(2)
        told = [expired.receipt for expired in await queue.run_out(1)]
        assert await queue.engine.renew([renewed.receipt]) == ["renewed"]
        await queue.engine.rescue(told, overdue=True, reason="too late")
        assert await queue.states([renewed.id, late.id]) == ["reserved", "ready"]
        [again] = await queue.run_out(1)
        assert again.receipt == renewed.receipt
        await queue.engine.rescue([renewed.receipt], reason="its worker is gone")
        assert await queue.state(renewed.id) == "ready"

    async def test_leases_are_told_in_the_order_they_end(self, queue: Queue) -> None:
        await queue.put(new_job(ttr=30), new_job(ttr=10), new_job(ttr=20))
        long, short, middle = await queue.take(3)
        told = await queue.run_out(30)
        assert [e.receipt for e in told] == [short.receipt, middle.receipt, long.receipt]

    async def test_a_settled_lease_is_not_told(self, queue: Queue) -> None:
        await queue.put(*(new_job(ttr=1) for _ in range(4)))
        for lease, outcome in zip(await queue.take(4), ("ok", "fail", "again", "release"), strict=True):
            await queue.settle(lease, outcome, delay=1000)
        assert await queue.run_out(1) == []

    async def test_a_rescued_job_keeps_its_place_in_line(self, queue: Queue) -> None:
        first, second = await queue.put(new_job(), new_job())
        lease = await queue.take_one()
        await queue.engine.rescue([lease.receipt])
        assert await queue.take_ids() == [first, second]

    async def test_a_rescued_job_is_announced(self, queue: Queue) -> None:
        await queue.put_one("a")
        lease = await queue.take_one()
        told: list[str] = []

        def notify(types: Sequence[str]) -> None:
            told.extend(types)

        queue.engine.on_ready(notify)
        await queue.engine.rescue([lease.receipt])
        assert told == ["a"]

    async def test_receipts_that_are_not_current_are_passed_over(self, queue: Queue) -> None:
        done, live = await queue.put(new_job(), new_job())
        a, b = await queue.take(2)
        await queue.settle(a)
        await queue.engine.rescue(["nonsense", a.receipt, b.receipt, b.receipt, ""])
        assert await queue.states([done, live]) == ["done", "ready"]
        assert (await queue.take_one()).attempt == 2
        await queue.engine.rescue([b.receipt])  # of the attempt before
        assert await queue.state(live) == "reserved"

    async def test_the_last_attempt_that_is_taken_back_buries(self, queue: Queue) -> None:
        id = await queue.put_one(max_attempts=2)
        for state in ("ready", "buried"):
            lease = await queue.take_one()
            await queue.engine.rescue([lease.receipt], reason="ttr of 30 s exceeded")
            assert await queue.state(id) == state
        assert "ttr of 30 s exceeded" in (await queue.view(id))["last_error"]["message"]

    async def test_the_third_death_of_its_worker_is_poison(self, queue: Queue) -> None:
        id = await queue.put_one(retry=AT_ONCE)
        for deaths in (1, 2, 3):
            lease = await queue.take_one()
            assert lease.attempt == deaths
            await queue.engine.rescue([lease.receipt], died=True, reason="killed by signal 9")
            assert (await queue.view(id))["deaths"] == deaths
        view = await queue.view(id)
        assert view["state"] == "buried"
        assert "poison" in view["last_error"]["message"]
        assert "killed by signal 9" in view["last_error"]["message"]

    async def test_deaths_count_across_other_outcomes(self, queue: Queue) -> None:
        id = await queue.put_one(retry=AT_ONCE)
        for outcome in ("died", "again", "died", "release", "late", "died"):
            lease = await queue.take_one()
            if outcome in ("died", "late"):
                await queue.engine.rescue([lease.receipt], died=outcome == "died")
            else:
                await queue.settle(lease, outcome)
        view = await queue.view(id)
        assert (view["state"], view["deaths"]) == ("buried", 3)

    async def test_being_late_is_no_death(self, queue: Queue) -> None:
        id = await queue.put_one()
        for attempt in range(1, 8):
            lease = await queue.take_one()
            assert lease.attempt == attempt
            await queue.engine.rescue([lease.receipt])
        view = await queue.view(id)
        assert (view["state"], view.get("deaths", 0)) == ("ready", 0)

    async def test_after_a_death_the_job_waits_as_its_policy_says(self, queue: Queue) -> None:
        id = await queue.put_one(retry=RetryPolicy("fixed", base=10, jitter=0))
        lease = await queue.take_one()
        await queue.engine.rescue([lease.receipt], died=True)
        await queue.advance(9.9)
        assert await queue.take() == []
        await queue.advance(0.1 + queue.harness.slack)
        assert await queue.take_ids() == [id]

    async def test_the_worker_that_was_given_up_comes_too_late(self, queue: Queue) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        await queue.engine.rescue([lease.receipt])
        assert await queue.settle(lease) == "stale_receipt"
        assert await queue.engine.renew([lease.receipt]) == ["lost"]
        assert await queue.state(id) == "ready"

    async def test_nothing_to_rescue(self, queue: Queue) -> None:
        id = await queue.put_one()
        await queue.engine.rescue([])
        assert await queue.state(id) == "ready"
