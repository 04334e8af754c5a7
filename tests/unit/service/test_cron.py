"""The service's crons, over a real engine on a simulated disk; the clock on the wall is the test's."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from kqs.core.job import SECOND, DefaultsTable, NewJob
from kqs.core.wire import Request
from kqs.errors import Busy, ConfigError, NotFound, ShuttingDown
from kqs.ports import CronMark
from kqs.service.cron import Crons
from kqs.settings.config import parse
from kqs.settings.crons import plan
from kqs.testing.embedded import SimulatedHarness

MINUTE = 60.0
HOUR = 3600.0
#: 12:00:30 on a Tuesday.
START = round(dt.datetime(2026, 5, 5, 12, 0, 30, tzinfo=dt.UTC).timestamp()) * SECOND

MINUTELY = '[cron.a]\nschedule = "* * * * *"\ntype = "a"\n'


class Log:
    """What was logged: event, values."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **values: self.lines.append((event, values))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [values for name, values in self.lines if name == event]


class World:
    """A server's crons, through its lives."""

    def __init__(self) -> None:
        self.harness = SimulatedHarness(1)
        self.now = START
        self.may_run = True
        self.log = Log()

    async def start(self, config: str) -> None:
        """A server starts, and looks once."""
        self.engine = await self.harness.make_engine()
        self.crons = Crons(self.engine, lambda: self.now, lambda: self.may_run, lambda: True, self.log)
        self.configure(config)
        await self.crons.look()

    def configure(self, config: str) -> None:
        self.crons.replace(plan(parse(config.encode()).cron, DefaultsTable(), self.engine.capabilities))

    async def stop(self) -> None:
        self.crons.start()
        await self.crons.close(at_once=False)
        await self.engine.close()

    async def kill(self) -> None:
        self.harness.disk.crash()

    async def pass_(self, seconds: float) -> int:
        """Let the clock on the wall go on (or back), look, and return how many jobs came of it."""
        before = await self.jobs()
        self.now += round(seconds * SECOND)
        await self.crons.look()
        return await self.jobs() - before

    async def jobs(self, type: str | None = None) -> int:
        counts: dict[str, int] = (await self.engine.stats(type))["jobs"]
        return counts["ready"]

    async def call(self, name: str, argument: Any = None) -> Any:
        raw = msgspec.json.encode(argument or {})
        reply = await self.crons.handlers[name](None, Request(n=name), raw)  # type: ignore[arg-type]
        return msgspec.json.decode(reply or b"")


@pytest.fixture
def world() -> World:
    return World()


# -- running on time ----------------------------------------------------------------------------


async def test_each_run_is_made_once_when_its_time_comes(world: World) -> None:
    await world.start(MINUTELY)
    assert await world.jobs() == 0
    assert [await world.pass_(10) for _ in range(12)] == [0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert world.log.of("cron runs missed") == []


async def test_the_past_has_no_runs_when_a_cron_is_seen_first(world: World) -> None:
    await world.start(MINUTELY.replace("a]", "a]\nmissed = 'all'"))
    assert await world.jobs() == 0
    assert await world.engine.fired() == {"a": CronMark(START)}


async def test_the_job_is_what_the_config_says(world: World) -> None:
    await world.start(
        '[cron.x]\nschedule = "* * * * *"\ntype = "mail"\nprio = "high"\nttr = 7\nmax_attempts = 3\n'
        'expires = 60\ndata = { to = "ann", day = 2026-05-05, n = [1, 2.5, true] }\n'
        'retry = { backoff = "fixed", base = 5 }\n'
    )
    assert await world.pass_(MINUTE) == 1
    [view], _ = await world.engine.jobs(state=None, type=None, limit=10, after=None)
    shown = await world.engine.job(view["id"], data=True)
    assert (shown["type"], shown["prio"], shown["ttr"]) == ("mail", "high", 7)
    assert bytes(shown["data"]) == b'{"to":"ann","day":"2026-05-05","n":[1,2.5,true]}'


# -- missed runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("missed", "runs"), [("skip", 0), ("one", 1), ("all", 5)])
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_runs_while_no_server_was_there(world: World, missed: str, runs: int, end: str) -> None:
    config = f"{MINUTELY}missed = '{missed}'\n"
    await world.start(config)
    await world.pass_(MINUTE)
    await getattr(world, end)()
    world.now += round(5 * MINUTE * SECOND) + 15 * SECOND
    await world.start(config)
    assert await world.jobs() == 1 + runs
    assert [line["missed"] for line in world.log.of("cron runs missed")] == [missed]
    assert await world.pass_(1) == 0
    assert await world.pass_(20) == 1


@pytest.mark.parametrize("missed", ["skip", "one", "all"])
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_quick_restart_over_a_run_loses_it_under_no_policy(
    world: World, missed: str, end: str
) -> None:
    config = f"{MINUTELY}missed = '{missed}'\n"
    await world.start(config)
    await world.pass_(29.9)
    await getattr(world, end)()
    world.now += 20 * SECOND
    await world.start(config)
    assert await world.jobs() == 1
    assert world.log.of("cron runs missed") == []


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_run_that_was_made_is_not_made_by_the_next_server(world: World, end: str) -> None:
    await world.start(MINUTELY)
    await world.pass_(30)
    for _ in range(3):
        await getattr(world, end)()
        await world.start(MINUTELY)
    assert await world.jobs() == 1


async def test_a_thousand_missed_runs_at_most_are_made_in_commits_of_some(world: World) -> None:
    await world.start(f"{MINUTELY}missed = 'all'\ndata = '{'x' * 30_000}'\n")
    fired: list[int] = []
    fire = world.engine.fire

    async def counted(name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        fired.append(len(jobs))
        return await fire(name, upto, jobs)

    world.engine.fire = counted  # type: ignore[method-assign]
    assert await world.pass_(30 * HOUR) == 1000
    assert sum(fired) == 1000 and max(fired) < 200
    [said] = world.log.of("cron runs missed")
    assert (said["first"], said["made"], said["left_out_before"]) == (
        *("2026-05-05T12:01:00Z", 1000),
        "2026-05-06T01:21:00Z",
    )


async def test_what_was_skipped_stays_skipped_under_another_policy(world: World) -> None:
    await world.start(f"{MINUTELY}missed = 'skip'\n")
    assert await world.pass_(HOUR + 10) == 0
    await world.kill()
    await world.start(f"{MINUTELY}missed = 'all'\n")
    assert await world.jobs() == 0


# -- clocks that are set ------------------------------------------------------------------------


@pytest.mark.parametrize(("missed", "runs"), [("skip", 0), ("one", 1), ("all", 61)])
async def test_a_clock_set_forward(world: World, missed: str, runs: int) -> None:
    """Under ``one`` and ``all`` the minute it is set into is the last of them."""
    await world.start(f"{MINUTELY}missed = '{missed}'\n")
    assert await world.pass_(HOUR + 70) == runs


async def test_a_clock_set_back_brings_no_run_again(world: World) -> None:
    await world.start(MINUTELY)
    assert [await world.pass_(MINUTE) for _ in range(3)] == [1, 1, 1]
    assert await world.pass_(-2 * MINUTE) == 0
    assert [await world.pass_(MINUTE) for _ in range(4)] == [0, 0, 1, 1]
    [said] = world.log.of("cron waits: its runs up to a time ahead were made; was the clock set back?")
    assert said["until"] == "2026-05-05T12:03:30Z"
    await world.pass_(-HOUR)
    await world.stop()
    await world.start(MINUTELY)
    assert [await world.pass_(20 * MINUTE) for _ in range(4)] == [0, 0, 0, 1]


# -- changed configs ----------------------------------------------------------------------------


async def test_a_cron_that_is_gone_begins_anew_when_it_is_back(world: World) -> None:
    config = MINUTELY + MINUTELY.replace("cron.a", "cron.b").replace('"a"', '"b"')
    await world.start(f"{config}missed = 'all'\n")
    world.configure(MINUTELY)
    assert await world.pass_(HOUR) == 1
    assert list(await world.engine.fired()) == ["a"]
    world.configure(f"{config}missed = 'all'\n")
    await world.crons.look()
    assert await world.jobs("b") == 0
    assert await world.pass_(MINUTE) == 2


@pytest.mark.parametrize(
    "change", [("* * * * *", "*/2 * * * *"), ('type = "a"', 'type = "a"\ntimezone = "Asia/Tokyo"')]
)
async def test_runs_of_a_changed_schedule_begin_with_the_change(
    world: World, change: tuple[str, str]
) -> None:
    """Those it would have had before were not missed."""
    await world.start(MINUTELY.replace("* * * * *", "* 3 * * *") + "missed = 'all'\n")
    assert await world.pass_(2 * HOUR) == 0
    world.configure(MINUTELY.replace(*change) + "missed = 'all'\n")
    assert await world.pass_(0) == 0
    assert await world.pass_(2 * MINUTE) == (1 if "2" in change[1] else 2)


async def test_runs_of_a_schedule_changed_between_stop_and_start_begin_with_the_stop(world: World) -> None:
    await world.start('[cron.a]\nschedule = "0 3 * * *"\ntype = "a"\n')
    assert await world.pass_(15 * HOUR) == 1
    assert await world.pass_(9 * HOUR) == 0  # noon again
    await world.stop()
    world.now += 5 * SECOND
    await world.start('[cron.a]\nschedule = "0 9 * * *"\ntype = "a"\n')
    assert await world.jobs() == 1
    [shown] = (await world.call("cron"))["crons"]
    assert (shown["last_at"], shown["next_at"]) == ("2026-05-06T03:00:00Z", "2026-05-07T09:00:00Z")


async def test_a_run_due_at_the_moment_of_a_reload_is_made_once(world: World) -> None:
    await world.start(MINUTELY)
    world.now += 31 * SECOND
    world.configure(MINUTELY.replace("* * * * *", "0 * * * *") + "data = 1\n")
    world.configure(MINUTELY.replace("* * * * *", "5 * * * *") + "data = 2\n")
    assert await world.pass_(0) == 1
    assert await world.pass_(4 * MINUTE) == 1  # 12:05
    world.configure(MINUTELY)
    assert await world.pass_(0) == 0


# -- pressure, drain, end -----------------------------------------------------------------------


@pytest.mark.parametrize("missed", ["skip", "one", "all"])
async def test_a_run_that_is_refused_is_made_later(world: World, missed: str) -> None:
    """However long that takes, and the runs that come meanwhile as well: a server was there."""
    await world.start(f"{MINUTELY}missed = '{missed}'\n")
    acceptor = world.engine._acceptor
    acceptor.memory_limit = 0
    for _ in range(3):
        assert await world.pass_(MINUTE) == 0
    assert len(world.log.of("cron waits: its job is not accepted now")) == 1
    acceptor.memory_limit = 1 << 30
    assert await world.pass_(1) == 3
    assert await world.pass_(1) == 0


async def test_of_runs_that_are_refused_for_long_the_latest_thousand_are_kept(world: World) -> None:
    await world.start(MINUTELY)
    world.engine._acceptor.memory_limit = 0
    for _ in range(1002):
        await world.pass_(MINUTE)
    assert len(world.log.of("cron runs left out: too many wait to be accepted")) == 2
    world.engine._acceptor.memory_limit = 1 << 30
    assert await world.pass_(1) == 1000


async def test_a_refused_run_is_not_forgotten_at_the_stop(world: World) -> None:
    await world.start(MINUTELY)
    world.engine._acceptor.memory_limit = 0
    await world.pass_(30)
    await world.stop()
    await world.start(MINUTELY)
    assert await world.jobs() == 1


async def test_a_server_that_drains_makes_no_run(world: World) -> None:
    await world.start(MINUTELY)
    world.may_run = False
    assert await world.pass_(10 * MINUTE) == 0
    await world.stop()
    assert await world.engine.fired() == {"a": CronMark(START)}
    world.may_run = True
    await world.start(MINUTELY)
    assert await world.jobs() == 1


async def test_of_two_servers_one_makes_the_run(world: World) -> None:
    await world.start(MINUTELY)
    other = Crons(world.engine, lambda: world.now, lambda: True, lambda: True, world.log)
    other.replace(plan(parse(MINUTELY.encode()).cron, DefaultsTable(), world.engine.capabilities))
    await other.look()
    for _ in range(5):
        world.now += 60 * SECOND
        await asyncio.gather(world.crons.look(), other.look())
    assert await world.jobs() == 5


async def test_the_task_looks_by_itself_and_at_once_after_a_change(world: World) -> None:
    await world.start("")
    world.crons.start()
    await asyncio.sleep(0.05)
    world.configure(MINUTELY)
    async with asyncio.timeout(10):
        while not await world.engine.fired():
            await asyncio.sleep(0.01)
        world.now += 60 * SECOND
        while not await world.jobs():
            await asyncio.sleep(0.01)
    await world.crons.close(at_once=False)
    world.now += 60 * SECOND
    await asyncio.sleep(1.1)
    assert await world.jobs() == 1


async def test_a_bug_in_one_look_does_not_end_the_others(world: World) -> None:
    await world.start(MINUTELY)
    fire = world.engine.fire

    async def broken(name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        world.engine.fire = fire  # type: ignore[method-assign]
        raise RuntimeError("for the test")

    world.engine.fire = broken  # type: ignore[method-assign]
    world.now += 60 * SECOND
    world.crons.start()
    async with asyncio.timeout(10):
        while not await world.jobs():
            await asyncio.sleep(0.01)
    assert [line["task"] for line in world.log.of("bug")] == ["cron"]
    await world.stop()


# -- calls --------------------------------------------------------------------------------------


async def test_what_the_calls_answer(world: World) -> None:
    await world.start(
        f'{MINUTELY}[cron.b]\nschedule = "0 9 * * *"\ntimezone = "Europe/Berlin"\ntype = "b"\n'
        'missed = "skip"\n'
    )
    a = {"name": "a", "schedule": "* * * * *", "timezone": "UTC", "type": "a", "missed": "one"}
    b = {"name": "b", "schedule": "0 9 * * *", "timezone": "Europe/Berlin", "type": "b", "missed": "skip"}
    b["next_at"] = "2026-05-06T07:00:00Z"
    assert await world.call("cron") == {"crons": [a | {"next_at": "2026-05-05T12:01:00Z"}, b]}
    await world.pass_(45)
    ran = {"next_at": "2026-05-05T12:02:00Z", "last_at": "2026-05-05T12:01:00Z"}
    assert await world.call("cron") == {"crons": [a | ran, b]}

    marks = await world.engine.fired()
    id = (await world.call("cron_run", {"name": "b"}))["id"]
    assert (await world.engine.job(id))["type"] == "b"
    assert await world.engine.fired() == marks
    with pytest.raises(NotFound, match=r"no cron 'c' here; known are a, b"):
        await world.call("cron_run", {"name": "c"})
    world.engine._acceptor.memory_limit = 0
    with pytest.raises(Busy):
        await world.call("cron_run", {"name": "a"})


async def test_calls_without_crons_or_at_the_end(world: World) -> None:
    await world.start("")
    assert await world.call("cron") == {"crons": []}
    with pytest.raises(NotFound, match="there are none"):
        await world.call("cron_run", {"name": "a"})
    leaving = Crons(world.engine, lambda: world.now, lambda: False, lambda: False, world.log)
    with pytest.raises(ShuttingDown):
        await leaving.handlers["cron_run"](None, Request(n="cron_run"), b'{"name":"a"}')  # type: ignore[arg-type]


def test_an_engine_without_crons_is_refused() -> None:
    with pytest.raises(ConfigError, match="cron: needs an engine with cron"):
        plan(parse(MINUTELY.encode()).cron, DefaultsTable(), frozenset())
    assert plan({}, DefaultsTable(), frozenset()) == {}
