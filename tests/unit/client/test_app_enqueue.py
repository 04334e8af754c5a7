"""``enqueue``: arguments are checked before they travel, and arrive as what they were."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
import uuid
from typing import Any

import msgspec
import pytest

from kqs import App
from kqs.core.job import Unique

from .handlers import EVERYTHING, THEN, Colour, Point, Size, a_job, everything
from .peer import Line, Peer

# -- enqueue -------------------------------------------------------------------------------------


class Inserts:
    """A peer that notes what is inserted."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, line: Line) -> None:
        while True:
            call = line.call()
            assert call["n"] == "insert"
            self.calls.append(call)
            line.reply(call, {"id": str(len(self.calls))})


PLAIN = {"type": "t"}


def test_enqueue() -> None:
    inserts = Inserts()
    with Peer(inserts) as peer:
        app = App(peer.url)

        @app.job("t")
        def handler(path: str, at: dt.datetime, n: int = 1) -> None:
            raise AssertionError("not run here")

        @app.job("b", prio="bulk", ttr=5, max_attempts=2, retry={"base": 9})
        def blob(data: bytes, name: str = "") -> None: ...

        @app.job("o")
        def only(data: bytes) -> None: ...

        with app.client:
            assert handler.enqueue(path="/a", at=THEN) == "1"
            assert (
                handler.using(prio="urgent", delay=1.5, ttr=9, max_attempts=1).enqueue(path="/a", at=THEN)
                == "2"
            )
            assert handler.using(delay=0, unique="/a").enqueue(path="/a", at=THEN, n=2) == "3"
            assert blob.enqueue(data=b"\xff") == "4"
            assert only.enqueue(data=b"\xff") == "5"
            assert only.using(unique=Unique("u", "queued")).enqueue(data=b"") == "6"
            assert only.enqueue(data=memoryview(b"\xff")) == "7"
        assert peer.connections == 1
    data = {"path": "/a", "at": "2024-01-02T00:00:00Z"}
    own = {"type": "b", "prio": "bulk", "ttr": 5, "max_attempts": 2}
    retry = {"backoff": "exponential", "base": 9.0, "cap": 3600.0, "jitter": 0.5}
    assert [(call["m"], call.get("b")) for call in inserts.calls] == [
        ({**PLAIN, "data": data}, None),
        ({"type": "t", "prio": "urgent", "ttr": 9, "max_attempts": 1, "delay": 1.5, "data": data}, None),
        ({**PLAIN, "delay": 0, "unique": "/a", "data": {**data, "n": 2}}, None),
        ({**own, "retry": retry, "data": {"data": "/w=="}}, None),
        ({**PLAIN, "type": "o"}, b"\xff"),
        # Its bytes are nothing, as the binary part.
        ({**PLAIN, "type": "o", "unique": {"key": "u", "scope": "queued"}}, None),
        ({**PLAIN, "type": "o"}, b"\xff"),
    ]


async def test_enqueue_async() -> None:
    inserts = Inserts()
    with Peer(inserts) as peer:
        app = App(peer.url)

        @app.job("t")
        async def handler(n: int) -> None: ...

        assert await handler.enqueue_async(n=1) == "1"
        assert await handler.using(prio="low").enqueue_async(n=2) == "2"
    assert [call["m"] for call in inserts.calls] == [
        {**PLAIN, "data": {"n": 1}},
        {**PLAIN, "prio": "low", "data": {"n": 2}},
    ]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"n": "1"}, "n"),
        ({}, "n"),
        ({"n": 1, "m": 2}, "m"),
        ({"n": 1, "share": math.nan}, "share"),
        ({"n": 1, "share": math.inf}, "share"),
        ({"n": b"bytes"}, "n"),
        ({"n": 1, "share": object()}, "object"),
    ],
)
async def test_a_mistake_shows_where_it_is_made(app: App, data: dict[str, Any], field: str) -> None:
    """Nothing is sent: nobody listens at this app's server."""

    @app.job("t")
    def handler(n: int, share: float = 1.0) -> None: ...

    with pytest.raises(TypeError, match=field):
        handler.enqueue(**data)
    with pytest.raises(TypeError, match=field):
        await handler.enqueue_async(**data)


def test_what_was_enqueued_is_what_the_function_gets(app: App) -> None:
    function = app.job("t")(everything)
    given = {
        **EVERYTHING,
        "at": THEN,
        "id": uuid.UUID(int=7),
        "colour": Colour.RED,
        "point": Point(3),
        "size": Size(1.0),
        "table": {5: False},
        "pair": (1, "b"),
        "raw": b"\x00\xff",
    }
    payload = function.using()._payload(given)
    assert msgspec.json.decode(msgspec.json.encode(payload)) == payload
    made = function.run(a_job(payload))
    assert made == {**made, **{name: value for name, value in given.items() if name != "share"}, "share": 2.0}


def test_a_function_keeps_its_own_members(app: App) -> None:
    """``enqueue``'s words are the function's: none of ours is in the way."""

    @app.job("t")
    def handler(type: str, delay: int, prio: str) -> tuple[str, int, str]:
        return type, delay, prio

    payload = handler.using()._payload({"type": "a", "delay": 1, "prio": "x"})
    assert handler.run(a_job(payload)) == ("a", 1, "x")


def test_one_client_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KQS_URL", "kqs://from.environment:5")
    app = App(token="secret")
    assert app.client is app.client
    assert app.client._address.host == "from.environment"
    assert app.async_client() is not app.async_client()


def test_threads_may_be_the_first_together() -> None:
    """msgspec crashes the process when several threads meet a Struct that it does not know yet."""
    code = """
import sys, threading
import msgspec
from kqs import App
sys.setswitchinterval(1e-6)
class Inner(msgspec.Struct):
    a: int
    b: "dict[str, list[float]] | None" = None
    c: "list[Inner] | None" = None
    d: "tuple[int, str] | None" = None
    e: "Inner | None" = None
app = App()
@app.job("t")
def handler(one: Inner, two: list[Inner] | None = None, *, n: int = 1) -> None: ...
handler.check()
start = threading.Barrier(16)
def check():
    start.wait()
    handler.arguments({"one": {"a": 1}})
threads = [threading.Thread(target=check) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    for _ in range(20):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
