"""put: jobs go in whole, in order, and come out byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from kqs.errors import ShuttingDown

from .harness import Cases, Queue, new_job

EVERY_BYTE = bytes(range(256))
JSON_TEXTS = (
    b"null",
    b'{"a":1}',
    b' { "b" : 1.50 ,\t"a":[ ] , "a":2 } ',
    '{"text":"\u00e9\u4e16\U0001f600\\u00e9\\ud83d\\ude00"}'.encode(),
    b"1234567890123456789012345678901234567890e-5",
    b'"\\u0000"',
)


class PutCases(Cases):
    async def test_a_job_comes_out_as_it_went_in(self, queue: Queue) -> None:
        before = queue.harness.now()
        id = await queue.put_one("mail", b'{"to":"a"}', prio="high", ttr=12.5)
        lease = await queue.take_one()
        assert (lease.id, lease.type, lease.data, lease.binary) == (id, "mail", b'{"to":"a"}', False)
        assert (lease.prio, lease.ttr, lease.attempt, lease.bulk) == (1, 12.5, 1, None)
        assert before <= lease.inserted <= queue.harness.now()

    async def test_ids_are_distinct_and_in_the_order_of_the_jobs(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job(data=b"%d" % number) for number in range(50)))
        assert len(set(ids)) == 50
        leases = await queue.take(50)
        assert [(lease.id, lease.data) for lease in leases] == [
            (id, b"%d" % number) for number, id in enumerate(ids)
        ]

    @pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, 3_000_000])
    async def test_bytes_of_every_value_and_size_come_out_exactly(self, queue: Queue, size: int) -> None:
        data = (EVERY_BYTE * (size // 256 + 1))[:size]
        await queue.put(new_job(data=data, binary=True), new_job(data=b'"next"'))
        first, second = await queue.take(2)
        assert first.binary
        assert first.data == data
        assert (second.binary, second.data) == (False, b'"next"')

    @pytest.mark.parametrize("text", JSON_TEXTS)
    async def test_json_comes_out_in_the_callers_own_spelling(self, queue: Queue, text: bytes) -> None:
        await queue.put_one(data=text)
        assert (await queue.take_one()).data == text

    async def test_bytes_that_look_like_the_engines_own_come_out_exactly(self, queue: Queue) -> None:
        for data in (b"KFRM" * 40, b"KQSSEG\r\n" * 8, b"\0" * 600, b"\r\n", b"\xff" * 99):
            await queue.put_one(data=data, binary=True)
            assert (await queue.take_one()).data == data

    async def test_types_of_any_text_and_length(self, queue: Queue) -> None:
        limit = queue.harness.max_type_bytes
        types = ["x", "a.b-c_d/e f", "\u00e9\u4e16\U0001f600", "x" * limit, "\u00e9" * (limit // 2)]
        for type_ in types:
            await queue.put_one(type_)
        assert [lease.type for lease in await queue.take(len(types))] == types
        await queue.put_one(types[-1])
        assert (await queue.take_one([types[-1]])).type == types[-1]

    async def test_a_large_batch(self, queue: Queue) -> None:
        ids = await queue.put(*(new_job(data=b"%d" % number) for number in range(3000)))
        assert await queue.take_ids(5000) == ids

    async def test_a_batch_is_never_seen_in_part(self, queue: Queue) -> None:
        before = sum((await queue.counts()).values())
        task = asyncio.ensure_future(queue.put(*(new_job(delay=number % 2) for number in range(500))))
        seen = set()
        while not task.done():
            seen.add(sum((await queue.counts()).values()) - before)
            await asyncio.sleep(0)
        seen.add(sum((await queue.counts()).values()) - before)
        assert seen <= {0, 500}
        assert len(await task) == 500
        assert 500 in seen

    async def test_calls_at_the_same_time_keep_apart(self, queue: Queue) -> None:
        calls = [[new_job(data=b'"%d/%d"' % (call, number)) for number in range(7)] for call in range(40)]
        answers = await asyncio.gather(*(queue.put(*jobs) for jobs in calls))
        ids = [id for answer in answers for id in answer]
        assert len(set(ids)) == 280
        leases = {lease.id: lease.data for lease in await queue.take(300)}
        for jobs, answer in zip(calls, answers, strict=True):
            assert [leases[id] for id in answer] == [job.data for job in jobs]
        order = list(leases)
        for answer in answers:
            assert sorted(answer, key=order.index) == answer

    async def test_ready_jobs_are_announced_with_their_types(self, queue: Queue) -> None:
        told: list[str] = []

        def notify(types: Sequence[str]) -> None:
            told.extend(types)

        queue.engine.on_ready(notify)
        await queue.put(new_job("a"), new_job("b"), new_job("a"), new_job("later", delay=60))
        assert sorted(set(told)) == ["a", "b"]

    async def test_what_is_announced_can_be_taken(self, queue: Queue) -> None:
        taken: list[asyncio.Task[str]] = []

        def notify(_types: Sequence[str]) -> None:
            taken.append(asyncio.ensure_future(take()))

        async def take() -> str:
            return (await queue.take_one()).id

        queue.engine.on_ready(notify)
        id = await queue.put_one()
        assert await asyncio.gather(*taken) == [id]

    async def test_an_engine_that_is_closed_takes_nothing(self, queue: Queue) -> None:
        id = await queue.put_one()
        await queue.engine.close()
        with pytest.raises(ShuttingDown):
            await queue.put_one()
        await queue.reopen()
        assert await queue.take_ids() == [id]
