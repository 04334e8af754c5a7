"""From a stream to lines, however it is cut; peers that speak something else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core import wire
from kqs.core.wire import LineReader
from kqs.errors import TooLarge

# -- cutting -------------------------------------------------------------------------------------


@given(stream=st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n"])).map(b"".join), data=st.data())
def test_line_reader_loses_and_adds_nothing(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream))).map(sorted))
    reader = LineReader()
    out = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        block = reader.feed(stream[start:end])
        assert block == b"" or block.endswith(b"\n")
        out.append(block)
        fed = stream[:end]
        assert b"".join(out) == fed[: fed.rfind(b"\n") + 1]
        assert reader.pending == len(fed) - len(b"".join(out))
    assert b"".join(out) + reader.finish() == stream
    assert reader.pending == 0
    assert reader.finish() == b""


@pytest.mark.parametrize("step", [1, 3, 10, 11, 64])
def test_an_unfinished_line_over_the_limit(step: int) -> None:
    reader = LineReader(max_line=10)
    assert reader.feed(b"0123456789\n") == b"0123456789\n"
    stream = b"x" * 64
    with pytest.raises(TooLarge, match="longer than 10 bytes") as caught:
        for at in range(0, len(stream), step):
            reader.feed(stream[at : at + step])
            assert reader.pending <= 10
    assert caught.value.limit == 10


def test_a_line_of_exactly_the_limit_passes() -> None:
    reader = LineReader(max_line=10)
    assert all(reader.feed(b"x") == b"" for _ in range(10))
    assert reader.feed(b"\n") == b"x" * 10 + b"\n"
    assert reader.pending == 0


STREAMS = [
    (b"aa\nbbb\n" + b"x" * 11 + b"\ncc\n", b"aa\nbbb\n"),
    (b"aa\n" + b"x" * 30, b"aa\n"),
    (b"x" * 11 + b"\naa\n", b""),
    (b"x" * 11, b""),
    (b"x" * 10 + b"\n" + b"y" * 11 + b"\n", b"x" * 10 + b"\n"),
    (b"\n\n" + b"x" * 64 + b"\n", b"\n\n"),
]


@pytest.mark.parametrize(("stream", "before"), STREAMS)
def test_the_lines_before_one_over_the_limit_are_returned_however_it_is_cut(
    stream: bytes, before: bytes
) -> None:
    """What is taken and what is refused does not depend on how the network cut the stream."""
    cuts = [[stream], [stream[at : at + 1] for at in range(len(stream))]]
    cuts += [[stream[:at], stream[at:]] for at in range(1, len(stream))]
    for chunks in cuts:
        reader = LineReader(max_line=10)
        got = b""
        refused = False
        for chunk in chunks:
            try:
                got += reader.feed(chunk)
            except TooLarge:
                refused = True
            assert reader.pending <= 10
            assert not refused or reader.broken
        assert got == before
        assert reader.broken
        assert reader.finish() == b""
        with pytest.raises(TooLarge):
            reader.feed(b"more\n")


def test_a_reader_is_not_broken_by_lines_within_the_limit() -> None:
    reader = LineReader(max_line=10)
    stream = b"0123456789\n" * 100
    assert reader.feed(stream + b"tail") == stream
    assert not reader.broken
    assert reader.finish() == b"tail"


# -- strangers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /a HTTP/1.0\r\n",
        b"PUT /x",
        b"HEAD / ",
        b"DELETE /",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT a:443 ",
        b"PATCH /x",
        b"TRACE /x",
        b"PRI * HTTP/2.0\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"\x16\x03\x03\x00\xff\x01\x00\x00",
    ],
)
def test_http_and_tls_are_known_by_their_start(start: bytes) -> None:
    assert wire.looks_foreign(start[:8])
    assert wire.looks_foreign(start)


@pytest.mark.parametrize(
    "start",
    [b'{"v":1,"', b"GETTING\n", b"POSTAGE ", b"\n", b"", b"get / HT", b" GET / H", b"\x16\x04\x01\x02"],
)
def test_others_are_not(start: bytes) -> None:
    assert not wire.looks_foreign(start)
