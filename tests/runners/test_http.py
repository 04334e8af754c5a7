"""HTTP handlers as the config names them, run by a real server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kqs.client import Client
from kqs.runners.http import signature
from tests.support import ServerProcess, until
from tests.target import PATIENCE, Exchange, Target

#: Each path is the handler of a job type.
CONFIG = """
[pools.default]
processes = 1
[defaults.retry]
backoff = "fixed"
base = 1000
jitter = 0
[http]
allow_private = ["127.0.0.1"]

[handlers.ok]
http = "http://127.0.0.1:PORT/ok"
secret = "s3cret"
[handlers.busy]
http = "http://127.0.0.1:PORT/busy"
[handlers.gone]
http = "http://127.0.0.1:PORT/gone"
[handlers.slow]
http = "http://127.0.0.1:PORT/slow"

[pools.many]
processes = 1
concurrency = 8
[handlers.together]
http = "http://127.0.0.1:PORT/together"
pool = "many"
"""


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    target = Target()
    all_there = threading.Barrier(8)

    def together(exchange: Exchange) -> None:
        all_there.wait(PATIENCE)
        exchange.reply()

    target.answers = {
        "/ok": Exchange.reply,
        "/busy": lambda exchange: exchange.reply(503, b"not now", Retry_After="77"),
        "/gone": lambda exchange: exchange.reply(410, b"no such order"),
        "/slow": Exchange.hang,
        "/together": together,
    }
    yield target
    target.close()


@pytest.fixture(scope="module")
def client(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    config = CONFIG.replace("PORT", str(target.port))
    server = ServerProcess(tmp_path_factory.mktemp("http"), config, env={"http_proxy": "http://127.0.0.1:1"})
    try:
        with server.start().client() as client:
            yield client
        server.stop()
    finally:
        server.discard()


@pytest.fixture
def ended(client: Client) -> Callable[..., dict[str, Any]]:
    def ended(type: str, data: Any = None, **options: Any) -> dict[str, Any]:
        """A job whose attempt is over."""
        id = client.insert(type, data, **options)

        def over() -> dict[str, Any] | None:
            job = client.job(id)
            return job if job["state"] in ("done", "buried", "delayed") else None

        return until(over, "the attempt to end")  # type: ignore[return-value]

    return ended


Ended = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("data", "body", "kind"),
    [
        ({"to": "ann"}, b'{"to":"ann"}', "application/json"),
        (b"\0\xff", b"\0\xff", "application/octet-stream"),
        (b"{}", b"{}", "application/octet-stream"),
    ],
)
def test_a_job_is_a_signed_request(target: Target, ended: Ended, data: Any, body: bytes, kind: str) -> None:
    job = ended("ok", data)
    assert (job["state"], job["attempt"]) == ("done", 1)
    seen = target.seen[-1]
    headers = seen.headers
    assert (seen.body, headers["content-type"], headers["kqs-type"]) == (body, kind, "ok")
    assert headers["kqs-job-id"] == job["id"]
    stamp = int(headers["kqs-timestamp"])
    assert headers["kqs-signature"] == signature("s3cret", stamp, job["id"], 1, body)


def test_what_the_status_says_happens(ended: Ended) -> None:
    busy = ended("busy")
    assert (busy["state"], busy["last_error"]["kind"]) == ("delayed", "http")
    assert busy["last_error"]["traceback"] == "not now"
    gone = ended("gone")
    assert (gone["state"], gone["last_error"]["message"]) == ("buried", "HTTP status 410 (Gone)")


def test_a_slow_target_costs_an_attempt_and_no_worker(target: Target, client: Client, ended: Ended) -> None:
    [worker] = [name for name in workers(client) if "/default/" in name]
    job = ended("slow", ttr=0.5)
    assert (job["state"], job["last_error"]["kind"]) == ("delayed", "timeout")
    assert "deaths" not in job
    assert target.left.wait(PATIENCE)
    assert workers(client)[worker]["restarts"] == 0


def test_one_process_has_many_requests_under_way(client: Client) -> None:
    """Each is answered when all of them are there."""
    ids = client.insert_many([{"type": "together", "data": number} for number in range(24)])
    for id in ids:
        until(lambda id=id: client.job(id)["state"] == "done", "all to be answered")  # type: ignore[misc]


def workers(client: Client) -> dict[str, Any]:
    return {worker["name"]: worker for worker in client.stats()["workers"]}


@pytest.mark.parametrize("url", ["http://127.0.0.2/", "http://[::1]/", "http://169.254.169.254/latest/"])
def test_a_url_that_may_not_be_called_stops_the_start(tmp_path: Path, url: str) -> None:
    server = ServerProcess(tmp_path, CONFIG.replace("http://127.0.0.1:PORT/ok", url).replace("PORT", "1"))
    try:
        server.spawn()
        [line] = server.stderr.wait_for("http.allow_private")
        assert "handlers.ok.http" in line
    finally:
        server.discard()
