"""Limits set low in the config: they hold to the byte and the call."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import ServerProcess, Wire, until

CONFIG = """
[limits]
line = 1024
connections = 8
in_flight = 5
write_timeout = 1.5
unsynced = 1048576
[bulk]
threshold = 1024
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("small"), CONFIG)
    try:
        yield made.start()
        made.stop()
    finally:
        made.discard()


def line_of(length: int) -> bytes:
    """A call whose line has this many bytes, the newline not counted."""
    frame = b'{"v":1,"id":"1","n":"echo","m":"%b"}'
    return frame % (b"x" * (length - len(frame) + 2))


@pytest.mark.parametrize("pieces", [1, 2, 3, 100])
@pytest.mark.parametrize("before", [b"", b'{"v":1,"n":"ping"}\n' * 200], ids=["alone", "after others"])
def test_the_longest_line(small: ServerProcess, pieces: int, before: bytes) -> None:
    """Whatever came before it, and however the stream is cut."""
    for length, fits in ((1024, True), (1025, False)):
        with small.connect() as wire:
            data = before + line_of(length) + b'\n{"v":1,"id":"after","n":"ping"}\n'
            step = -(-len(data) // pieces)
            for at in range(0, len(data), step):
                wire.send(data[at : at + step])
            wire.half_close()
            replies = wire.rest()
        assert [reply["m"] for reply in replies[: before.count(b"\n")]] == ["pong"] * before.count(b"\n")
        rest = replies[before.count(b"\n") :]
        if fits:
            assert [reply["id"] for reply in rest] == ["1", "after"]
        else:
            assert [reply["e"]["code"] for reply in rest] == ["too_large"]
            assert rest[0]["e"]["limit"] == 1024


def test_a_last_line_without_its_newline_has_the_same_limit(small: ServerProcess) -> None:
    for length, code in ((1024, None), (1025, "too_large")):
        with small.connect() as wire:
            wire.send(line_of(length))
            wire.half_close()
            (reply,) = wire.rest()
        assert (reply["e"] and reply["e"]["code"]) == code


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["without an end", "with an end"])
def test_a_long_line_behind_one_that_ends_the_connection(small: ServerProcess, end: bytes) -> None:
    """In one packet: the first is told, the second not looked at (what it logs is looked at in the end)."""
    with small.connect() as wire:
        wire.send(b"no json\n" + b"x" * 1025 + end)
        wire.half_close()
        assert [reply["e"]["code"] for reply in wire.rest()] == ["bad_request"]


def test_more_connections_are_closed_at_once_and_counted(small: ServerProcess) -> None:
    wires = [small.connect() for _ in range(12)]
    alive = [wire for wire in wires if _answers(wire)]
    # One of the eight is the worker of the type ping.
    assert len(alive) == 7
    stats = alive[0].call("stats")["m"]
    assert stats["connections"]["open"] == 8
    assert stats["connections"]["refused"] >= 5
    for wire in wires:
        wire.close()
    with small.client() as client:
        assert client.ping() == "pong"


def _answers(wire: Wire) -> bool:
    try:
        wire.send(b'{"v":1,"id":"1","n":"ping"}\n')
        return wire.line() is not None
    except OSError:
        return False


def test_calls_in_flight_hold_up_those_behind_them(small: ServerProcess) -> None:
    """Five reserves wait; the ping behind them is not taken until one of them is answered."""
    with small.connect() as wire, small.client() as client:
        wait = b'{"v":1,"id":"r%d","n":"reserve","m":{"types":["x"],"wait":600}}\n'
        wire.send(b"".join(wait % n for n in range(5)))
        until(lambda: client.stats()["reserves_waiting"] == 6, "them and the worker to wait")
        wire.send(b'{"v":1,"id":"behind","n":"ping"}\n')
        wire.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            wire.line()
        wire.socket.settimeout(60)
        client.insert("x", 1)
        first = wire.line()
        assert first is not None and first["m"]["jobs"][0]["data"] == 1
        second = wire.line()
        assert second is not None and second["id"] == "behind"
        client.call("settle", [{"receipt": first["m"]["jobs"][0]["receipt"], "outcome": "ok"}])


def test_a_reader_that_takes_nothing_is_dropped(small: ServerProcess) -> None:
    """Its replies are kept up to a bound; then it is not read from; then it goes."""
    call = json.dumps({"v": 1, "id": "1", "n": "echo", "m": "x" * 900}).encode() + b"\n"
    with small.connect(receive_buffer=4096) as slow, pytest.raises(ConnectionError):
        while True:
            slow.send(call * 1000)
    with small.client() as client:
        assert client.stats()["process"]["rss_bytes"] < 300 * 1024 * 1024


def test_a_reader_that_comes_back_in_time_loses_nothing(small: ServerProcess) -> None:
    """It sends until the server reads no more, then takes all it was answered."""
    line = b'{"v":1,"id":"%d","n":"echo","m":"%b"}\n'
    calls = b"".join(line % (number, b"x" * 900) for number in range(20_000))
    with small.connect(receive_buffer=65536) as slow:
        slow.socket.settimeout(0.1)  # well below the time after which it would be dropped
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < len(calls):
                sent += slow.socket.send(calls[sent : sent + 65536])
        slow.socket.settimeout(60)
        for number in range(calls[:sent].count(b"\n")):
            reply = slow.line()
            assert reply is not None and reply["id"] == str(number)
