"""``examples/worker.js``, run with Node and the npm package qrpc against a real server."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.remote.support import Proxy
from tests.support import PATIENCE, ServerProcess, until

ROOT = Path(__file__).parent.parent.parent
MODULES = ROOT / "tests" / "node" / "node_modules"

pytestmark = pytest.mark.service("node")


class Pages:
    """A web server: what it answers is set by the test, what it was asked is kept.

    Attributes:
        answers: (status, body) of the requests to come, the last one for all further ones.
        asked: how often.
        open: whether requests are answered; they wait otherwise.
    """

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        pages = self
        self.answers = list(answers)
        self.asked = 0
        self.open = threading.Event()
        self.open.set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pages.asked += 1
                status, body = pages.answers.pop(0) if len(pages.answers) > 1 else pages.answers[0]
                pages.open.wait(PATIENCE)
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the caller gave up

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def node(proxy: Proxy) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts the example with a port; ends it while the proxy is still there to bring it its last reply."""
    if not (MODULES / "qrpc").is_dir():
        text = "needs 'npm ci' in tests/node"
        if os.environ.get("CI") == "true":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    made: list[subprocess.Popen[str]] = []

    def make(port: int) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen(
                ["node", str(ROOT / "examples" / "worker.js"), str(port)],
                env={**os.environ, "NODE_PATH": str(MODULES)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return made[-1]

    yield make
    for process in made:
        process.terminate()
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        assert process.returncode == 0 and not output, output


@pytest.fixture
def pages() -> Iterator[Callable[..., Pages]]:
    made: list[Pages] = []

    def make(*answers: tuple[int, bytes]) -> Pages:
        made.append(Pages(*answers))
        return made[-1]

    yield make
    for one in made:
        one.close()


Node = Callable[[int], "subprocess.Popen[str]"]


def test_done_again_and_failed(server: ServerProcess, node: Node, pages: Callable[..., Pages]) -> None:
    client = server.client()
    good, busy, missing = pages((200, b"12345")), pages((503, b""), (200, b"123")), pages((404, b""))
    ids = [
        client.insert("page.size", {"url": one.url}, result_ttl=60, retry={"base": 0.1})
        for one in (good, busy, missing)
    ]
    node(server.port)
    assert client.call("wait", {"id": ids[0]})["result"] == 5
    assert client.call("wait", {"id": ids[1]})["result"] == 3
    assert client.job(ids[1])["attempt"] == 2
    assert client.call("wait", {"id": ids[2]})["state"] == "buried"
    error = client.job(ids[2])["last_error"]
    assert error["message"].endswith("status 404") and error["kind"] == "Error"
    assert "worker.js" in error["traceback"]


def test_renewed_through_cuts_and_restarts(
    server: ServerProcess, node: Node, pages: Callable[..., Pages], proxy: Proxy
) -> None:
    client = server.client()
    page = pages((200, b"1"))
    page.open.clear()
    id = client.insert("page.size", {"url": page.url}, ttr=3, result_ttl=60)
    node(proxy.port)
    until(lambda: page.asked == 1)
    for _ in range(2):
        before = client.job(id)["lease_expires_at"]
        proxy.cut()
        until(lambda before=before: client.job(id)["lease_expires_at"] > before, "a renewal")
    page.open.set()
    assert client.call("wait", {"id": id})["result"] == 1
    assert page.asked == 1


def test_a_lost_lease_is_not_settled(
    server: ServerProcess, node: Node, pages: Callable[..., Pages], proxy: Proxy
) -> None:
    client = server.client()
    page = pages((200, b"1"))
    page.open.clear()
    id = client.insert("page.size", {"url": page.url}, ttr=1, result_ttl=60)
    node(proxy.port)
    until(lambda: page.asked == 1)
    proxy.refusing = True
    proxy.cut()
    until(lambda: client.job(id)["state"] == "ready", "the rescue")
    proxy.refusing = False
    until(lambda: page.asked == 2)
    page.open.set()
    assert client.call("wait", {"id": id})["result"] == 1
    assert client.job(id)["attempt"] == 2
