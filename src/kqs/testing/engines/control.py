"""control: kick, bury and delete by hand, all of the ids or none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kqs.errors import Conflict, NotFound
from kqs.ports import Selection

from .harness import Cases, Queue, new_job

#: State -> what may be done by hand, and the state that follows.
ALLOWED = {
    "delayed": {"kick": "ready", "bury": "buried", "delete": "done"},
    "ready": {"bury": "buried", "delete": "done"},
    "reserved": {"bury": "buried", "delete": "done"},
    "buried": {"kick": "ready", "delete": "done"},
    "done": {},
}
PAIRS = [(state, verb) for state in ALLOWED for verb in ("kick", "bury", "delete")]
NO_IDS = ["", "x", "-", "1", "../1", "\u0661", "9" * 5000, "00000000-1", "None"]


class ControlCases(Cases):
    async def _in_state(self, queue: Queue, state: str) -> str:
        """A job that was brought into a state; returns its id."""
        id = await queue.put_one("own", delay=60 if state == "delayed" else 0)
        if state in ("reserved", "done"):
            lease = await queue.take_one(["own"])
            if state == "done":
                assert await queue.settle(lease) is None
        elif state == "buried":
            assert await queue.engine.control("bury", Selection([id])) == 1
        assert await queue.state(id) == state
        return id

    @pytest.mark.parametrize(("state", "verb"), PAIRS)
    async def test_each_verb_in_each_state(self, queue: Queue, state: str, verb: str) -> None:
        id = await self._in_state(queue, state)
        after = ALLOWED[state].get(verb)
        if after is not None:
            assert await queue.engine.control(verb, Selection([id])) == 1
            assert await queue.state(id) == after
        else:
            before = await queue.view(id)
            with pytest.raises((Conflict, NotFound) if state == "done" else Conflict):
                await queue.engine.control(verb, Selection([id]))
            assert await queue.view(id) == before
        given = await queue.take_ids()
        assert given == ([id] if (after or state) == "ready" else [])

    async def test_a_kicked_job_is_ready_in_its_old_place(self, queue: Queue) -> None:
        buried, delayed, ready = await queue.put(new_job(), new_job(delay=60), new_job())
        await queue.engine.control("bury", Selection([buried]))
        assert await queue.engine.control("kick", Selection([delayed, buried])) == 2
        assert await queue.take_ids() == [buried, delayed, ready]

    async def test_kicked_jobs_are_announced(self, queue: Queue) -> None:
        id = await queue.put_one("a", delay=60)
        told: list[str] = []

        def notify(types: Sequence[str]) -> None:
            told.extend(types)

        queue.engine.on_ready(notify)
        await queue.engine.control("kick", Selection([id]))
        assert told == ["a"]

    async def test_a_kicked_job_runs_again_although_its_attempts_were_used_up(self, queue: Queue) -> None:
        id = await queue.put_one(max_attempts=1)
        await queue.settle(await queue.take_one(), "again")
        await queue.engine.control("kick", Selection([id]))
        lease = await queue.take_one()
        assert (lease.id, lease.attempt) == (id, 2)
        assert await queue.settle(lease) is None

    async def test_burying_by_hand_is_no_attempt(self, queue: Queue) -> None:
        await queue.put_one()
        assert await queue.engine.control("bury", Selection(type="t")) == 1
        assert await queue.engine.control("kick", Selection(type="t")) == 1
        assert (await queue.take_one()).attempt == 1

    async def test_a_buried_job_says_so(self, queue: Queue) -> None:
        id = await queue.put_one()
        await queue.engine.control("bury", Selection([id]))
        assert "by hand" in (await queue.view(id))["last_error"]["message"]

    @pytest.mark.parametrize("verb", ["bury", "delete"])
    async def test_a_worker_whose_job_was_taken_away_is_told(self, queue: Queue, verb: str) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        await queue.engine.control(verb, Selection([id]))
        assert queue.engine.held_by("worker") == []
        assert await queue.engine.renew([lease.receipt]) == ["lost"]
        assert await queue.settle(lease) == "stale_receipt"
        assert await queue.run_out(lease.ttr) == []
        assert await queue.state(id) == ALLOWED["reserved"][verb]

    async def test_a_deleted_job_never_runs(self, queue: Queue) -> None:
        ids = await queue.put(new_job(), new_job(delay=5), new_job())
        assert await queue.engine.control("delete", Selection(ids[:2])) == 2
        await queue.advance(100)
        assert await queue.take_ids() == [ids[2]]
        assert (await queue.view(ids[0]))["outcome"] == "deleted"

    @pytest.mark.parametrize("verb", ["kick", "bury", "delete"])
    @pytest.mark.parametrize("id", NO_IDS)
    async def test_nothing_is_done_to_ids_nobody_was_given(self, queue: Queue, verb: str, id: str) -> None:
        mine = await queue.put_one()
        with pytest.raises(NotFound):
            await queue.engine.control(verb, Selection([id]))
        assert await queue.state(mine) == "ready"

    async def test_one_id_that_cannot_be_and_nothing_is_done(self, queue: Queue) -> None:
        ready, buried, delayed = await queue.put(new_job(), new_job(), new_job(delay=60))
        await queue.engine.control("bury", Selection([buried]))
        before = await queue.everything()
        for verb, ids in (
            ("kick", [buried, delayed, ready]),
            ("bury", [ready, delayed, buried]),
            ("delete", [ready, buried, delayed, "none"]),
        ):
            with pytest.raises((Conflict, NotFound)):
                await queue.engine.control(verb, Selection(ids))
            assert await queue.everything() == before

    async def test_an_id_given_twice_counts_once(self, queue: Queue) -> None:
        id = await queue.put_one()
        assert await queue.engine.control("bury", Selection([id, id])) == 1
        assert await queue.engine.control("delete", Selection([id, id])) == 1

    async def test_no_ids(self, queue: Queue) -> None:
        assert await queue.engine.control("delete", Selection([])) == 0

    @pytest.mark.parametrize("verb", ["bury", "delete"])
    async def test_by_type_those_that_wait(self, queue: Queue, verb: str) -> None:
        ids = await queue.put(new_job("a"), new_job("a", delay=60), new_job("b"), new_job("a"))
        lease = await queue.take_one(["a"])
        assert await queue.engine.control(verb, Selection(type="a")) == 2
        after = {"bury": "buried", "delete": "done"}[verb]
        assert await queue.states(ids) == ["reserved", after, "ready", after]
        assert await queue.settle(lease) is None

    async def test_kick_all_that_are_buried(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job(f"t{number % 3}") for number in range(3000)), new_job("d", delay=60))
        await queue.engine.control("bury", Selection(ids[:-1]))
        assert await queue.engine.control("kick", Selection(limit=10)) == 10
        assert await queue.engine.control("kick", Selection(type="t1")) == 997
        assert await queue.engine.control("kick", Selection()) == 1993
        assert (await queue.counts())["ready"] == 3000
        assert await queue.engine.control("kick", Selection(state="delayed")) == 1
        taken = await queue.take_ids(5000)
        assert sorted(taken) == sorted(ids)
        assert [id for id in taken if id in set(ids[:-1:3])] == ids[:-1:3]

    async def test_by_age(self, queue: Queue) -> None:
        old = await queue.put_one("a")
        await queue.advance(100)
        new = await queue.put_one("a")
        assert await queue.engine.control("delete", Selection(type="a", older=50)) == 1
        assert await queue.states([old, new]) == ["done", "ready"]

    @pytest.mark.parametrize(("verb", "state"), [("kick", "ready"), ("bury", "buried"), ("delete", "done")])
    async def test_a_state_that_cannot_take_the_verb(self, queue: Queue, verb: str, state: str) -> None:
        with pytest.raises(Conflict) as refused:
            await queue.engine.control(verb, Selection(state=state))
        assert refused.value.field == "state"
