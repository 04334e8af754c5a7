"""What an attempt came to: exceptions, exit statuses, settlements."""

from __future__ import annotations

import msgspec
import pytest

from kqs.core.outcome import OK, Again, Attempted, Fail, Reason, Settlement, exit_outcome, status_outcome
from kqs.errors import KQSError


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (0, "ok", None),
        (75, "again", "exit status 75 (try again later)"),
        (111, "again", "exit status 111 (try again later)"),
        (100, "fail", "exit status 100 (failed for good)"),
        (1, "again", "exit status 1"),
        (2, "again", "exit status 2"),
        (99, "again", "exit status 99"),
        (101, "again", "exit status 101"),
        (127, "again", "exit status 127"),
        (137, "again", "exit status 137"),
        (255, "again", "exit status 255"),
        (-9, "again", "killed by signal 9"),
        (-11, "again", "killed by signal 11"),
        (-75, "again", "killed by signal 75"),
        (-100, "again", "killed by signal 100"),
    ],
)
def test_exit_status(status: int, outcome: str, reason: str | None) -> None:
    assert exit_outcome(status) == (outcome, reason)


def test_every_exit_status_has_an_outcome() -> None:
    outcomes = {status: exit_outcome(status)[0] for status in range(-64, 256)}
    assert [status for status, outcome in outcomes.items() if outcome == "ok"] == [0]
    assert [status for status, outcome in outcomes.items() if outcome == "fail"] == [100]


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (200, "ok", None),
        (202, "ok", None),
        (204, "ok", None),
        (299, "ok", None),
        (300, "fail", "HTTP status 300 (Multiple Choices): redirects are not followed"),
        (302, "fail", "HTTP status 302 (Found): redirects are not followed"),
        (304, "fail", "HTTP status 304 (Not Modified): redirects are not followed"),
        (308, "fail", "HTTP status 308 (Permanent Redirect): redirects are not followed"),
        (400, "fail", "HTTP status 400 (Bad Request)"),
        (401, "fail", "HTTP status 401 (Unauthorized)"),
        (404, "fail", "HTTP status 404 (Not Found)"),
        (407, "fail", "HTTP status 407 (Proxy Authentication Required)"),
        (408, "again", "HTTP status 408 (Request Timeout)"),
        (409, "fail", "HTTP status 409 (Conflict)"),
        (425, "again", "HTTP status 425 (Too Early)"),
        (429, "again", "HTTP status 429 (Too Many Requests)"),
        (499, "fail", "HTTP status 499"),
        (500, "again", "HTTP status 500 (Internal Server Error)"),
        (501, "again", "HTTP status 501 (Not Implemented)"),
        (503, "again", "HTTP status 503 (Service Unavailable)"),
        (599, "again", "HTTP status 599"),
        (999, "again", "HTTP status 999"),
    ],
)
def test_http_status(status: int, outcome: str, reason: str | None) -> None:
    assert status_outcome(status) == (outcome, reason)


def test_again_and_fail_carry_what_the_handler_said() -> None:
    assert (str(Again("busy", delay=2.5)), Again("busy", delay=2.5).delay) == ("busy", 2.5)
    assert (Again().reason, Again().delay) == ("", None)
    assert (str(Fail("bad file")), Fail("bad file").reason) == ("bad file", "bad file")
    assert issubclass(Again, KQSError)
    assert issubclass(Fail, KQSError)
    assert not issubclass(Again, Fail)


def test_an_attempt_becomes_its_settlement() -> None:
    assert OK.settlement("1-1-a", 0.25) == Settlement("1-1-a", "ok", took=0.25)
    reason = Reason("no such file", "FileNotFoundError")
    settled = Attempted("again", 5.0, reason).settlement("1-2-b", 2.0000004)
    assert settled == Settlement("1-2-b", "again", delay=5.0, reason=reason, took=2.0)
    kept = Attempted("ok", result=b"[1]").settlement("1-3-c", 0)
    assert kept == Settlement("1-3-c", "ok", result=msgspec.Raw(b"[1]"), took=0)


@pytest.mark.parametrize(
    ("settlement", "wire"),
    [
        (Settlement("r", "ok"), b'{"receipt":"r","outcome":"ok"}'),
        (Settlement("r", "ok", result=msgspec.Raw(b"[1]")), b'{"receipt":"r","outcome":"ok","result":[1]}'),
        (
            Settlement("r", "again", delay=1.5, prio="low"),
            b'{"receipt":"r","outcome":"again","delay":1.5,"prio":"low"}',
        ),
        (Settlement("r", "fail", reason="why"), b'{"receipt":"r","outcome":"fail","reason":"why"}'),
        (
            Settlement("r", "fail", reason=Reason("why", "E")),
            b'{"receipt":"r","outcome":"fail","reason":{"message":"why","kind":"E"}}',
        ),
        (Settlement("r", "ok", took=0.5), b'{"receipt":"r","outcome":"ok","took":0.5}'),
        (Settlement("r", "release"), b'{"receipt":"r","outcome":"release"}'),
    ],
)
def test_settlement_both_ways(settlement: Settlement, wire: bytes) -> None:
    assert msgspec.json.encode(settlement) == wire
    decoded = msgspec.json.decode(wire, type=Settlement)
    if settlement.result is not msgspec.UNSET:  # Raw compares by identity
        assert bytes(decoded.result) == bytes(settlement.result)
        decoded.result = settlement.result
    assert decoded == settlement


@pytest.mark.parametrize(
    "bad",
    [
        b"{}",
        b'{"receipt":"r"}',
        b'{"outcome":"ok"}',
        b'{"receipt":1,"outcome":"ok"}',
        b'{"receipt":"r","outcome":"done"}',
        b'{"receipt":"r","outcome":"OK"}',
        b'{"receipt":"r","outcome":null}',
        b'{"receipt":"r","outcome":"again","delay":-1}',
        b'{"receipt":"r","outcome":"again","delay":true}',
        b'{"receipt":"r","outcome":"again","delay":1e999}',
        b'{"receipt":"r","outcome":"again","prio":"top"}',
        b'{"receipt":"r","outcome":"fail","reason":5}',
        b'{"receipt":"r","outcome":"fail","reason":{"kind":"E"}}',
        b'{"receipt":"r","outcome":"fail","reason":{"message":"m","zzz":1}}',
        b'{"receipt":"r","outcome":"fail","reason":"%b"}' % (b"x" * 65537),
        b'{"receipt":"r","outcome":"ok","zzz":1}',
    ],
)
def test_other_settlements_are_refused(bad: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(bad, type=Settlement)
