"""Calls of HTTP handlers, made to a real server that answers well and badly."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from time import time
from typing import Any

import pytest

from kqs.core.outcome import OK, Attempted
from kqs.runners import http, output
from kqs.runners.http import MAX_RETRY_AFTER, HttpRunner, retry_after, signature
from kqs.testing.runners import new_job
from tests.target import PATIENCE, Exchange, Target

LOCAL = ["127.0.0.0/8", "::1"]
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()


Call = Callable[..., Any]


@pytest.fixture
async def call(target: Target) -> AsyncIterator[Call]:
    """Makes an attempt whose request is answered by a function."""
    runners: list[HttpRunner] = []

    async def call(
        answer: Callable[[Exchange], None] | str = Exchange.reply,
        payload: bytes = b'{"a":1}',
        *,
        secret: str | None = None,
        timeout: float | None = None,
        **job: Any,
    ) -> Attempted:
        if isinstance(answer, str):
            url = answer
        else:
            target.answers["/x?y=z"] = answer
            url = target.url("/x?y=z")
        runner = HttpRunner(url, secret=secret, timeout=timeout, allow=LOCAL)
        runners.append(runner)
        return await runner.arun(new_job(runner, payload, **job), payload)

    yield call
    for runner in runners:
        await runner.aclose()


def why(attempted: Attempted, outcome: str, kind: str) -> str:
    """The message of an attempt that ended like this."""
    assert attempted.reason is not None
    assert (attempted.outcome, attempted.reason.kind) == (outcome, kind)
    return attempted.reason.message


# -- what is sent -----------------------------------------------------------------------------------


async def test_the_request(target: Target, call: Call) -> None:
    before = int(time())
    assert await call(secret="s3cret", attempt=3, type="bild/größe 1\n") == OK
    [seen] = target.seen
    assert (seen.path, seen.body) == ("/x?y=z", b'{"a":1}')
    headers = seen.headers
    stamp = headers.pop("kqs-timestamp")
    assert before <= int(stamp) <= time()
    mac = hmac.new(b"s3cret", f"{stamp}.5eed5eed-1.3.".encode() + seen.body, hashlib.sha256).hexdigest()
    assert headers == {
        "host": f"127.0.0.1:{target.port}",
        "content-type": "application/json",
        "content-length": "7",
        "user-agent": "kqs",
        "accept-encoding": "identity",
        "kqs-job-id": "5eed5eed-1",
        "kqs-type": "bild/gr%C3%B6%C3%9Fe%201%0A",
        "kqs-attempt": "3",
        "kqs-signature": f"v1={mac}",
    }


async def test_bytes_are_called_bytes(target: Target, call: Call) -> None:
    assert await call(payload=b"{}", binary=True) == OK
    assert target.seen[0].headers["content-type"] == "application/octet-stream"


async def test_without_a_secret_nothing_is_signed(target: Target, call: Call) -> None:
    assert await call() == OK
    assert "kqs-signature" not in target.seen[0].headers


def test_the_signature_is_the_documented_one() -> None:
    """A vector that never changes: receivers rely on it."""
    assert signature("k\u00e9y", 1700000000, "71d96dc0-1", 2, b'{"to":"ann"}') == (
        "v1=" + hmac.new("k\u00e9y".encode(), b'1700000000.71d96dc0-1.2.{"to":"ann"}', "sha256").hexdigest()
    )
    assert signature("secret", 1700000000, "71d96dc0-1", 1, b"null") == (
        "v1=69ba23fd06248da397fda221fc2837a8d833e9e9da96ae58efb7adc416bbe531"
    )


async def test_no_setting_of_the_environment_is_used(
    target: Target, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert await call() == OK
    assert "authorization" not in target.seen[0].headers


async def test_a_connection_is_used_again_and_remembers_nothing(target: Target) -> None:
    target.answers["/"] = lambda exchange: exchange.reply(200, b"ok", Set_Cookie="a=b; Path=/")
    runner = HttpRunner(target.url("/"), allow=LOCAL)
    for _ in range(3):
        assert await runner.arun(new_job(runner), b"null") == OK
    await runner.aclose()
    assert target.connections == 1
    assert [seen.headers.get("cookie") for seen in target.seen] == [None] * 3


# -- what a response comes to -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "ok"),
        (201, "ok"),
        (204, "ok"),
        (400, "fail"),
        (404, "fail"),
        (408, "again"),
        (425, "again"),
        (429, "again"),
        (500, "again"),
        (503, "again"),
    ],
)
async def test_statuses(call: Call, status: int, outcome: str) -> None:
    attempted = await call(lambda exchange: exchange.reply(status))
    assert (attempted.outcome, attempted.delay) == (outcome, None)
    if outcome != "ok":
        assert why(attempted, outcome, "http").startswith(f"HTTP status {status} (")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(target: Target, call: Call, status: int) -> None:
    target.answers["/other"] = Exchange.reply
    attempted = await call(lambda exchange: exchange.reply(status, Location=target.url("/other")))
    assert "redirects are not followed" in why(attempted, "fail", "http")
    assert len(target.seen) == 1


@pytest.mark.parametrize(
    ("status", "value", "delay"),
    [
        (503, "7", 7),
        (429, "7", 7),
        (500, "7", 7),
        (408, "7", 7),
        (503, "0", None),
        (503, "-7", None),
        (503, "soon", None),
        (503, "", None),
        (503, "99999999999", MAX_RETRY_AFTER),
        (503, "9" * 5000, MAX_RETRY_AFTER),
        (404, "7", None),
    ],
)
async def test_retry_after(call: Call, status: int, value: str, delay: float | None) -> None:
    attempted = await call(lambda exchange: exchange.reply(status, Retry_After=value))
    assert attempted.delay == delay


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("Wed, 21 Oct 2015 07:28:00 GMT", 60),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 60),
        ("Wed, 21 Oct 2015 09:28:00 +0200", 60),
        ("Wed, 21 Oct 2015 07:27:00 GMT", None),  # now
        ("Wed, 21 Oct 2015 07:00:00 GMT", None),
        ("Sun, 21 Oct 2035 07:28:00 GMT", MAX_RETRY_AFTER),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("1.5", None),
        ("\u0667", None),
    ],
)
def test_a_date_to_retry_after(value: str, delay: float | None) -> None:
    assert retry_after(value, dt.datetime(2015, 10, 21, 7, 27, tzinfo=dt.UTC)) == delay


async def test_what_the_target_says_is_kept_with_a_failure(call: Call) -> None:
    attempted = await call(lambda exchange: exchange.reply(400, b"no field \xff 'to'\n"))
    assert attempted.reason.traceback == "no field \N{REPLACEMENT CHARACTER} 'to'"
    attempted = await call(lambda exchange: exchange.reply(500, b"x" * 1_000_000))
    assert attempted.reason.traceback == "x" * output.KEEP


async def test_a_compressed_response_is_not_unpacked(call: Call) -> None:
    """It was not asked for, and may be small on the wire only."""
    attempted = await call(
        lambda exchange: exchange.reply(200, b"\x1f\x8b\xff", Content_Encoding="gzip"), wants_result=True
    )
    assert "not UTF-8" in why(attempted, "fail", "result")


# -- targets in trouble -----------------------------------------------------------------------------


async def test_a_target_that_is_down(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert f"127.0.0.1:{port} cannot be called" in why(
        await call(f"http://127.0.0.1:{port}/"), "again", "network"
    )


async def test_a_name_that_is_not_there(call: Call) -> None:
    message = why(await call("http://nowhere.invalid/"), "again", "network")
    assert "nowhere.invalid cannot be called" in message
    why(await call(f"http://{'a' * 70}.invalid/"), "again", "network")  # no name has such a label


@pytest.mark.parametrize(
    "answer",
    [
        Exchange.reset,
        lambda exchange: exchange.raw(b""),
        lambda exchange: exchange.raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
        lambda exchange: exchange.raw(b"HTTP/1.1 2"),
        lambda exchange: exchange.raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000),
        lambda exchange: exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"),
        lambda exchange: exchange.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        lambda exchange: exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
    ],
    ids=["reset", "nothing", "not-http", "half", "huge-head", "short-body", "bad-chunk", "bad-length"],
)
@pytest.mark.parametrize("wants_result", [False, True])
async def test_a_broken_response_is_again(call: Call, answer: Any, wants_result: bool) -> None:
    why(await call(answer, wants_result=wants_result), "again", "network")


@pytest.mark.parametrize(
    "answer",
    [
        Exchange.hang,
        lambda exchange: exchange.hang(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal"),
        lambda exchange: exchange.trickle(b"HTTP/1.1 200 OK\r\nX: "),
        lambda exchange: exchange.trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda exchange: exchange.trickle(LONG),
    ],
    ids=["silent", "half", "trickling-head", "continue", "trickling-body"],
)
@pytest.mark.parametrize("settings", [{"timeout": 0.2}, {"ttr": 0.2}], ids=["timeout", "ttr"])
async def test_a_slow_response_ends_inside_the_ttr(
    target: Target, call: Call, answer: Any, settings: dict[str, float]
) -> None:
    attempted = await call(answer, **settings)
    assert "did not respond in full within 0." in why(attempted, "again", "timeout")
    assert await asyncio.to_thread(target.left.wait, PATIENCE), "the connection stays"


async def test_a_target_that_takes_nothing(call: Call) -> None:
    """It accepts the connection and reads nothing of a large payload."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        why(await call(url, b"x" * 32 * 1024 * 1024, binary=True, ttr=0.3), "again", "timeout")


def test_some_of_the_ttr_is_left_to_settle_in(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []
    timeout = asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda seconds: asked.append(seconds) or timeout(0))
    runner = HttpRunner("http://127.0.0.1:1/", timeout=300, allow=LOCAL)
    for ttr in (1, 60, 1000, -5):
        asyncio.run(runner.arun(new_job(runner, ttr=ttr), b"null"))
    assert asked == [pytest.approx(0.9, abs=0.1), pytest.approx(59, abs=0.5), 300, 0]


async def test_a_failure_is_no_less_one_when_its_body_is_slow(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000000\r\n\r\n"
    with monkeypatch.context() as patch:
        patch.setattr(http, "SAYING", 0.1)
        attempted = await call(lambda exchange: exchange.trickle(head))
    assert why(attempted, "fail", "http") == "HTTP status 404 (Not Found)"
    assert set(attempted.reason.traceback) == {"x"}
    attempted = await call(lambda exchange: exchange.trickle(head), ttr=0.3)  # the ttr is over first
    assert why(attempted, "fail", "http") == "HTTP status 404 (Not Found)"
    attempted = await call(lambda exchange: exchange.raw(head + b"gone"))
    assert (why(attempted, "fail", "http"), attempted.reason.traceback) == (
        "HTTP status 404 (Not Found)",
        "gone",
    )


async def test_an_endless_response_is_not_kept(
    target: Target, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_RESULT", 100_000)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    attempted = await call(lambda exchange: exchange.trickle(head, chunk), wants_result=True)
    assert "larger than 100000 bytes" in why(attempted, "fail", "result")
    assert await asyncio.to_thread(target.left.wait, PATIENCE), "the connection stays"


@pytest.mark.parametrize("addresses", [("127.0.0.77", "127.0.0.1"), ("127.0.0.1", "127.0.0.77")])
async def test_all_addresses_of_a_name_are_tried(
    target: Target, call: Call, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, str]
) -> None:
    answer_with(monkeypatch, *addresses)
    target.answers["/"] = Exchange.reply
    assert await call(target.url("/", "several.example")) == OK
    assert target.seen[0].headers["host"] == f"several.example:{target.port}"


async def test_a_name_that_leads_home_is_not_called(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up that was checked is the only one: between two there is no time to change the answer."""
    answer_with(monkeypatch, "127.0.0.1")
    runner = HttpRunner(target.url("/", "rebound.example"))
    attempted = await runner.arun(new_job(runner), b"null")
    assert "rebound.example stands for 127.0.0.1" in why(attempted, "again", "target")
    assert target.connections == 0


def answer_with(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Any name stands for these addresses; addresses stand for themselves."""
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *args: Any, **settings: Any) -> list[Any]:
        if host.replace(".", "").isdigit():
            return real(host, port, *args, **settings)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


# -- TLS --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of ``good.example``, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    subject = ["-subj", "/CN=good.example", "-addext", "subjectAltName=DNS:good.example"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    made = subprocess.run(
        ["openssl", "req", "-x509", *kind, *subject, "-keyout", "-", "-out", "-"],
        capture_output=True,
        check=True,
    )
    file.write_bytes(made.stdout)
    return file


@pytest.fixture
def secure(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """A server with it, at every name."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    answer_with(monkeypatch, "127.0.0.1")
    http._authorities.cache_clear()
    target = Target(context)
    target.answers["/"] = Exchange.reply
    yield target
    target.close()
    http._authorities.cache_clear()


async def test_tls_is_verified_for_the_name_not_the_address(
    secure: Target, call: Call, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert await call(secure.url("/", "good.example"), b"null") == OK
    assert "Hostname mismatch" in why(await call(secure.url("/", "bad.example"), b"null"), "again", "network")
    why(await call(secure.url("/"), b"null"), "again", "network")
    assert len(secure.seen) == 1


async def test_nobody_is_trusted_whom_the_system_does_not_know(secure: Target, call: Call) -> None:
    message = why(await call(secure.url("/", "good.example"), b"null"), "again", "network")
    assert "certificate verify failed" in message
    assert secure.seen == []
