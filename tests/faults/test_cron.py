"""Crons of a real server, which is killed again and again and whose clock is set while it runs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from random import Random
from time import sleep, time
from typing import Any

import pytest

from kqs.testing.faketime import faketime
from tests.support import ServerProcess, until

pytestmark = pytest.mark.service("faketime")

KILLS = 6
CONFIG = """
[health]
disk_free = 0
[cron.each]
schedule = "* * * * *"
type = "each"
missed = "all"
[cron.latest]
schedule = "* * * * *"
type = "latest"
missed = "one"
"""


class Clocked:
    """A server whose clock on the wall the test sets; the monotonic one is the machine's."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        self._file = folder / "clock"
        self._offset = 0.0
        self.set_to_second(30)
        env = faketime(timestamp_file=str(self._file), no_cache="1", dont_fake_monotonic="1")
        self.server = ServerProcess(folder, config, env=env)

    @property
    def now(self) -> float:
        return time() + self._offset

    def set_by(self, seconds: float) -> None:
        self._offset += seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._offset:+.3f}\n")
        new.replace(self._file)

    def set_to_second(self, second: int) -> None:
        """Set it forward to this second of a minute."""
        self.set_by((second - self.now) % 60)

    def marks(self) -> dict[str, dict[str, Any]]:
        """Crons as shown, by name."""
        with self.server.client() as client:
            return {cron["name"]: cron for cron in client.call("cron")["crons"]}

    def seen(self) -> bool:
        """Whether the server has looked at its crons: both have a mark."""
        with self.server.client() as client:
            return int(client.stats()["journal"]["last_seq"]) >= 2

    def count(self, type: str) -> int:
        with self.server.client() as client:
            return int(client.call("stats", {"type": type})["jobs"]["ready"])


@pytest.fixture
def clocked(tmp_path: Path) -> Iterator[Clocked]:
    made = Clocked(tmp_path)
    try:
        yield made
        made.server.stop()
    finally:
        made.server.discard()


def at(cron: dict[str, Any]) -> float:
    """When a cron ran last, as seconds since 1970; 0: never."""
    return dt.datetime.fromisoformat(cron["last_at"]).timestamp() if "last_at" in cron else 0.0


def test_kills_double_no_run_and_lose_none(clocked: Clocked) -> None:
    """Each minute has its job, whether it passed between two lives, or the server died making it."""
    server, random = clocked.server, Random(1)
    server.start()
    until(clocked.seen, "the server to see its crons")
    clocked.set_by(60)
    first = until(lambda: at(clocked.marks()["each"]), "the first run")
    for gap in (0, 61, 200) * (KILLS // 3):
        clocked.set_by(random.uniform(30, 130))
        sleep(random.choice([0, 0.001, 0.01, 0.5, 1.1]))  # a look is made each second
        server.kill()
        clocked.set_by(gap)
        server.start()
        sleep(random.choice([0, 0.005]))
    clocked.set_to_second(10)
    last = until(lambda: (made := at(clocked.marks()["each"])) > clocked.now - 60 and made, "this minute's")
    minutes = round((last - first) / 60) + 1
    assert KILLS < minutes < 5 * KILLS
    until(lambda: clocked.count("each") >= minutes)  # a mark shows before its jobs do
    assert clocked.count("each") == minutes
    until(lambda: at(clocked.marks()["latest"]) == last and clocked.count("latest"))
    assert clocked.count("latest") < minutes


def test_a_clock_that_is_set_while_the_server_runs(clocked: Clocked) -> None:
    clocked.server.start()
    until(clocked.seen, "the server to see its crons")
    clocked.set_by(10 * 60)
    until(lambda: clocked.count("each") == 10 and clocked.count("latest") == 1)
    clocked.set_by(-5 * 60)
    clocked.server.stderr.wait_for("was the clock set back?", times=2)
    clocked.set_by(4 * 60)  # 09:30 after the start, and 10 runs were made
    sleep(1.5)
    assert (clocked.count("each"), clocked.count("latest")) == (10, 1)
    clocked.set_by(90)
    until(lambda: clocked.count("each") == 11 and clocked.count("latest") == 2)
