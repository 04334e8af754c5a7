"""Fair share, weights and limits: nobody's backlog holds up everybody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from kqs.core.shares import NO_SHARE, Share, Shares
from kqs.ports import Lease, Selection

from .harness import Cases, Queue, new_job


def shares(
    types: dict[str, Share] | None = None,
    classes: dict[str, Share] | None = None,
    keys: dict[str, Share] | None = None,
    class_of: dict[str, str] | None = None,
    **rest: str,
) -> Shares:
    """Settings of the scheduler from plain dicts."""
    types, keys, class_of = types or {}, keys or {}, class_of or {}
    return Shares(
        of_type=lambda type_: (class_of.get(type_), types.get(type_, NO_SHARE)),
        classes=classes or {},
        of_key=lambda key: keys.get(key, NO_SHARE),
        **rest,  # type: ignore[arg-type]
    )


class FairCases(Cases):
    needs = "fair_share"

    async def _run(self, queue: Queue, count: int, took: float = 1.0) -> Counter[str]:
        """Run that many jobs one at a time; how many there were by payload."""
        ran: Counter[str] = Counter()
        for _ in range(count):
            lease = await queue.take_one()
            await queue.harness.advance(took)
            assert await queue.settle(lease, "ok", took=took) is None
            ran[lease.data.decode()] += 1
        return ran

    async def test_a_backlog_does_not_hold_up_another_key(self, queue: Queue) -> None:
        await queue.put(*(new_job(data=b"1", fair="A") for _ in range(500)))
        await self._run(queue, 20)
        await queue.put(*(new_job(data=b"2", fair="B") for _ in range(20)))
        assert (await self._run(queue, 40))["2"] in (19, 20)

    async def test_a_type_is_a_lane_too(self, queue: Queue) -> None:
        await queue.put(*(new_job("a", b"1") for _ in range(100)), *(new_job("b", b"2") for _ in range(20)))
        assert (await self._run(queue, 30))["2"] in (14, 15, 16)

    async def test_inside_a_lane_the_oldest_is_first(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job("a", fair=f"k{number % 3}") for number in range(30)))
        taken = await queue.take_ids()
        assert sorted(taken) == sorted(ids)
        for key in range(3):
            lane = ids[key::3]
            assert [id for id in taken if id in lane] == lane

    async def test_worker_time_counts_and_not_the_number_of_jobs(self, queue: Queue) -> None:
        await queue.put(*(new_job("slow") for _ in range(300)), *(new_job("fast") for _ in range(300)))
        spent: Counter[str] = Counter()
        for _ in range(200):
            lease = await queue.take_one()
            took = {"slow": 10.0, "fast": 1.0}[lease.type]
            await queue.harness.advance(took)
            assert await queue.settle(lease, "ok", took=took) is None
            spent[lease.type] += int(took)
        assert 0.8 < spent["slow"] / spent["fast"] < 1.25

    async def test_what_a_worker_says_of_the_time_is_at_most_what_it_held_the_lease(
        self, queue: Queue
    ) -> None:
        await queue.put(*(new_job("a") for _ in range(50)), *(new_job("b") for _ in range(50)))
        taken: Counter[str] = Counter()
        for _ in range(40):
            lease = await queue.take_one()
            await queue.harness.advance(1)
            assert await queue.settle(lease, "ok", took=1000 if lease.type == "a" else 1) is None
            taken[lease.type] += 1
        assert abs(taken["a"] - taken["b"]) <= 2

    async def test_weights(self, queue: Queue) -> None:
        queue.engine.arrange(shares(types={"b": Share(3)}, keys={"K": Share(2)}))
        jobs = [new_job("a", b"1"), new_job("b", b"2"), new_job("a", b"3", fair="K")]
        await queue.put(*(job for job in jobs for _ in range(120)))
        ran = await self._run(queue, 120)
        assert (ran["1"], ran["2"], ran["3"]) == pytest.approx((20, 60, 40), abs=3)

    async def test_first_in_first_out_whoever_it_belongs_to(self, queue: Queue) -> None:
        queue.engine.arrange(shares(order="fifo"))
        ids = await queue.put(*(new_job(f"t{number % 7}", fair=f"k{number % 3}") for number in range(50)))
        assert await queue.take_ids() == ids

    async def test_weighted_priorities_starve_nobody(self, queue: Queue) -> None:
        queue.engine.arrange(shares(priority="weighted"))
        await queue.put(*(new_job(data=b"1", prio="urgent") for _ in range(200)))
        await queue.put(*(new_job(data=b"2", prio="bulk") for _ in range(200)))
        ran = await self._run(queue, 170)
        assert ran["2"] == pytest.approx(10, abs=2)

    # -- limits ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("of", ["type", "class", "key"])
    async def test_no_more_run_than_may(self, queue: Queue, of: str) -> None:
        two = Share(concurrency=2)
        limits = {"type": shares({"a": two}), "key": shares(keys={"K": two})}
        limits["class"] = shares(classes={"c": two}, class_of={"a": "c", "b": "c"})
        queue.engine.arrange(limits[of])
        key = "K" if of == "key" else None
        await queue.put(
            *(new_job("b" if number % 2 and of != "type" else "a", fair=key) for number in range(12))
        )
        await queue.put_one("other")
        leases = await queue.take(100)
        assert Counter(lease.type == "other" for lease in leases) == {False: 2, True: 1}
        held = [lease for lease in leases if lease.type != "other"]
        assert await queue.take(100) == []
        ends = [("ok", {}), ("again", {"delay": 0}), ("fail", {}), ("release", {})]
        for outcome, rest in ends:
            assert await queue.settle(held.pop(0), outcome, **rest) is None
            held += await queue.take(100)
            assert len(held) == 2, outcome
        await queue.engine.rescue([held.pop(0).receipt], reason="its worker is gone")
        held += await queue.take(100)
        for verb in ("delete", "bury", "cancel"):
            await queue.engine.control(verb, Selection([held[0].id]))
            if verb == "cancel":
                assert await queue.take(100) == []  # it runs on until its worker lets go
                assert await queue.settle(held[0], "again") is None
            del held[0]
            held += await queue.take(100)
            assert len(held) == 2, verb

    async def test_a_type_that_may_run_again_is_announced(self, queue: Queue) -> None:
        queue.engine.arrange(shares({"a": Share(concurrency=1)}))
        await queue.put(new_job("a"), new_job("a"))
        lease = await queue.take_one()
        assert await queue.take() == []
        assert dict(await queue.engine.ready_types()) == {}
        told: list[str] = []

        def notify(types: Sequence[str]) -> None:
            told.extend(types)

        queue.engine.on_ready(notify)
        assert await queue.settle(lease) is None
        assert told == ["a"]
        assert dict(await queue.engine.ready_types()) == {"a": 1}

    @pytest.mark.parametrize("way", ["restart", "crash"])
    async def test_limits_hold_across_a_restart(self, queue: Queue, way: str) -> None:
        limits = shares({"a": Share(concurrency=3)}, keys={"K": Share(rate=1, burst=5)})
        queue.engine.arrange(limits)
        await queue.put(*(new_job("a") for _ in range(10)), *(new_job("b", fair="K") for _ in range(20)))
        await queue.advance(60)
        leases = await queue.take(100)
        assert Counter(lease.type for lease in leases) == {"a": 3, "b": 5}
        await queue.engine.settle([])  # what is leased is in the journal
        await queue.restart(way)
        queue.engine.arrange(limits)
        assert await queue.take(100) == [], "three run still, and nobody knows when the last of K began"
        assert await queue.settle(next(lease for lease in leases if lease.type == "a")) is None
        assert [lease.type for lease in await queue.take(100)] == ["a"]

    async def test_a_rate(self, queue: Queue) -> None:
        queue.engine.arrange(shares({"a": Share(rate=2, burst=4)}))
        await queue.put(*(new_job("a") for _ in range(40)))
        await queue.advance(60)
        assert len(await queue.take(100)) == 4
        begun = 0
        for _ in range(10):
            await queue.advance(0.5 + queue.harness.slack)
            begun += len(await queue.take(100))
        assert 10 <= begun <= 11 + 20 * queue.harness.slack
        wake = queue.engine.next_wake()
        assert wake is not None
        assert wake <= queue.harness.now() + 500_000

    async def test_limits_change_while_jobs_run(self, queue: Queue) -> None:
        queue.engine.arrange(shares({"a": Share(concurrency=4)}))
        await queue.put(*(new_job("a") for _ in range(20)))
        held: list[Lease] = await queue.take(100)
        assert len(held) == 4
        queue.engine.arrange(shares({"a": Share(concurrency=2)}))
        for left in (3, 2):
            assert await queue.settle(held.pop()) is None
            assert await queue.take(100) == []
            assert len(held) == left
        assert await queue.settle(held.pop()) is None
        assert len(await queue.take(100)) == 1
        queue.engine.arrange(shares())
        assert len(await queue.take(100)) == 20 - 4 - 1

    # -- showing --------------------------------------------------------------------------------

    async def test_a_fairness_key_is_shown_and_found(self, queue: Queue) -> None:
        one, _other, _none = await queue.put(new_job(fair="K"), new_job(fair="L"), new_job())
        assert (await queue.view(one))["fair"] == "K"
        await queue.restart()
        page, _after = await queue.engine.jobs(state=None, type=None, fair="K", limit=10, after=None)
        assert [job["id"] for job in page] == [one]
        leases = await queue.take(10)
        assert await queue.settle(next(lease for lease in leases if lease.id == one)) is None
        page, _after = await queue.engine.jobs(state="done", type=None, fair="K", limit=10, after=None)
        assert [job["id"] for job in page] == [one]
