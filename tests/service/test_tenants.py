"""Fair share end to end: tenants, a real server and real workers, whose handlers write down what they see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import pytest

from kqs import App
from kqs.client import Client
from kqs.errors import CallError
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]

#: Every run appends a line to a file: whose it was, when it began and ended. The clock is the system's.
MODULE = """
import os
import time

RAN = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def work(job):
    begun = time.monotonic()
    time.sleep(job.data["seconds"])
    os.write(RAN, f"{job.type} {job.data['who']} {begun} {time.monotonic()}\\n".encode())
"""

#: Some pool of workers and the types they run; a test adds its limits and weights.
CONFIG = """
[pools.default]
processes = {processes}
[handlers.a]
python = "work:work"
[handlers.b]
python = "work:work"
"""

MILLISECOND = 0.001


class Run(NamedTuple):
    """One run, as its handler saw it."""

    type: str
    who: str
    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


class Tenants:
    """A server whose handlers write down their runs."""

    def __init__(self, start: Start, folder: Path, more: str = "", processes: int = 1) -> None:
        self._folder = folder
        (folder / "work.py").write_text(MODULE)
        self._start = start
        self._config = CONFIG.format(processes=processes) + more
        self.begin()

    def begin(self) -> None:
        """Start the server, anew after it was killed."""
        self.server = self._start(self._config).wait_for_workers()
        self.client: Client = self.server.client()

    def kill(self) -> None:
        """kill -9, and return when its workers are gone, too."""
        workers = self.server.workers()
        self.server.kill()
        until(lambda: not any(worker.is_running() for worker in workers), "the workers to end")

    def insert(self, who: str, count: int, seconds: float = MILLISECOND, type: str = "a") -> list[str]:
        return self.client.insert_many(jobs(who, count, seconds, type))

    def runs(self) -> list[Run]:
        """The runs that have ended, in the order in which they did."""
        try:
            lines = (self._folder / "ran").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [
            Run(type, who, float(begun), float(ended)) for type, who, begun, ended in map(str.split, lines)
        ]

    def of(self, who: str) -> list[Run]:
        return [run for run in self.runs() if run.who == who]

    def ran(self, who: str, count: int) -> list[Run]:
        """All runs there are, once so many of somebody's have ended."""
        until(lambda: len(self.of(who)) >= count, f"{count} jobs of {who} to run")
        return self.runs()


def jobs(who: str, count: int, seconds: float = MILLISECOND, type: str = "a") -> list[dict[str, object]]:
    data = {"who": who, "seconds": seconds}
    return [{"type": type, "fair": who, "data": data} for _ in range(count)]


def most_at_once(runs: Sequence[Run]) -> int:
    """How many ran at a time."""
    changes = sorted([(run.begun, 1) for run in runs] + [(run.ended, -1) for run in runs])
    now = most = 0
    for _time, change in changes:
        now += change
        most = max(most, now)
    return most


# -- shares --------------------------------------------------------------------------------------------


def test_a_backlog_delays_nobody_else(start: Start, tmp_path: Path) -> None:
    it = Tenants(start, tmp_path)
    it.insert("big", 3000)
    it.ran("big", 50)
    inserted = monotonic()
    it.insert("small", 100)
    runs = it.ran("small", 100)
    last = max(run.begun for run in runs if run.who == "small")
    meanwhile = sum(run.who == "big" and inserted <= run.begun <= last for run in runs)
    # One for one, and the 50 ms of work that the worker had already taken.
    assert 50 <= meanwhile <= 250, meanwhile
    assert it.client.stats()["types"]["a"]["ready"] > 2000


def test_slow_jobs_take_no_more_than_quick_ones(start: Start, tmp_path: Path) -> None:
    """Worker time is shared, not jobs."""
    it = Tenants(start, tmp_path)
    it.insert("slow", 300, 10 * MILLISECOND)
    it.ran("slow", 5)
    inserted = monotonic()
    it.insert("quick", 200)
    runs = it.ran("quick", 200)
    last = max(run.begun for run in runs if run.who == "quick")
    meanwhile = [run for run in runs if inserted <= run.begun <= last]
    worked = {who: sum(run.seconds for run in meanwhile if run.who == who) for who in ("slow", "quick")}
    assert 0.5 <= worked["slow"] / worked["quick"] <= 2, worked
    assert sum(run.who == "slow" for run in meanwhile) < 60  # of the 200 that job for job would be


def test_without_fair_share_the_oldest_comes_first(start: Start, tmp_path: Path) -> None:
    it = Tenants(start, tmp_path, '[scheduler]\norder = "fifo"\n')
    it.insert("big", 500)
    it.insert("small", 20, type="b")
    runs = it.ran("small", 20)
    assert [run.who for run in runs] == ["big"] * 500 + ["small"] * 20


def test_weights_of_keys(start: Start, tmp_path: Path) -> None:
    it = Tenants(start, tmp_path, '[fair."gold-*"]\nweight = 3\n[handlers.c]\npython = "work:work"\n')
    it.client.call("pause", {"type": "a"})
    it.client.insert_many(jobs("gold-1", 900) + jobs("basic", 900))
    it.client.call("resume", {"type": "a"})
    runs = it.ran("gold-1", 900)
    last = max(run.begun for run in runs if run.who == "gold-1")
    worked: Counter[str] = Counter()
    for run in runs:
        if run.begun <= last:
            worked[run.who] += round(run.seconds * 1e6)  # type: ignore[assignment]
    assert worked["gold-1"] / worked["basic"] == pytest.approx(3, rel=0.15), worked


def test_two_types_of_a_tenant_are_two_lanes(start: Start, tmp_path: Path) -> None:
    """And a job without a key is in the lane of its type alone."""
    it = Tenants(start, tmp_path)
    it.client.call("pause", {"type": "a"})
    it.client.call("pause", {"type": "b"})
    nobodys = [{"type": "a", "data": {"who": "nobody", "seconds": MILLISECOND}}] * 300
    it.client.insert_many([*jobs("t", 300), *jobs("t", 300, type="b"), *nobodys])
    it.client.call("resume", {"type": "a"})
    it.client.call("resume", {"type": "b"})
    until(lambda: len(it.runs()) >= 300)
    counts = Counter((run.type, run.who) for run in it.runs()[:300])
    assert counts.keys() == {("a", "t"), ("b", "t"), ("a", "nobody")}
    assert min(counts.values()) > 60, counts


# -- limits, as handlers see them ----------------------------------------------------------------------

LIMITED = """
[classes.held]
types = ["a", "b"]
concurrency = 3
[fair.one]
concurrency = 1
[handlers.c]
python = "work:work"
"""


def test_concurrency_is_never_exceeded(start: Start, tmp_path: Path) -> None:
    """Of a type (2), of a class (3), of a key (1), with 4 workers, while jobs without limits go on."""
    config = LIMITED + "concurrency = 2\n[handlers.free]\npython = 'work:work'\n"
    it = Tenants(start, tmp_path, config, processes=4)

    def run(*made: dict[str, object]) -> list[Run]:
        """Insert jobs; returns their runs."""
        before = len(it.runs())
        it.client.insert_many(made)
        until(lambda: len(it.runs()) == before + len(made), "all jobs to run")
        return it.runs()[before:]

    long = 60 * MILLISECOND  # so long that no worker takes one before it can run it
    assert most_at_once(run(*jobs("x", 8, long, "c"))) == 2
    assert most_at_once(run(*jobs("x", 6, long, "a"), *jobs("y", 6, long, "b"))) == 3
    assert most_at_once(run(*jobs("one", 2, long, "a"), *jobs("one", 2, long, "free"))) == 1
    wanted = [("x", "a", 90), ("y", "b", 90), ("z", "c", 60), ("one", "a", 20), ("one", "free", 20)]
    limited = [job for who, type, count in wanted for job in jobs(who, count, 3 * MILLISECOND, type)]
    runs = run(*limited, *jobs("other", 300, 3 * MILLISECOND, "free"))  # these they take many at a time
    assert most_at_once([run for run in runs if run.type == "c"]) <= 2
    assert most_at_once([run for run in runs if run.type in ("a", "b")]) <= 3
    ones = [run for run in runs if run.who == "one"]
    assert most_at_once(ones) == 1
    others = [run for run in runs if run.who == "other" and ones[0].begun < run.begun < ones[-1].begun]
    assert len(others) > 20  # who has no limit does not wait for who has one


def too_early(runs: Sequence[Run], since: float, rate: float, burst: int) -> list[int]:
    """Which of the runs began before its token can have been there.

    Args:
        runs: in the order of their beginnings.
        since: a time before all of them, seconds.
        rate: per second.
        burst: tokens there were at that time.
    """
    return [
        at for at, run in enumerate(runs) if run.begun < since + (at + 1 - burst) / rate - 1e-4
    ]  # a late beginning is the machine's; an early one is ours


RATED = """
[fair.calm]
rate = "40/s"
burst = 3
"""


def test_a_rate_is_never_exceeded(start: Start, tmp_path: Path) -> None:
    it = Tenants(start, tmp_path, RATED, processes=3)
    inserted = monotonic()
    it.insert("other", 300)
    it.insert("calm", 50)
    it.ran("calm", 50)
    calm = sorted(it.of("calm"), key=lambda run: run.begun)
    assert not too_early(calm, inserted, 40, 3)
    assert len([run for run in it.of("other") if run.begun < calm[-1].begun]) == 300  # which had no limit


def test_after_a_kill_there_is_no_burst(start: Start, tmp_path: Path) -> None:
    """Nobody knows what began just before: the bucket is empty, and what may run at a time counts anew."""
    more = '[fair.calm]\nrate = "100/s"\nburst = 1000\n[classes.slow]\ntypes = ["b"]\nconcurrency = 2\n'
    it = Tenants(start, tmp_path, more, processes=4)
    it.insert("calm", 200)
    it.insert("busy", 24, 60 * MILLISECOND, "b")
    it.ran("calm", 10)
    it.ran("busy", 2)
    it.kill()
    killed = monotonic()
    it.begin()
    it.ran("busy", 24)
    it.ran("calm", 200)
    after = sorted((run for run in it.of("calm") if run.begun > killed), key=lambda run: run.begun)
    assert not too_early(after, killed, 100, 0)
    assert most_at_once([run for run in it.of("busy") if run.begun > killed]) == 2


def test_idle_workers_are_told_when_a_limit_opens(start: Start, tmp_path: Path) -> None:
    """A place that becomes free and a token that comes back wake who waits: nobody polls for a minute."""
    config = '[classes.b]\ntypes = ["b"]\nconcurrency = 1\n[fair.calm]\nrate = "20/s"\nburst = 1\n'
    it = Tenants(start, tmp_path, config, processes=2)
    begun = monotonic()
    it.insert("x", 10, 70 * MILLISECOND, "b")
    it.insert("calm", 10)
    it.ran("x", 10)
    it.ran("calm", 10)
    assert monotonic() - begun < 30  # parked reserves come back by themselves after 60 s


# -- how they are named --------------------------------------------------------------------------------


def test_an_app_says_whose_part_a_job_takes(shared: ServerProcess) -> None:
    app = App(shared.url)

    @app.job("told", prio="low")
    def told(n: int) -> None: ...

    with app.client, shared.client() as client:
        mine = client.job(told.using(fair="acme").enqueue(n=1))
        nobodys = client.job(told.enqueue(n=2))
    assert (mine["fair"], mine["prio"]) == ("acme", "low")
    assert "fair" not in nobodys


@pytest.mark.parametrize("key", ["", "x" * 256, 7, None])
def test_a_key_that_is_none(shared: ServerProcess, key: object) -> None:
    with shared.client() as client, pytest.raises(CallError) as refused:
        client.call("insert", {"type": "told", "fair": key})
    assert (refused.value.code, refused.value.field) == ("bad_request", "fair")
