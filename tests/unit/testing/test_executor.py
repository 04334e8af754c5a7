"""Executors without threads keep the promises of the port."""

import asyncio

import pytest

from kqs.testing.executor import InlineExecutor, SteppedExecutor


async def test_inline_work_is_done_at_once_and_reported_on_the_next_turn() -> None:
    executor = InlineExecutor(asyncio.get_running_loop())
    events: list[object] = []
    executor.submit(lambda: events.append("work") or 7, lambda result, error: events.append((result, error)))
    assert events == ["work"]
    await asyncio.sleep(0)
    assert events == ["work", (7, None)]


async def test_inline_errors_are_reported_and_not_raised() -> None:
    executor = InlineExecutor(asyncio.get_running_loop())
    reported: list[object] = []
    executor.submit(lambda: 1 / 0, lambda result, error: reported.extend((result, error)))
    await asyncio.sleep(0)
    assert reported[0] is None
    assert isinstance(reported[1], ZeroDivisionError)


def test_stepped_work_waits_for_its_step_and_keeps_its_order() -> None:
    executor = SteppedExecutor()
    events: list[object] = []
    for name in "ab":
        executor.submit(
            lambda name=name: events.append(f"work {name}"), lambda *_, name=name: events.append(name)
        )
    assert (events, executor.waiting) == ([], 2)
    executor.work()
    assert (events, executor.waiting, executor.unreported) == (["work a"], 1, 1)
    executor.report()
    executor.run()
    assert events == ["work a", "a", "work b", "b"]
    assert executor.step() is False


def test_stepped_close_does_what_is_left_without_reporting_it() -> None:
    executor = SteppedExecutor()
    events: list[str] = []
    executor.submit(lambda: events.append("work"), lambda *_: events.append("report"))
    executor.close()
    assert events == ["work"]
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(lambda: None, lambda *_: None)
