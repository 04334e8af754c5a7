"""The worker of many attempts, with a link that is none."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Raw

from kqs import Job
from kqs.core.outcome import Attempted, Reason, Settlement
from kqs.runners.attempt import EXIT_RECYCLED, REVOKE
from kqs.runners.concurrent import ConcurrentWorker
from kqs.runners.link import Leased
from kqs.runners.log import WorkerLog
from kqs.runners.marker import Marker
from kqs.runners.python import AsyncPythonRunner
from kqs.runners.spec import WorkerSpec


class FakeLink:
    """Answers what it is told to."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[int] = asyncio.Queue()
        self.answers: asyncio.Queue[list[Leased]] = asyncio.Queue()
        self.settled: asyncio.Queue[Settlement] = asyncio.Queue()
        self.current = True
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def reserve(self, limit: int, wait: float) -> list[Leased]:
        await self.asked.put(limit)
        return await self.answers.get()

    async def renew(self, receipts: list[str]) -> set[str]:
        return set(receipts) if self.current else set()

    def progress(self, receipt: str, fraction: float | None, message: str) -> None:
        pass

    def settle(self, settlement: Settlement) -> None:
        self.settled.put_nowait(settlement)

    async def close(self) -> None:
        pass


def lease(receipt: str, ttr: float = 60.0, **more: Any) -> Leased:
    return Leased(
        receipt, f"id {receipt}", "t", 1, ttr, "normal", "2026-01-01T00:00:00Z", Raw(b"null"), **more
    )


class Bench:
    """A worker at work."""

    def __init__(self, handler: Callable[[Job], Any], concurrency: int = 2, **spec: Any) -> None:
        self.link = FakeLink()
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.marker = Marker(concurrency)

        async def run(job: Job) -> Any:
            self.begun.put_nowait(job.id)
            return await handler(job)

        given = WorkerSpec("w", "p", {}, concurrency=concurrency, **spec)
        log = WorkerLog(os.open(os.devnull, os.O_WRONLY))
        runners = {"t": AsyncPythonRunner(run)}
        link: Any = self.link
        self.worker = ConcurrentWorker(given, runners, link, self.marker, log, None)
        self.running = asyncio.create_task(self.worker.run())

    async def stop(self) -> int:
        self.worker.stop()
        status = await self.running
        self.marker.close()
        return status

    async def begin(self, count: int) -> None:
        """Return when so many more attempts have begun."""
        for _ in range(count):
            await self.begun.get()

    def cancel(self, *receipts: str) -> None:
        for receipt in receipts:
            self.marker.cancel(receipt)
        self.worker.look()

    async def outcomes(self, count: int) -> dict[str, str]:
        settled = [await self.link.settled.get() for _ in range(count)]
        return {one.receipt: one.outcome for one in settled}


async def forever(job: Job) -> None:
    await asyncio.Event().wait()


async def nothing(job: Job) -> None:
    pass


async def test_it_asks_for_what_it_has_slots_for() -> None:
    bench = Bench(forever, concurrency=3)
    assert await bench.link.asked.get() == 3
    bench.link.answers.put_nowait([lease("a"), lease("b")])
    assert await bench.link.asked.get() == 1
    assert sorted(bench.marker.running()) == ["a", "b"]
    bench.link.answers.put_nowait([lease("c")])
    await bench.begin(3)
    assert bench.link.asked.empty()  # no slot, and no attempt was measured
    bench.cancel("a", "b", "c")
    assert await bench.outcomes(3) == dict.fromkeys("abc", "again")
    await bench.stop()


async def test_an_attempt_cancelled_by_the_supervisor_is_settled_so() -> None:
    bench = Bench(forever)
    bench.link.answers.put_nowait([lease("a"), lease("b")])
    await bench.link.asked.get()
    await bench.begin(2)
    bench.cancel("a")
    settled = await bench.link.settled.get()
    assert settled.receipt == "a" and settled.outcome == "again"
    assert settled.reason is not None and not isinstance(settled.reason, str)
    assert settled.reason.kind == "cancelled"
    assert bench.marker.running() == ["b"]
    bench.cancel("b")
    await bench.outcomes(1)
    await bench.stop()


async def cancels_itself(job: Job) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def waits_for_a_cancelled_task(job: Job) -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    task.cancel()
    await task


@pytest.mark.parametrize("handler", [cancels_itself, waits_for_a_cancelled_task])
async def test_what_the_handler_cancelled_costs_its_attempt(handler: Callable[[Job], Any]) -> None:
    """Given back at no cost it would come again at once, and for ever."""
    bench = Bench(handler)
    await bench.link.answers.put([lease("a")])
    settled = await bench.link.settled.get()
    assert (settled.outcome, settled.delay) == ("again", None)
    assert isinstance(settled.reason, Reason) and settled.reason.kind == "CancelledError"
    await bench.stop()


async def test_an_attempt_cancelled_before_it_began_is_given_back() -> None:
    bench = Bench(forever)
    bench.link.answers.put_nowait([lease("a")])
    while not bench.marker.running():
        await asyncio.sleep(0)
    bench.cancel("a")
    assert await bench.outcomes(1) == {"a": "release"}
    assert (bench.marker.running(), bench.begun.empty()) == ([], True)
    await bench.stop()


async def test_a_renewal_that_is_refused_cancels_the_task() -> None:
    seen: list[bool] = []

    async def renews(job: Job) -> None:
        seen.append(job.renew())
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(job.cancelled)

    bench = Bench(renews)
    bench.link.current = False
    bench.link.answers.put_nowait([lease("a")])
    assert await bench.outcomes(1) == {"a": "again"}
    assert seen == [True, True]
    await bench.stop()


async def test_what_a_handler_says_when_its_time_is_over_does_not_count() -> None:
    async def claims(job: Job) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done after all"
        return ""

    bench = Bench(claims)
    bench.link.answers.put_nowait([lease("a", ttr=0.05)])
    settled = await bench.link.settled.get()
    assert settled.took is not None
    assert settled == Attempted("again", 0.0, settled.reason).settlement("a", settled.took)  # type: ignore[arg-type]
    assert settled.reason is not None and "ttr of 0.05 s" in str(settled.reason)
    await bench.stop()


async def test_a_suspect_waits_and_what_else_was_fetched_is_given_back() -> None:
    bench = Bench(forever, concurrency=3)
    await bench.link.asked.get()
    bench.link.answers.put_nowait([lease("a")])
    await bench.link.asked.get()
    bench.link.answers.put_nowait([lease("suspect", deaths=1), lease("b"), lease("other", deaths=2)])
    assert await bench.outcomes(2) == {"other": "release", "b": "release"}
    await bench.begin(1)
    assert (bench.marker.running(), bench.marker.waiting()) == (["a"], "suspect")
    bench.cancel("a")
    assert await bench.outcomes(1) == {"a": "again"}
    await bench.begin(1)
    assert bench.marker.running() == ["suspect"]
    assert bench.link.asked.empty()  # alone
    bench.cancel("suspect")
    assert await bench.outcomes(1) == {"suspect": "again"}
    await bench.link.asked.get()
    assert bench.marker.waiting() == ""
    await bench.stop()


async def test_it_gives_back_what_long_attempts_keep_it_from() -> None:
    bench = Bench(forever, concurrency=1)
    bench.link.answers.put_nowait([lease("a"), lease("b")])
    await bench.begin(1)
    await asyncio.sleep(1.5 * REVOKE)
    bench.worker.look()
    assert await bench.outcomes(1) == {"b": "release"}
    bench.cancel("a")
    await bench.outcomes(1)
    await bench.stop()


async def test_what_it_holds_when_it_ends_is_given_back() -> None:
    bench = Bench(nothing, concurrency=1, max_jobs=1)
    bench.link.answers.put_nowait([lease("a"), lease("b"), lease("c")])
    assert await bench.outcomes(3) == {"a": "ok", "b": "release", "c": "release"}
    assert await bench.running == EXIT_RECYCLED
    bench.marker.close()


@pytest.mark.parametrize("jobs", [1, 3])
async def test_it_ends_after_so_many_jobs(jobs: int) -> None:
    bench = Bench(nothing, max_jobs=jobs)
    for number in range(jobs):
        bench.link.answers.put_nowait([lease(str(number))])
    assert await bench.outcomes(jobs) == {str(number): "ok" for number in range(jobs)}
    assert await bench.running == EXIT_RECYCLED
    bench.marker.close()
