"""The receivers on the page about HTTP handlers take what KQS signs, and nothing else."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest
from pages import blocks

from kqs.core.outcome import OK
from kqs.runners import http
from kqs.runners.http import HttpRunner, signature
from kqs.testing.runners import new_job

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "http-handlers.md"
SECRET = "a secret"
PATIENCE = 30.0


@pytest.fixture(params=["receiver.py", "receiver.js"])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a receiver that runs."""
    program = sys.executable if request.param.endswith(".py") else shutil.which("node")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("node is not installed")
        pytest.skip("node is not installed")
    file = tmp_path / request.param
    file.write_text(next(block.text for block in blocks(PAGE) if block.file == request.param))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"EXPORT_SECRET": SECRET, "PORT": str(port)}
    process = subprocess.Popen([program, str(file)], env=environment, stdout=subprocess.DEVNULL)
    try:
        until = monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert monotonic() < until and process.poll() is None, "the receiver does not come up"
                sleep(0.02)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


def call(url: str, payload: bytes = b'{"order":7}', secret: str | None = SECRET) -> str:
    """The outcome of an attempt."""

    async def attempt() -> str:
        runner = HttpRunner(url, secret=secret, allow=["127.0.0.1"])
        try:
            attempted = await runner.arun(new_job(runner, payload), payload)
        finally:
            await runner.aclose()
        assert attempted == OK or (attempted.reason and "401" in attempted.reason.message)
        return attempted.outcome

    return asyncio.run(attempt())


@pytest.mark.parametrize("payload", [b"null", b'"\xc3\xa9"', b"[" + b"1," * 500_000 + b"1]"])
def test_what_is_signed_is_taken(receiver: str, payload: bytes) -> None:
    assert call(receiver, payload) == "ok"


@pytest.mark.parametrize("secret", ["another", None])
def test_another_secret_is_refused(receiver: str, secret: str | None) -> None:
    assert call(receiver, secret=secret) == "fail"


@pytest.mark.parametrize("seconds", [-301, 302])
def test_another_time_is_refused(receiver: str, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = http.time()
    monkeypatch.setattr(http, "time", lambda: now + seconds)
    assert call(receiver) == "fail"


def test_what_was_changed_on_the_way_is_refused(receiver: str) -> None:
    now = int(http.time())
    good = {
        "KQS-Timestamp": str(now),
        "KQS-Job-Id": "71d96dc0-1",
        "KQS-Attempt": "1",
        "KQS-Signature": signature(SECRET, now, "71d96dc0-1", 1, b"body"),
    }
    with httpx.Client(trust_env=False) as client:
        assert client.post(receiver, headers=good, content=b"body").status_code == 204
        assert client.post(receiver, headers=good, content=b"b0dy").status_code == 401
        for name, value in [
            ("KQS-Timestamp", str(now - 1)),
            ("KQS-Timestamp", ""),
            ("KQS-Job-Id", "71d96dc0-2"),
            ("KQS-Attempt", "2"),
            ("KQS-Signature", good["KQS-Signature"][:-1]),
            ("KQS-Signature", good["KQS-Signature"].removeprefix("v1=")),
            ("KQS-Signature", ""),
        ]:
            assert client.post(receiver, headers={**good, name: value}, content=b"body").status_code == 401
