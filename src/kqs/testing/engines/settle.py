"""settle: each outcome does what it says, a receipt counts once, a stale one changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from kqs.core.outcome import OutcomeName, Reason, Settlement
from kqs.core.retry import RetryPolicy
from kqs.ports import Lease, Selection

from .harness import Cases, Queue, new_job

FIXED = RetryPolicy("fixed", base=10, jitter=0)


class SettleCases(Cases):
    async def test_ok_ends_the_job(self, queue: Queue) -> None:
        id = await queue.put_one()
        assert await queue.settle(await queue.take_one()) is None
        view = await queue.view(id)
        assert (view["state"], view["outcome"]) == ("done", "ok")
        await queue.advance(10_000)
        assert await queue.take() == []
        assert await queue.counts() == {"delayed": 0, "ready": 0, "reserved": 0, "buried": 0, "done": 1}

    @pytest.mark.parametrize("outcome", ["ok", "again", "fail", "release"])
    async def test_the_same_settlement_again_is_no_error_and_does_nothing(
        self, queue: Queue, outcome: str
    ) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        assert await queue.settle(lease, outcome) is None
        after = await queue.view(id)
        await queue.harness.advance(0.001)
        assert await queue.settle(lease, outcome) is None
        assert await queue.view(id) == after

    @pytest.mark.parametrize("outcome", ["again", "fail", "release"])
    async def test_another_outcome_for_a_receipt_that_was_used_is_refused(
        self, queue: Queue, outcome: str
    ) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        assert await queue.settle(lease) is None
        assert await queue.settle(lease, outcome) == "stale_receipt"
        assert await queue.state(id) == "done"

    async def test_a_receipt_counts_once_in_a_call(self, queue: Queue) -> None:
        id = await queue.put_one()
        receipt = (await queue.take_one()).receipt
        outcomes: list[OutcomeName] = ["ok", "fail", "ok"]
        refused = await queue.engine.settle([Settlement(receipt, outcome) for outcome in outcomes])
        assert [(refusal.index, refusal.code) for refusal in refused] == [(1, "stale_receipt")]
        assert await queue.state(id) == "done"

    async def test_a_receipt_counts_once_among_callers(self, queue: Queue) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        answers = await asyncio.gather(
            *(queue.settle(lease, outcome) for outcome in ("ok", "fail", "release", "again"))
        )
        assert sorted(answers, key=str) == [None, "stale_receipt", "stale_receipt", "stale_receipt"]
        states = dict(zip((None, "x", "y", "z"), ("done", "buried", "ready", "delayed"), strict=True))
        assert await queue.state(id) in states.values()

    async def test_again_waits_as_long_as_it_is_told(self, queue: Queue) -> None:
        id = await queue.put_one()
        assert await queue.settle(await queue.take_one(), "again", delay=5) is None
        assert await queue.state(id) == "delayed"
        await queue.advance(4.9)
        assert await queue.take() == []
        await queue.advance(0.1 + queue.harness.slack)
        lease = await queue.take_one()
        assert (lease.id, lease.attempt) == (id, 2)

    async def test_again_without_a_wait_is_ready_at_once(self, queue: Queue) -> None:
        id = await queue.put_one()
        assert await queue.settle(await queue.take_one(), "again", delay=0) is None
        assert await queue.take_ids() == [id]

    async def test_again_waits_as_the_jobs_policy_says(self, queue: Queue) -> None:
        policy = RetryPolicy("exponential", base=2, cap=10, jitter=0)
        await queue.put_one(retry=policy)
        for wait in (2, 4, 8, 10, 10):
            assert await queue.settle(await queue.take_one(), "again") is None
            await queue.advance(wait - 0.1)
            assert await queue.take() == []
            await queue.advance(0.1 + queue.harness.slack)

    async def test_again_by_default_waits_half_a_second_to_a_second_first(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job() for _ in range(20)))
        for lease in await queue.take(20):
            assert await queue.settle(lease, "again") is None
        await queue.advance(0.49)
        assert await queue.take() == []
        await queue.advance(0.51 + queue.harness.slack)
        assert await queue.take_ids() == ids

    async def test_again_keeps_the_reason_and_the_place_in_line(self, queue: Queue) -> None:
        first = await queue.put_one()
        await queue.put_one()
        reason = Reason("no route", "OSError", "Traceback ...")
        assert await queue.settle(await queue.take_one(), "again", delay=0, reason=reason) is None
        error = (await queue.view(first))["last_error"]
        assert (error["message"], error["kind"], error["traceback"]) == (
            "no route",
            "OSError",
            "Traceback ...",
        )
        assert await queue.take_ids(1) == [first]

    async def test_again_can_change_the_priority(self, queue: Queue) -> None:
        first, second = await queue.put(new_job(), new_job())
        assert await queue.settle(await queue.take_one(), "again", delay=0, prio="low") is None
        leases = await queue.take(2)
        assert [(lease.id, lease.prio) for lease in leases] == [(second, 2), (first, 3)]

    async def test_the_last_attempt_buries(self, queue: Queue) -> None:
        id = await queue.put_one(max_attempts=3)
        for attempt in (1, 2, 3):
            lease = await queue.take_one()
            assert lease.attempt == attempt
            assert await queue.settle(lease, "again", delay=0, reason=f"no {attempt}") is None
        view = await queue.view(id)
        assert (view["state"], view["attempt"]) == ("buried", 3)
        assert "no 3" in view["last_error"]["message"]
        assert await queue.take() == []

    async def test_a_job_is_retried_for_ever_by_default(self, queue: Queue) -> None:
        await queue.put_one()
        for attempt in range(1, 41):
            lease = await queue.take_one()
            assert lease.attempt == attempt
            assert await queue.settle(lease, "again", delay=0) is None

    async def test_fail_buries_with_the_reason(self, queue: Queue) -> None:
        id = await queue.put_one()
        assert await queue.settle(await queue.take_one(), "fail", reason="bad address") is None
        view = await queue.view(id)
        assert (view["state"], view["last_error"]["message"]) == ("buried", "bad address")
        await queue.advance(100_000)
        assert await queue.take() == []

    async def test_release_costs_no_attempt(self, queue: Queue) -> None:
        id = await queue.put_one(max_attempts=1)
        for _ in range(3):
            lease = await queue.take_one()
            assert (lease.id, lease.attempt) == (id, 1)
            assert await queue.settle(lease, "release") is None
        assert (await queue.view(id))["attempt"] == 0

    async def test_release_keeps_the_place_in_line(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job() for _ in range(4)))
        leases = await queue.take(3)
        for lease in reversed(leases):
            assert await queue.settle(lease, "release") is None
        assert await queue.take_ids() == ids

    async def test_release_can_wait(self, queue: Queue) -> None:
        id = await queue.put_one()
        assert await queue.settle(await queue.take_one(), "release", delay=3) is None
        await queue.advance(2.9)
        assert await queue.take() == []
        await queue.advance(0.1 + queue.harness.slack)
        assert await queue.take_ids() == [id]

    async def test_jobs_that_are_ready_again_are_announced(self, queue: Queue) -> None:
        await queue.put(new_job("a"), new_job("b"), new_job("c"))
        a, b, c = await queue.take(3)
        told: list[str] = []

        def notify(types: Sequence[str]) -> None:
            told.extend(types)

        queue.engine.on_ready(notify)
        await queue.settle(a, "release")
        await queue.settle(b, "again", delay=0)
        await queue.settle(c, "fail")
        assert told == ["a", "b"]

    async def test_refusals_name_their_places_and_the_rest_is_done(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job() for _ in range(3)))
        a, b, c = await queue.take(3)
        await queue.settle(b, "release")
        refused = await queue.engine.settle(
            [
                Settlement("nonsense", "ok"),
                Settlement(a.receipt, "ok"),
                Settlement(b.receipt, "ok"),
                Settlement(c.receipt, "fail"),
            ]
        )
        assert [(refusal.index, refusal.code) for refusal in refused] == [
            (0, "stale_receipt"),
            (2, "stale_receipt"),
        ]
        assert await queue.states(ids) == ["done", "ready", "buried"]

    @pytest.mark.parametrize(
        "receipt", ["", "x", "1", "1-1-1", "-", "1-1-" + "f" * 100, "\u00e9", "1-1-1\n", "0-0-0", "9" * 5000]
    )
    async def test_receipts_nobody_was_given_are_refused(self, queue: Queue, receipt: str) -> None:
        id = await queue.put_one()
        await queue.take_one()
        before = await queue.view(id)
        for outcome in ("ok", "again", "fail", "release"):
            assert await queue.settle(receipt, outcome) == "stale_receipt"
        assert await queue.view(id) == before

    @pytest.mark.parametrize("end", ["release", "again", "fail", "bury", "delete", "rescue"])
    async def test_the_receipt_of_a_lease_that_is_over_changes_nothing(self, queue: Queue, end: str) -> None:
        id = await queue.put_one()
        old = await queue.take_one()
        await self._end(queue, old, end)
        before = await queue.view(id), await queue.counts()
        outcomes = {"ok", "again", "fail", "release"} - {end}
        for outcome in sorted(outcomes):
            assert await queue.settle(old, outcome, delay=1, reason="late") == "stale_receipt"
        assert (await queue.view(id), await queue.counts()) == before

    async def _end(self, queue: Queue, lease: Lease, how: str) -> None:
        if how in ("bury", "delete"):
            await queue.engine.control(how, Selection([lease.id]))
        elif how == "rescue":
            await queue.engine.rescue([lease.receipt])
        else:
            assert await queue.settle(lease, how, delay=0) is None

    async def test_the_receipt_of_an_earlier_attempt_does_not_touch_the_next(self, queue: Queue) -> None:
        id = await queue.put_one()
        old = await queue.take_one()
        await queue.engine.rescue([old.receipt])
        new = await queue.take_one()
        assert old.receipt != new.receipt
        assert await queue.settle(old) == "stale_receipt"
        assert await queue.state(id) == "reserved"
        assert await queue.settle(new) is None

    async def test_a_late_settlement_is_done_or_refused_never_both(self, queue: Queue) -> None:
        id = await queue.put_one(ttr=5)
        lease = await queue.take_one()
        await queue.harness.advance(6)
        refusal = await queue.settle(lease)
        if refusal is None:
            assert await queue.state(id) == "done"
            assert await queue.engine.tick() == []
        else:
            assert refusal == "stale_receipt"
            assert await queue.state(id) != "done"

    @pytest.mark.parametrize(
        "reason",
        [
            "x" * 65536,
            "\x00\x01\x1f" * 21845,
            "\U0001f600" * 16384,
            '"\\' * 30000,
            Reason("\x01" * 65536, "\x02" * 65536, "\x03" * 65536),
            Reason("\U0001f600" * 9000, "\u20ac" * 9000, "\U0001f600" * 90000),
            Reason("a\ud800b", "\udfff", "\udc80" * 9000),
        ],
    )
    async def test_reasons_of_any_text_and_length(self, queue: Queue, reason: str | Reason) -> None:
        again, fail = await queue.put(new_job(), new_job())
        leases = await queue.take(2)
        assert await queue.settle(leases[0], "again", reason=reason) is None
        assert await queue.settle(leases[1], "fail", reason=reason) is None
        assert await queue.states([again, fail]) == ["delayed", "buried"]
        await queue.restart()
        for id in (again, fail):
            error = (await queue.view(id))["last_error"]
            text = reason if isinstance(reason, str) else reason.message
            assert error["message"][0] == text[0]

    async def test_many_at_once(self, queue: Queue) -> None:
        await queue.put(*(new_job(retry=FIXED) for _ in range(400)))
        leases = await queue.take(400)
        outcomes = ["ok", "again", "fail", "release"]
        settlements = [
            Settlement(lease.receipt, outcomes[number % 4])  # type: ignore[arg-type]
            for number, lease in enumerate(leases)
        ]
        assert await queue.engine.settle(settlements) == []
        settled = {"delayed": 100, "ready": 100, "reserved": 0, "buried": 100, "done": 100}
        assert await queue.counts() == settled

    async def test_nothing_to_settle(self, queue: Queue) -> None:
        assert await queue.engine.settle([]) == []
