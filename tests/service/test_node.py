"""The npm package qrpc 1.1.6, run with Node, against a real server: the seed's clients work unchanged."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kqs.core import wire
from kqs.errors import Busy
from tests.support import PATIENCE, ServerProcess, until

NODE = Path(__file__).parent.parent / "node"
Script = Callable[[str, int], Any]

pytestmark = pytest.mark.service("node")


@pytest.fixture
def run() -> Script:
    """Runs a script of tests/node with a port; returns what it printed."""
    if not (NODE / "node_modules" / "qrpc").is_dir():
        text = "needs 'npm ci' in tests/node"
        if os.environ.get("CI") == "true":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)

    def run(script: str, port: int) -> Any:
        done = subprocess.run(
            ["node", str(NODE / f"{script}.js"), str(port)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return json.loads(done.stdout)

    return run


def test_the_package_is_the_one_of_the_seed(run: Script) -> None:
    package = json.loads((NODE / "node_modules" / "qrpc" / "package.json").read_text())
    assert package["version"] == "1.1.6"


def test_every_call_of_the_seed(run: Script, shared: ServerProcess) -> None:
    seen = run("seed", shared.port)
    assert seen["ping"] == seen["pingWithArgument"] == "pong"
    assert seen["echo"] == seen["values"]
    assert seen["echoNothing"] == "undefined"
    assert seen["stats"]["types"]["seed"]["ready"] == 3
    with shared.client() as client:
        jobs = [client.job(id, data=True) for id in (seen["one"]["id"], *seen["many"]["ids"])]
    assert [(job["data"], job["prio"]) for job in jobs] == [
        ({"a": 1}, "high"),
        (None, "normal"),
        ([1, 2], "normal"),
    ]


def test_quit(run: Script, start: Callable[..., ServerProcess]) -> None:
    server = start()
    assert run("quit", server.port) == {"quit": None}
    assert server.wait() == 0


def test_errors_are_error_objects(run: Script, shared: ServerProcess) -> None:
    seen = run("errors", shared.port)
    assert seen.pop("after") == "pong"
    assert all(error["isError"] for error in seen.values())
    assert seen["unknown"]["message"] == "nosuch: no handler"
    assert {name: error["code"] for name, error in seen.items()} == {
        "unknown": "unsupported",
        "unknownField": "unknown_field",
        "badPrio": "bad_request",
        "tooLarge": "too_large",
        "notFound": "not_found",
    }
    assert seen["unknownField"]["field"] == "dealy"
    assert (seen["badPrio"]["field"], seen["badPrio"]["index"]) == ("prio", 1)
    assert seen["tooLarge"]["limit"] == 197


def test_buffers_both_ways(run: Script, shared: ServerProcess) -> None:
    seen = run("buffers", shared.port)
    assert seen["bytes"] == 256
    assert seen["same"] == [True] * 8
    assert seen["empty"] == "undefined"
    with shared.client() as client:
        for id, payload in (
            (seen["inserted"]["id"], bytes(range(256))),
            (seen["insertedEmpty"]["id"], b""),
        ):
            assert b64decode(client.job(id, data=True)["data64"]) == payload


def test_ten_thousand_calls_in_flight(run: Script, shared: ServerProcess) -> None:
    assert run("flight", shared.port) == {"once": 10_000, "wrong": 0}
    with shared.client() as client:
        assert client.call("stats", {"type": "flight"})["jobs"]["ready"] == 1000


def test_undefined_as_an_argument(run: Script, shared: ServerProcess) -> None:
    seen = run("undefined", shared.port)
    insert = seen.pop("insert")
    assert seen == {"literal": True, "ping": "pong", "echo": "undefined", "stats": "object"}
    assert (insert["isError"], insert["code"]) == (True, "bad_request")


class _Streams(socketserver.StreamRequestHandler):
    """A server that answers several times, with the codec of the real one."""

    def handle(self) -> None:
        for line in self.rfile:
            request = wire.decode_request(line)
            id = wire.reply_id(request.id)
            parts = [wire.encode_part(id, b"%d" % number) for number in range(1000)]
            self.wfile.write(
                {
                    "parts": b"".join(parts) + wire.encode_end(id),
                    "none": wire.encode_end(id),
                    "value": wire.encode_part(id, b'"part"') + wire.encode_reply(id, b'"last"'),
                    "error": wire.encode_part(id, b'"part"') + wire.encode_error(id, Busy("no more")),
                    "plain": wire.encode_reply(id, b"null"),
                    "last": wire.encode_reply(id, b"true"),
                }[request.n]
            )


@pytest.fixture
def streams() -> Iterator[int]:
    """The port of such a server."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Streams) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made.server_address[1]
        finally:
            made.shutdown()
            thread.join()


def test_several_replies_to_one_call(run: Script, streams: int) -> None:
    seen = run("stream", streams)
    assert seen["parts"] == list(range(1000))  # and nobody is called back for the end
    assert seen["none"] == []
    assert seen["value"] == ["part", "last"]
    assert seen["error"][0] == "part"
    assert seen["error"][1] == {"isError": True, "message": "no more", "code": "busy"}
    assert seen["plain"] == [None]
    assert seen["open"] == 0


def test_a_job_of_node_runs_in_python(run: Script, start: Callable[..., ServerProcess]) -> None:
    """Buffers inserted by Node arrive at a Python handler as bytes."""
    server = start('[handlers.buffer]\npython = "jobs:digest"\n[pools.default]\nprocesses = 1\n')
    seen = run("buffers", server.port)
    with server.client() as client:
        for id, size in ((seen["inserted"]["id"], 256), (seen["insertedEmpty"]["id"], 0)):
            server.stdout.wait_for(f"digest {id} bytes {size} ")
            until(lambda id=id: client.job(id)["state"] == "done")


def test_watch_and_wait(run: Script, shared: ServerProcess) -> None:
    seen = run("watch", shared.port)
    assert seen["seen"] == ["state", "reserved", "progress", "done"]
    assert seen["result"] == {"id": seen["id"], "state": "done", "outcome": "ok", "result": {"pages": 3}}
    assert seen["refused"]["isError"] and seen["refused"]["code"] == "not_found"
    assert seen["open"] == 0
