"""Unique jobs: at most one of a type and key stands, whatever happens and to whichever of them."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

from kqs.core.job import NewJob, Unique, UniqueScope
from kqs.core.retry import RetryPolicy
from kqs.errors import Conflict
from kqs.ports import Selection

from .harness import Cases, Queue, new_job

SCOPES: tuple[UniqueScope, ...] = ("queued", "queued_or_running")
scopes = pytest.mark.parametrize("scope", SCOPES)
ways = pytest.mark.parametrize("way", ["", "restart", "crash"])
#: How a lease ends, so that its job waits again.
COME_BACK = ("again", "again later", "release", "release later", "rescue", "died")
AT_ONCE = RetryPolicy("fixed", base=0, jitter=0)


def unique(scope: UniqueScope = "queued_or_running", name: str = "u", **settings: Any) -> NewJob:
    """A job with a unique key."""
    return new_job(unique=Unique(name, scope), **settings)


async def come_back(queue: Queue, receipt: str, how: str) -> None:
    """End a lease so that its job would wait again."""
    if how in ("rescue", "died"):
        await queue.engine.rescue([receipt], died=how == "died", reason="it broke")
    else:
        outcome, _, later = how.partition(" ")
        delay = 500 if later else 0
        assert await queue.settle(receipt, outcome, delay=delay, reason="it broke") is None


class UniqueCases(Cases):
    needs = "unique"

    async def _insert(self, queue: Queue, job: NewJob) -> tuple[str, bool]:
        """The id an insert is answered with, and whether that is of a job that stood."""
        before = sum((await queue.counts()).values())
        inserted = await queue.engine.put([job])
        assert sum((await queue.counts()).values()) - before == (not inserted.duplicates)
        assert inserted.duplicates in ((), (0,))
        return inserted.ids[0], bool(inserted.duplicates)

    async def _stands(self, queue: Queue, id: str) -> None:
        """An insert with the key of this job, of either scope, gives this job."""
        for scope in SCOPES:
            assert await self._insert(queue, unique(scope)) == (id, True)

    async def _is_free(self, queue: Queue) -> str:
        """An insert with the key is inserted; returns its id."""
        id, duplicate = await self._insert(queue, unique("queued"))
        assert not duplicate
        return id

    async def _not_unique(self, queue: Queue, id: str, other: str) -> None:
        """A job is buried, because another one stands."""
        view = await queue.view(id)
        assert (view["state"], view["last_error"]["kind"]) == ("buried", "unique")
        assert other in view["last_error"]["message"]

    # -- standing -------------------------------------------------------------------------------

    @scopes
    @ways
    @pytest.mark.parametrize("delay", [0, 100])
    async def test_it_stands_while_it_waits(
        self, queue: Queue, scope: UniqueScope, way: str, delay: int
    ) -> None:
        [id] = await queue.put(unique(scope, data=b"1", delay=delay))
        if way:
            await queue.restart(way)
        await self._stands(queue, id)
        await queue.advance(delay + queue.harness.slack)
        await self._stands(queue, id)
        lease = await queue.take_one()
        assert (lease.id, lease.data) == (id, b"1")
        assert await queue.take() == []

    @ways
    async def test_it_stands_while_it_runs_by_the_scope_of_the_one_that_stands(
        self, queue: Queue, way: str
    ) -> None:
        runs, ran = await queue.put(unique(), unique("queued", "v"))
        await queue.take(2)
        if way:
            await queue.restart(way)
        await self._stands(queue, runs)
        for scope in SCOPES:
            [other] = await queue.put(unique(scope, "v"))
            assert await self._insert(queue, unique("queued", "v")) == (other, True)
            await queue.engine.control("delete", Selection([other]))
        assert await queue.states([runs, ran]) == ["reserved", "reserved"]

    @scopes
    @ways
    @pytest.mark.parametrize("end", ["ok", "fail", "bury it", "delete it", "bury", "delete"])
    async def test_it_stands_no_more_when_it_is_done_or_buried(
        self, queue: Queue, scope: UniqueScope, way: str, end: str
    ) -> None:
        [id] = await queue.put(unique(scope))
        verb, _, waits = end.partition(" ")
        lease = None if waits else await queue.take_one()
        if lease is not None and end in ("ok", "fail"):
            assert await queue.settle(lease, end) is None
        else:
            await queue.engine.control(verb, Selection([id]))
        if way:
            await queue.restart(way)
        other = await self._is_free(queue)
        assert other != id
        await self._stands(queue, other)

    @scopes
    async def test_one_that_has_no_attempts_left_stands_no_more(
        self, queue: Queue, scope: UniqueScope
    ) -> None:
        [id] = await queue.put(unique(scope, max_attempts=1))
        assert await queue.settle(await queue.take_one(), "again") is None
        assert await self._is_free(queue) != id

    @scopes
    async def test_one_that_expires_stands_no_more(self, queue: Queue, scope: UniqueScope) -> None:
        queue.require("expiry")
        [id] = await queue.put(unique(scope, expires=10))
        await queue.advance(9)
        await self._stands(queue, id)
        await queue.advance(1 + queue.harness.slack)
        assert await queue.state(id) == "buried"
        assert await self._is_free(queue) != id

    @scopes
    @ways
    async def test_a_cancelled_one_stands_until_it_ends(
        self, queue: Queue, scope: UniqueScope, way: str
    ) -> None:
        queue.require("cancel")
        [id] = await queue.put(unique(scope))
        await queue.engine.control("cancel", Selection([id]))
        [id] = await queue.put(unique("queued_or_running"))
        lease = await queue.take_one()
        await queue.engine.control("cancel", Selection([id]))
        if way:
            await queue.restart(way)
        await self._stands(queue, id)
        assert await queue.settle(lease, "again") is None
        assert await queue.state(id) == "done"
        assert await self._is_free(queue) != id

    async def test_keys_and_types_are_told_apart(self, queue: Queue) -> None:
        jobs = [unique(name=name, type=type_) for name in ("u", "U", "\N{SNOWMAN}") for type_ in ("a", "b")]
        ids = await queue.put(*jobs)
        again = await queue.engine.put(jobs)
        assert (again.ids, again.duplicates) == (ids, tuple(range(6)))

    async def test_it_is_shown(self, queue: Queue) -> None:
        plain, long, short = await queue.put(new_job(), unique(), unique("queued", "v"))
        views = [await queue.view(id) for id in (plain, long, short)]
        assert [view.get("unique") for view in views] == [None, "u", "v"]
        assert [view.get("unique_scope") for view in views] == [None, None, "queued"]

    # -- inserts --------------------------------------------------------------------------------

    async def test_a_batch_tells_which_are_duplicates(self, queue: Queue) -> None:
        [first] = await queue.put(unique())
        jobs = [new_job(), unique(name="v"), unique("queued"), unique("queued", "v"), new_job()]
        inserted = await queue.engine.put(jobs)
        assert inserted.duplicates == (2, 3)
        assert inserted.ids[2:4] == [first, inserted.ids[1]]
        assert len(set(inserted.ids)) == 4
        assert await queue.take_ids() == [first, *inserted.ids[:2], inserted.ids[4]]

    @scopes
    async def test_callers_at_the_same_time_get_one_job(self, queue: Queue, scope: UniqueScope) -> None:
        async def insert() -> tuple[str, tuple[int, ...], str]:
            inserted = await queue.engine.put([new_job("other"), unique(scope)])
            return inserted.ids[1], inserted.duplicates, await queue.state(inserted.ids[1])

        answers = await asyncio.gather(*(insert() for _ in range(20)))
        assert len({id for id, _duplicates, _state in answers}) == 1
        assert sorted(duplicates for _id, duplicates, _state in answers) == [(), *[(1,)] * 19]
        assert {state for _id, _duplicates, state in answers} == {"ready"}
        assert (await queue.counts())["ready"] == 21

    async def test_inserts_among_those_who_work(self, queue: Queue) -> None:
        """Callers insert while workers take and end: there are never two, and each key has run at the end."""
        running: list[str] = []
        ran: set[str] = set()

        async def insert(number: int) -> None:
            for turn in count():
                if turn >= 10 and len(ran) > 3:
                    return
                inserted = await queue.engine.put([unique(data=b'"%d"' % number), new_job("rest")])
                assert inserted.duplicates in ((), (0,))
                if turn % 3 == number % 3:
                    await asyncio.sleep(0)

        async def work(number: int) -> None:
            for turn in count():
                if turn > 20 and inserts.done():
                    return
                for lease in await queue.take(1, ["t"]):
                    running.append(lease.id)
                    assert len(running) == 1
                    await asyncio.sleep(0)
                    running.remove(lease.id)
                    ran.add(lease.id)
                    await queue.settle(lease, ("ok", "again", "release", "fail")[turn % 4], delay=0)
                views, _after = await queue.engine.jobs(state=None, type="t", limit=1000, after=None)
                assert sum(view["state"] != "buried" for view in views) <= 1
                await asyncio.sleep(0)

        inserts = asyncio.gather(*map(insert, range(6)))
        async with asyncio.timeout(60):
            await asyncio.gather(inserts, *map(work, range(3)))

    async def test_the_idempotency_key_is_looked_at_first(self, queue: Queue) -> None:
        queue.require("idempotency")
        [done] = await queue.put(unique(key="a"))
        assert await queue.settle(await queue.take_one()) is None
        [stands] = await queue.put(unique())
        assert await self._insert(queue, unique(key="a")) == (done, True)
        assert await self._insert(queue, unique(key="b")) == (stands, True)
        assert await queue.settle(await queue.take_one()) is None
        id, duplicate = await self._insert(queue, unique(key="b"))
        assert not duplicate  # what inserted nothing left no key behind
        assert await self._insert(queue, unique(name="v", key="b")) == (id, True)

    async def test_keys_of_both_kinds_in_one_batch(self, queue: Queue) -> None:
        queue.require("idempotency")
        names = (("u", "a"), ("v", "a"), ("u", "b"), ("w", "b"), ("v", "c"))
        inserted = await queue.engine.put([unique(name=name, key=key) for name, key in names])
        first = inserted.ids[0]
        assert inserted.duplicates == (1, 2)
        assert inserted.ids[:3] == [first] * 3
        assert len(set(inserted.ids)) == 3

    # -- coming back ----------------------------------------------------------------------------

    @scopes
    @ways
    @pytest.mark.parametrize("how", COME_BACK)
    async def test_one_that_comes_back_stands(
        self, queue: Queue, scope: UniqueScope, how: str, way: str
    ) -> None:
        [id] = await queue.put(unique(scope, retry=AT_ONCE))
        await come_back(queue, (await queue.take_one()).receipt, how)
        if way:
            await queue.restart(way)
        assert await queue.state(id) == ("delayed" if "later" in how else "ready")
        await self._stands(queue, id)

    @scopes
    @ways
    @pytest.mark.parametrize("how", COME_BACK)
    @pytest.mark.parametrize("runs", [False, True])
    async def test_one_that_comes_back_beside_another_is_buried(
        self, queue: Queue, scope: UniqueScope, how: str, way: str, runs: bool
    ) -> None:
        [id] = await queue.put(unique("queued", retry=AT_ONCE))
        lease = await queue.take_one()
        [other] = await queue.put(unique(scope, retry=AT_ONCE))
        if way == "restart":
            await queue.restart(way)
        if runs:
            await queue.take(1)
        await come_back(queue, lease.receipt, how)
        if way:
            await queue.restart("crash")
        if runs and scope == "queued":  # the other one runs as well, and so does not stand
            assert await queue.state(id) in ("ready", "delayed")
            await self._stands(queue, id)
            return
        await self._not_unique(queue, id, other)
        view = await queue.view(id)
        assert view["attempt"] == (0 if how.startswith("release") else 1)
        if not how.startswith("release"):
            assert "it broke" in view["last_error"]["message"]
        await self._stands(queue, other)
        assert await queue.state(other) == ("reserved" if runs else "ready")

    async def test_a_settlement_that_buries_may_be_repeated(self, queue: Queue) -> None:
        await queue.put(unique("queued"))
        lease = await queue.take_one()
        await queue.put(unique())
        for _ in range(2):
            assert await queue.settle(lease, "again") is None
        assert await queue.settle(lease, "release") == "stale_receipt"

    async def test_of_several_that_come_back_the_first_does(self, queue: Queue) -> None:
        ids, receipts = [], []
        for _ in range(3):
            ids += await queue.put(unique("queued"))
            receipts.append((await queue.take_one()).receipt)
        await queue.engine.rescue([receipts[1], receipts[0], receipts[2]])
        assert await queue.states(ids) == ["buried", "ready", "buried"]
        await self._not_unique(queue, ids[0], ids[1])

    async def test_other_reasons_to_be_buried_come_first(self, queue: Queue) -> None:
        ids, leases = [], []
        for most in (1, 0):
            ids += await queue.put(unique("queued", max_attempts=most))
            leases.append(await queue.take_one())
        await queue.put(unique())
        await queue.settle(leases[0], "again", reason="out of luck")
        await queue.settle(leases[1], "fail", reason="no such file")
        messages = [(await queue.view(id))["last_error"]["message"] for id in ids]
        assert "out of luck" in messages[0] and "no such file" in messages[1]
        assert not any("unique" in message for message in messages)

    @pytest.mark.parametrize("way", ["restart", "crash"])
    async def test_of_several_that_died_with_the_server_the_first_comes_back(
        self, queue: Queue, way: str
    ) -> None:
        ids = []
        for _ in range(3):
            ids += await queue.put(unique("queued"))
            await queue.take_one(local=True)
        await queue.restart(way)
        assert await queue.states(ids) == ["ready", "buried", "buried"]
        await self._not_unique(queue, ids[2], ids[0])
        await queue.restart(way)
        assert await queue.states(ids) == ["ready", "buried", "buried"]
        await self._stands(queue, ids[0])

    # -- by hand --------------------------------------------------------------------------------

    @scopes
    @ways
    async def test_a_kicked_one_stands(self, queue: Queue, scope: UniqueScope, way: str) -> None:
        [id] = await queue.put(unique(scope))
        await queue.engine.control("bury", Selection([id]))
        assert await queue.engine.control("kick", Selection([id])) == 1
        if way:
            await queue.restart(way)
        await self._stands(queue, id)

    @scopes
    async def test_a_delayed_one_that_is_kicked_is_in_nobodys_way(
        self, queue: Queue, scope: UniqueScope
    ) -> None:
        [id] = await queue.put(unique(scope, delay=100))
        assert await queue.engine.control("kick", Selection([id])) == 1
        assert await queue.state(id) == "ready"
        await self._stands(queue, id)

    @pytest.mark.parametrize("runs", [False, True])
    async def test_a_kick_by_id_is_refused_beside_another(self, queue: Queue, runs: bool) -> None:
        [id] = await queue.put(unique())
        await queue.engine.control("bury", Selection([id]))
        [other, plain] = await queue.put(unique(), new_job("plain"))
        await queue.engine.control("bury", Selection([plain]))
        if runs:
            await queue.take_one()
        before = await queue.view(id)
        for ids in ([id], [plain, id]):
            with pytest.raises(Conflict, match=other):
                await queue.engine.control("kick", Selection(ids))
        assert await queue.view(id) == before
        assert await queue.state(plain) == "buried"  # all of them or none

    async def test_two_of_one_key_are_not_kicked_together(self, queue: Queue) -> None:
        ids = []
        for _ in range(3):
            ids += await queue.put(unique())
            await queue.engine.control("bury", Selection([ids[-1]]))
        with pytest.raises(Conflict, match=ids[0]):
            await queue.engine.control("kick", Selection([ids[0], ids[1]]))
        assert await queue.states(ids) == ["buried"] * 3
        assert await queue.engine.control("kick", Selection([ids[1], ids[1]])) == 1
        await self._stands(queue, ids[1])

    @pytest.mark.parametrize("limit", [None, 1, 2, 3])
    async def test_a_kick_of_many_passes_over_them(self, queue: Queue, limit: int | None) -> None:
        ids = []
        for name in ("u", "u", "v", "u", None):
            ids += await queue.put(new_job() if name is None else unique(name=name))
            await queue.engine.control("bury", Selection([ids[-1]]))
        [other] = await queue.put(unique(name="v"))
        kicked = [ids[0], ids[4]][:limit]
        assert await queue.engine.control("kick", Selection(type="t", limit=limit)) == len(kicked)
        assert await queue.states(ids) == ["ready" if id in kicked else "buried" for id in ids]
        await queue.restart("crash")
        assert await queue.take_ids() == [*kicked, other]

    # -- for long -------------------------------------------------------------------------------

    @pytest.mark.parametrize("way", ["restart", "crash"])
    async def test_it_stands_however_much_comes_and_goes(self, queue: Queue, way: str) -> None:
        runs, ran = await queue.put(unique(name="runs"), unique("queued", "ran"))
        leases = await queue.take(2)
        waits, buried = await queue.put(unique(), unique("queued", "ran"))
        await queue.engine.control("bury", Selection([buried]))
        for _ in range(3):
            for _ in range(6):
                await queue.put(*(new_job("pass", b'"%s"' % (b"x" * 2000)) for _ in range(10)))
                for lease in await queue.take(10, ["pass"]):
                    await queue.settle(lease)
                await queue.advance(0)
            await queue.restart(way)
            await self._stands(queue, waits)
            assert await self._insert(queue, unique(name="runs")) == (runs, True)
            [other] = await queue.put(unique("queued", "ran"))
            assert await queue.engine.control("kick", Selection(state="buried")) == 0
            await queue.engine.control("delete", Selection([other]))
        assert await queue.states([runs, ran, waits, buried]) == ["reserved", "reserved", "ready", "buried"]
        for lease in leases:
            assert await queue.settle(lease) is None
