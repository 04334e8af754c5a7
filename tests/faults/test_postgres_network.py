"""A server cut off from PostgreSQL, packets lost silently: others take over, and it hears what it missed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import psutil
import pytest

from kqs.client import Client
from kqs.errors import CallError
from kqs.testing.postgres import PostgresServer
from tests.conftest import unavailable
from tests.support import ServerProcess, until

from .machine import Unavailable
from .network import Network
from .postgres import running

#: Seconds after which a server that is cut off is known to be gone, and some for a busy machine.
NOTICED = 11 + 4 + 10


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        made = Network()
    except Unavailable as reason:
        unavailable(str(reason))
    yield made
    made.discard()


@pytest.fixture
def postgres(network: Network) -> Iterator[PostgresServer]:
    with running(address=network.here) as server:
        yield server


def _config(postgres: PostgresServer) -> str:
    return f'[engine]\nkind = "postgres"\n[postgres]\nurl = "{postgres.tcp_url}"\nconnect_timeout = 2\n'


def _reserve(client: Client, type: str, wait: float = 1.0) -> list[dict[str, str]]:
    jobs: list[dict[str, str]] = client.call("reserve", {"types": [type], "wait": wait})["jobs"]
    return jobs


def _settle(client: Client, receipt: str) -> list[dict[str, str]]:
    refused: list[dict[str, str]] = client.call("settle", [{"receipt": receipt, "outcome": "ok"}])["refused"]
    return refused


def test_a_server_that_is_cut_off(postgres: PostgresServer, network: Network, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    hold = f'[handlers.hold]\ncommand = ["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 600"]\n'
    near = ServerProcess(tmp_path / "near", _config(postgres)).start()
    far = ServerProcess(tmp_path / "far", _config(postgres) + hold, under=network.under).start()
    there = Client(f"kqs+unix:{far.data}/kqs.sock", timeout=90)
    try:
        with near.client() as client, there:
            held = client.insert("hold", ttr=3600)
            until(lambda: client.job(held)["state"] == "reserved" and (tmp_path / "pid").exists())
            handler = psutil.Process(int(until((tmp_path / "pid").read_text)))
            kept, lapsing = there.insert("kept", ttr=3600), there.insert("lapsing", ttr=2)
            [late] = _reserve(there, "kept")
            [stale] = _reserve(there, "lapsing")

            network.cut()
            cut = monotonic()
            told: list[tuple[float, str]] = []

            def insert() -> None:
                try:
                    there.insert("unknown")
                except CallError as error:
                    told.append((monotonic() - cut, error.code))

            inserting = threading.Thread(target=insert)
            inserting.start()
            over = threading.Event()

            def notices() -> None:  # and so its silence is no idle one
                with Client(near.url) as other:
                    while not over.wait(0.05):
                        other.insert("noise")

            noise = threading.Thread(target=notices)
            noise.start()
            [again] = until(lambda: _reserve(client, "hold"), "the lease of the server that is cut off")
            rescued = monotonic() - cut
            [other] = until(lambda: _reserve(client, "lapsing"), "the lease that ended meanwhile")
            over.set()
            noise.join()
            assert (again["id"], again["attempt"]) == (held, 1)
            assert (other["id"], other["attempt"]) == (lapsing, 2)
            assert rescued < NOTICED
            inserting.join()
            [(after, code)] = told
            assert code in ("busy", "internal") and after < NOTICED + 30
            assert client.call("stats", {"type": "unknown"})["jobs"]["ready"] == 0

            network.heal()
            assert [one["code"] for one in until(lambda: _answered(there, stale), "its answer")] == [
                "stale_receipt"
            ]
            assert _settle(there, late["receipt"]) == []
            assert client.job(kept)["state"] == "done"
            until(lambda: not handler.is_running(), "the attempt that lost its lease to be ended")
            assert _settle(client, again["receipt"]) == []
            assert client.job(held)["state"] == "done"
            until(lambda: there.insert("after"))
        for server in (near, far):
            server.stop()
            events = [line["event"] for line in server.logged() if line["event"].startswith("PostgreSQL is")]
            assert events == (["PostgreSQL is away", "PostgreSQL is back"] if server is far else [])
    finally:
        near.discard()
        far.discard()


def _answered(client: Client, job: dict[str, str]) -> list[dict[str, str]] | None:
    try:
        return _settle(client, job["receipt"])
    except CallError:
        return None
