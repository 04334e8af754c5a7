"""beanstalkd's replies in any pieces, and what is no reply of it."""

from __future__ import annotations

import pytest

from kqs.engines.beanstalk.protocol import (
    MAX_LINE,
    NotBeanstalkd,
    Replies,
    Reply,
    figure,
    figures,
    names,
    put,
)

STREAM = (
    b"INSERTED 12\r\nRESERVED 7 5\r\na\r\nbc\r\nTIMED_OUT\r\nUSING kq-a\r\nKICKED 3\r\nKICKED\r\n"
    b"OK 10\r\n---\na: 1\n\n\r\nFOUND 9 0\r\n\r\nNOT_FOUND\r\n"
)
REPLIES = [
    Reply(b"INSERTED", 12),
    Reply(b"RESERVED", 7, b"a\r\nbc"),
    Reply(b"TIMED_OUT"),
    Reply(b"USING", -1),
    Reply(b"KICKED", 3),
    Reply(b"KICKED"),
    Reply(b"OK", 0, b"---\na: 1\n\n"),
    Reply(b"FOUND", 9, b""),
    Reply(b"NOT_FOUND"),
]


def test_replies_come_out_however_the_bytes_are_cut() -> None:
    for cut in range(len(STREAM) + 1):
        parser = Replies()
        assert parser.feed(STREAM[:cut]) + parser.feed(STREAM[cut:]) == REPLIES
    parser = Replies()
    assert [reply for byte in STREAM for reply in parser.feed(bytes([byte]))] == REPLIES


def test_a_long_stream_does_not_grow_the_buffer() -> None:
    parser = Replies()
    for _ in range(200):
        assert len(parser.feed(STREAM * 10 + b"RESERVED 1 3\r\nab")) == 10 * len(REPLIES)
        assert parser.feed(b"c\r\n") == [Reply(b"RESERVED", 1, b"abc")]
    assert len(parser._buffer) < 200_000


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (MAX_LINE + 1),
        b"RESERVED 1 5\r\nabcdeXX",
        b"RESERVED 1 -5\r\n",
        b"RESERVED\r\n",
        b"OK many\r\n",
        b"FOUND 1 99999999999\r\n",
    ],
)
def test_what_is_no_reply_ends_the_connection(data: bytes) -> None:
    with pytest.raises(NotBeanstalkd):
        Replies().feed(data)


def test_commands_and_figures() -> None:
    assert put(8000, 5, 30, b"ab\r\n") == b"put 8000 5 30 4\r\nab\r\n\r\n"
    body = b'---\nid: 12\ntube: "kq-a: b"\npri: 10000\nname: x\n'
    assert figures(body) == {"id": "12", "tube": "kq-a: b", "pri": "10000", "name": "x"}
    assert (figure(body, b"pri"), figure(body, b"none"), figure(body, b"name")) == (10000, 0, 0)
    assert names(b"---\n- default\n- kq-a\n") == [b"default", b"kq-a"]
