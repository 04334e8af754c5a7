"""inspect: a job as shown, pages of jobs, figures."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest

from kqs.errors import NotFound
from kqs.ports import Selection

from .control import NO_IDS
from .harness import Cases, Queue, new_job


def _time(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


class InspectCases(Cases):
    async def test_a_ready_job_as_shown(self, queue: Queue) -> None:
        id = await queue.put_one("mail", b'{"a":1}', prio="low", ttr=2.5)
        now = datetime.fromtimestamp(queue.harness.now() / 1e6, UTC)
        view = await queue.view(id)
        times = [_time(view.pop(name)) for name in ("inserted_at", "due_at")]
        assert view == {
            "id": id,
            "type": "mail",
            "state": "ready",
            "prio": "low",
            "attempt": 0,
            "ttr": 2.5,
            "size": 7,
        }
        assert all(abs(time - now) < timedelta(seconds=5) for time in times)

    async def test_a_delayed_job_shows_when_it_is_due(self, queue: Queue) -> None:
        view = await queue.view(await queue.put_one(delay=90))
        assert view["state"] == "delayed"
        assert _time(view["due_at"]) - _time(view["inserted_at"]) == timedelta(seconds=90)

    async def test_a_reserved_job_shows_its_lease(self, queue: Queue) -> None:
        id = await queue.put_one(ttr=40)
        await queue.advance(7)
        await queue.take_one(holder="w7")
        view = await queue.view(id)
        assert (view["state"], view["leased_by"], view["attempt"]) == ("reserved", "w7", 1)
        assert _time(view["lease_expires_at"]) - _time(view["started_at"]) == timedelta(seconds=40)
        assert _time(view["started_at"]) - _time(view["inserted_at"]) >= timedelta(seconds=7)

    async def test_a_job_that_is_done_shows_its_end(self, queue: Queue) -> None:
        id = await queue.put_one()
        lease = await queue.take_one()
        await queue.advance(3)
        await queue.settle(lease)
        view = await queue.view(id)
        assert (view["state"], view["outcome"], view["attempt"]) == ("done", "ok", 1)
        assert _time(view["finished_at"]) - _time(view["started_at"]) >= timedelta(seconds=3)
        assert "leased_by" not in view

    async def test_data_is_shown_when_asked_for(self, queue: Queue) -> None:
        text = await queue.put_one(data=b'{"b":[1,null],"a":"\xc3\xa9"}')
        data = bytes(range(256))
        binary = await queue.put_one(data=data, binary=True)
        assert "data" not in await queue.view(text)
        assert (await queue.view(text, data=True))["data"] == {"b": [1, None], "a": "\u00e9"}
        view = await queue.view(binary, data=True)
        assert view["data64"] == b64encode(data).decode()
        assert "data" not in view
        assert view["size"] == 256

    @pytest.mark.parametrize("id", NO_IDS)
    async def test_no_job_is_shown_for_ids_nobody_was_given(self, queue: Queue, id: str) -> None:
        queue.require("inspect")
        await queue.put_one()
        with pytest.raises(NotFound):
            await queue.engine.job(id)

    async def test_pages_hold_every_job_once_in_order(self, queue: Queue) -> None:
        queue.require("inspect")
        ids = await queue.put(*(new_job() for _ in range(23)))
        for limit in (1, 5, 22, 23, 24):
            found: list[str] = []
            after: str | None = None
            pages = 0
            while True:
                page, after = await queue.engine.jobs(state=None, type=None, limit=limit, after=after)
                assert len(page) <= limit
                found += [view["id"] for view in page]
                pages += 1
                if after is None:
                    break
            assert found == ids
            assert pages == -(-23 // limit)

    async def test_pages_can_be_narrowed_by_state_and_type(self, queue: Queue) -> None:
        queue.require("inspect")
        ids = await queue.put(*(new_job("ab"[number % 2], delay=60 * (number % 3)) for number in range(12)))
        await queue.engine.control("bury", Selection(ids[:2]))

        async def find(state: str | None, type: str | None) -> list[str]:
            page, after = await queue.engine.jobs(state=state, type=type, limit=50, after=None)
            assert after is None
            return [view["id"] for view in page]

        assert await find("buried", None) == ids[:2]
        assert await find("ready", None) == [ids[3], ids[6], ids[9]]
        assert await find(None, "a") == ids[::2]
        assert await find("delayed", "b") == [ids[5], ids[7], ids[11]]
        assert await find("reserved", None) == []
        assert await find(None, "none") == []
        lease = await queue.take_one()
        assert await find("reserved", None) == [lease.id]
        await queue.settle(lease)
        assert await find("done", None) == [lease.id]
        assert await find("done", "none") == []
        assert lease.id not in await find(None, None)

    async def test_paging_goes_on_after_a_job_that_is_gone(self, queue: Queue) -> None:
        queue.require("inspect")
        ids = await queue.put(*(new_job() for _ in range(6)))
        page, after = await queue.engine.jobs(state="ready", type=None, limit=2, after=None)
        assert [view["id"] for view in page] == ids[:2]
        await queue.engine.control("delete", Selection([ids[1], ids[2]]))
        page, _after = await queue.engine.jobs(state="ready", type=None, limit=2, after=after)
        assert [view["id"] for view in page] == ids[3:5]

    async def test_paging_after_something_that_is_no_id(self, queue: Queue) -> None:
        queue.require("inspect")
        await queue.put_one()
        with pytest.raises(NotFound):
            await queue.engine.jobs(state=None, type=None, limit=5, after="none")

    async def test_figures_count_by_state_and_type(self, queue: Queue) -> None:
        none = {"delayed": 0, "ready": 0, "reserved": 0, "buried": 0, "done": 0}
        assert await queue.counts() == none
        ids = await queue.put(new_job("a"), new_job("a"), new_job("a", delay=9), new_job("b"), new_job("b"))
        await queue.engine.control("bury", Selection([ids[3]]))
        leases = await queue.take(2, ["a"])
        await queue.settle(leases[0])
        stats = await queue.engine.stats()
        assert stats["jobs"] == {"delayed": 1, "ready": 1, "reserved": 1, "buried": 1, "done": 1}
        assert stats["types"]["a"] == {**none, "delayed": 1, "reserved": 1, "done": 1}
        assert stats["types"]["b"] == {**none, "ready": 1, "buried": 1}
        only = await queue.engine.stats("b")
        assert list(only["types"]) == ["b"]
        assert only["jobs"] == only["types"]["b"]
        assert (await queue.engine.stats("none"))["jobs"] == none

    async def test_ready_types_are_those_that_have_ready_jobs(self, queue: Queue) -> None:
        assert dict(await queue.engine.ready_types()) == {}
        await queue.put(new_job("a"), new_job("a"), new_job("b"), new_job("c", delay=5))
        assert dict(await queue.engine.ready_types()) == {"a": 2, "b": 1}
        assert dict(await queue.engine.ready_types(lambda type_: type_ != "a")) == {"b": 1}
        await queue.take(1, ["b"])
        assert dict(await queue.engine.ready_types()) == {"a": 2}
        await queue.advance(5 + queue.harness.slack)
        assert dict(await queue.engine.ready_types()) == {"a": 2, "c": 1}

    async def test_the_age_of_the_oldest_ready_job(self, queue: Queue) -> None:
        assert (await queue.engine.stats())["oldest_ready_age"] is None
        await queue.put_one()
        await queue.advance(30)
        await queue.put_one("young")
        assert 30 <= (await queue.engine.stats())["oldest_ready_age"] < 35
        await queue.take_one(["t"])
        assert (await queue.engine.stats())["oldest_ready_age"] < 5
        await queue.take_one()
        assert (await queue.engine.stats())["oldest_ready_age"] is None

    async def test_the_longest_ttr_of_the_leases_that_are_out(self, queue: Queue) -> None:
        assert queue.engine.longest_ttr == 0
        await queue.put(new_job(ttr=5), new_job(ttr=70), new_job(ttr=900))
        leases = await queue.take(2)
        assert queue.engine.longest_ttr == 70
        await queue.settle(leases[1])
        assert queue.engine.longest_ttr == 5
        await queue.settle(leases[0])
        assert queue.engine.longest_ttr == 0
