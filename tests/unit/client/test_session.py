"""One connection's conversation without a connection: ids out, replies sorted in."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.client import session as sessions
from kqs.client.session import MAX_REPLY, NO_ARGUMENT, Session, batch_argument, encode_argument, insert_call
from kqs.core import wire
from kqs.errors import BadRequest, ProtocolError, TooLarge


def end(id: str, value: bytes = b"null") -> bytes:
    return wire.encode_reply(b'"id":"%b",' % id.encode(), value)


def part(id: str, value: bytes) -> bytes:
    return wire.encode_part(b'"id":"%b",' % id.encode(), value)


def values(found: list[tuple[str, wire.Reply]]) -> list[tuple[str, Any]]:
    return [(id, reply.value()) for id, reply in found]


def test_a_call_and_its_reply() -> None:
    session = Session()
    id, data = session.call("echo", b"[1]")
    assert json.loads(data) == {"v": 1, "id": id, "n": "echo", "m": [1]}
    assert values(session.feed(end(id, b"[1]"))) == [(id, [1])]
    assert session.feed(end(id, b"[1]")) == []  # answered already


def test_ids_are_strings_and_never_twice() -> None:
    session = Session()
    ids = [session.call("ping")[0] for _ in range(5000)]
    assert len(set(ids)) == 5000
    assert all(id.isascii() and id.isalnum() for id in ids)


@given(order=st.permutations(range(6)), data=st.data())
def test_replies_in_any_order_and_however_cut(order: list[int], data: st.DataObject) -> None:
    session = Session()
    ids = [session.call("echo", b"%d" % number)[0] for number in range(6)]
    stream = b"".join(end(ids[number], b"%d" % number) for number in order)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += values(session.feed(stream[start:stop]))
    assert found == [(ids[number], number) for number in order]


def test_a_stream_ends_with_its_last_reply() -> None:
    session = Session()
    id, _data = session.call("watch")
    other, _data = session.call("ping")
    closing = wire.encode_end(b'"id":"%b",' % id.encode())
    found = session.feed(part(id, b"1") + end(other, b'"pong"') + part(id, b"2") + closing + part(id, b"3"))
    assert [(name, reply.last) for name, reply in found] == [
        (id, False),
        (other, True),
        (id, False),
        (id, True),
    ]


def test_replies_nobody_waits_for_are_dropped() -> None:
    session = Session()
    id, _data = session.call("ping")
    session.forget(id)
    session.forget("unknown")
    assert session.feed(end(id) + end("unknown") + end("")) == []


@pytest.mark.parametrize("id", [b"", b'"id":null,'])
def test_a_reply_without_an_id_is_for_the_whole_connection(id: bytes) -> None:
    session = Session()
    session.call("ping")
    ((found, reply),) = session.feed(wire.encode_error(id, BadRequest("line is not JSON")))
    assert found == ""
    with pytest.raises(BadRequest, match="line is not JSON"):
        reply.value()


def test_a_number_for_an_id_is_its_text() -> None:
    """Another server may answer with the number it was sent."""
    session = Session()
    id, _data = session.call("ping")
    assert id == "1"
    assert values(session.feed(b'{"v":1,"id":1,"s":"end","m":5}\n')) == [("1", 5)]


def test_the_peer_speaks_something_else() -> None:
    session = Session()
    with pytest.raises(ProtocolError):
        session.feed(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_reply_without_an_end() -> None:
    session = Session()
    session._reader = wire.LineReader(100)
    with pytest.raises(TooLarge):
        session.feed(b'"' * 101)
    assert MAX_REPLY >= 2**30


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("argument", "text"), [(NO_ARGUMENT, b""), (None, b"null"), ({}, b"{}"), (0, b"0")])
def test_arguments(argument: Any, text: bytes) -> None:
    assert encode_argument(argument) == text


def test_an_argument_json_does_not_have() -> None:
    with pytest.raises(TypeError):
        encode_argument({"a": object()})


@pytest.mark.parametrize("data", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_bytes_travel_as_the_binary_part(data: Any) -> None:
    assert insert_call("t", data, {"prio": "low"}) == ({"type": "t", "prio": "low"}, b"\x00\xff")
    (job,) = batch_argument([{"type": "t", "data": data}])
    assert job == {"type": "t", "data64": b"\x00\xff"}
    text = encode_argument([job])
    assert b64decode(json.loads(text)[0]["data64"]) == b"\x00\xff"


@pytest.mark.parametrize("data", [0, False, "", [], {}, {"a": 1}, "text"])
def test_other_data_is_json(data: Any) -> None:
    assert insert_call("t", data, {}) == ({"type": "t", "data": data}, None)
    assert batch_argument([{"type": "t", "data": data}]) == [{"type": "t", "data": data}]


def test_no_data_is_left_out() -> None:
    assert insert_call("t", None, {}) == ({"type": "t"}, None)


def test_the_callers_jobs_are_not_changed() -> None:
    jobs = [{"type": "t", "data": b"x"}]
    batch_argument(jobs)
    assert jobs == [{"type": "t", "data": b"x"}]


def test_what_a_lost_call_is_told() -> None:
    assert "whether the job was accepted is unknown" in sessions.lost_message("kqs://h:1", "insert")
    assert "reply to ping; whether it was done is unknown" in sessions.lost_message("kqs://h:1", "ping")
