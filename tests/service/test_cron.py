"""Crons of a real server: the calls and commands about them, and changed configs. Clocks: tests/faults."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kqs.client import Client
from kqs.errors import NotFound
from tests.support import ServerProcess, kqs, until

Start = Callable[..., ServerProcess]

CONFIG = """
[cron.nightly]
schedule = "30 3 * * *"
timezone = "Europe/Berlin"
type = "report"
data = { pages = ["a", "b"] }
prio = "low"
[cron."every.hour"]
schedule = "0 * * * *"
type = "sweep"
missed = "skip"
"""


def names(client: Client) -> list[str]:
    return [cron["name"] for cron in client.call("cron")["crons"]]


def reload(server: ServerProcess, config: str, says: str = "config reloaded") -> None:
    (server.folder / "kqs.toml").write_text(config)
    times = len(server.logged(says)) + 1
    server.process.send_signal(signal.SIGHUP)
    server.stderr.wait_for(f'"event": "{says}"', times=times)


def test_commands(start: Start) -> None:
    server = start(CONFIG)
    listed = kqs("cron", "list", "--server", server.url)
    assert listed.status == 0, listed
    assert re.search(
        r"nightly +│ 30 3 \* \* \* +│ Europe/Berlin +│ report +│ one +│ 2\d{3}-\S+T0[12]:30:00Z", listed.out
    )
    [nightly, hourly] = kqs("cron", "list", "--json", "--server", server.url).json["crons"]
    assert set(nightly) == {"name", "schedule", "timezone", "type", "missed", "next_at"}
    assert (hourly["name"], hourly["missed"]) == ("every.hour", "skip")

    id = kqs("cron", "run", "nightly", "--server", server.url).out.strip()
    other = kqs("cron", "run", "nightly", "--json", "--server", server.url).json["id"]
    with server.client() as client:
        jobs = [client.job(one, data=True) for one in (id, other)]
    assert id != other
    assert [(job["type"], job["prio"], job["data"]) for job in jobs] == [
        ("report", "low", {"pages": ["a", "b"]})
    ] * 2
    unknown = kqs("cron", "run", "weekly", "--server", server.url)
    assert (unknown.status, unknown.out) == (1, "")
    assert unknown.err == "kqs: not_found: no cron 'weekly' here; known are every.hour, nightly\n"


@pytest.mark.parametrize("argument", [{}, {"name": 1}, {"name": "nightly", "x": 1}])
def test_a_wrong_argument_is_refused(start: Start, argument: Any) -> None:
    with start(CONFIG).connect() as wire:
        assert wire.call("cron_run", argument)["e"]["code"] in ("bad_request", "unknown_field")
        assert wire.call("cron", {"x": 1})["e"]["code"] == "unknown_field"


def test_a_reload_takes_over_crons(start: Start) -> None:
    server = start("[server]\n")
    client = server.client()
    assert names(client) == []
    reload(server, CONFIG)
    assert names(client) == ["nightly", "every.hour"]
    until(lambda: client.stats()["journal"]["last_seq"] == 2, "both to have a mark")
    reload(server, CONFIG.replace("30 3", "30 25"), "config refused; nothing was changed")
    [said] = server.logged("config refused; nothing was changed")
    assert "cron.nightly.schedule" in said["reason"]
    assert names(client) == ["nightly", "every.hour"]
    reload(server, CONFIG[: CONFIG.index('[cron."every')].replace('"report"', '"daily report"'))
    assert [cron["type"] for cron in client.call("cron")["crons"]] == ["daily report"]
    assert client.job(client.call("cron_run", {"name": "nightly"})["id"])["type"] == "daily report"
    with pytest.raises(NotFound):
        client.call("cron_run", {"name": "every.hour"})
    server.traceback_expected = True  # no, but a refused config is logged as an error


def test_marks_are_ended_and_shown_in_the_journal(start: Start, tmp_path: Path) -> None:
    server = start(CONFIG)
    client = server.client()
    until(lambda: client.stats()["journal"]["last_seq"] == 2, "both to have a mark")
    reload(server, CONFIG[: CONFIG.index('[cron."every')])
    until(lambda: client.stats()["journal"]["last_seq"] == 3, "one to be ended")
    server.stop()
    lines = kqs("journal", "cat", "--data", str(server.data)).out.splitlines()
    shown = [re.search(r'"kind":"cron".*"data":\{"name":"([^"]+)","at":(\d+)\}', line) for line in lines]
    assert [match[1] for match in shown if match] == ["nightly", "every.hour", "every.hour", "nightly"]
    assert [match[2] == "0" for match in shown if match] == [False, False, True, False]


def test_a_type_without_a_handler_stays_queued(start: Start) -> None:
    server = start(CONFIG)
    with server.client() as client:
        assert client.job(client.call("cron_run", {"name": "nightly"})["id"])["state"] == "ready"
