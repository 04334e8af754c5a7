"""A job's payload: JSON is spliced as the bytes that came; binary arrives in three ways."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core.job import DefaultsTable, NewJob, parse_job
from kqs.errors import BadRequest

PLAIN = DefaultsTable()


def parse(text: bytes, blob: bytes | None = None) -> NewJob:
    return parse_job(text, PLAIN, frozenset(), blob=blob)


# -- JSON ----------------------------------------------------------------------------------------

space = st.sampled_from([b"", b"", b" ", b"\t", b"\r", b"\n ", b"  "])
number = st.from_regex(rb"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
plain_text = st.text(st.characters(exclude_categories=["Cs"]))
string = st.builds(
    lambda text, ascii: json.dumps(text, ensure_ascii=ascii).encode(), plain_text, st.booleans()
) | st.sampled_from([b'"\\/\\b\\f\\n\\r\\t\\u0041"', b'"\\"m\\":undefined"', b'"\x7f\xc2\x80"'])
scalar = st.sampled_from([b"null", b"true", b"false", b"-0", b"1e999", b"1E+2"]) | number | string


def _list(parts: list[tuple[bytes, bytes, bytes]]) -> bytes:
    return b"[" + b",".join(before + item + after for before, item, after in parts) + b"]"


def _object(parts: list[tuple[bytes, bytes, bytes, bytes]]) -> bytes:
    return b"{" + b",".join(before + key + b":" + after + item for before, key, after, item in parts) + b"}"


json_text = st.recursive(
    scalar,
    lambda inner: (
        st.lists(st.tuples(space, inner, space), max_size=4).map(_list)
        | st.lists(st.tuples(space, string, space, inner), max_size=4).map(_object)
    ),
    max_leaves=12,
)


@given(text=json_text, before=space, after=space, first=st.booleans())
def test_any_json_is_kept_byte_for_byte(text: bytes, before: bytes, after: bytes, first: bool) -> None:
    data = b'"data":' + before + text + after
    job = parse(b"{" + data + b',"type":"t"}' if first else b'{"type":"t",' + data + b"}")
    assert (job.data, job.binary) == (text, False)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":2}',
        b'{"type":"inner","prio":7,"zzz":null}',
        b"9" * 1000,
        b"[[[[[[]]]]]]",
        b'"\\u0000"',
        '"\U0001f600\u2028"'.encode(),
    ],
)
def test_what_the_data_says_is_not_looked_at(text: bytes) -> None:
    assert parse(b'{"type":"t","data":%b}' % text).data == text


@pytest.mark.parametrize(
    "given_null", [b'{"type":"t"}', b'{"type":"t","data":null}', b'{"type":"t","data": null }']
)
def test_no_data_is_null(given_null: bytes) -> None:
    job = parse(given_null)
    assert (job.data, job.binary) == (b"null", False)


@pytest.mark.parametrize(
    "text", [b"", b"tru", b"[", b'{"a"}', b'"\x01"', b'"\\x"', b"[1,]", b'"\\ud800"', b'"\\udc00"']
)
def test_data_that_is_not_json(text: bytes) -> None:
    with pytest.raises(BadRequest, match="job: "):
        parse(b'{"type":"t","data":%b}' % text)


@pytest.mark.parametrize("nested", [b"[" * 100_000 + b"]" * 100_000, b"[" * 100_000, b'{"a":' * 100_000])
def test_data_nested_too_deep(nested: bytes) -> None:
    for start in (b"", b'{"type":"Buffer","data":'):
        with pytest.raises(BadRequest, match="nested too deep"):
            parse(b'{"type":"t","data":%b%b' % (start, nested))


# -- binary --------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_three_ways_in(payload: bytes) -> None:
    buffer = json.dumps({"type": "Buffer", "data": list(payload)}, separators=(",", ":")).encode()
    jobs = [
        parse(b'{"type":"t","data64":"%b"}' % b64encode(payload)),
        parse(b'{"type":"t","data":%b}' % buffer),
        parse(b'{"type":"t"}', blob=payload),
    ]
    assert all((job.data, job.binary) == (payload, True) for job in jobs)


def test_every_byte_value() -> None:
    payload = bytes(range(256))
    buffer = json.dumps({"type": "Buffer", "data": list(payload)}, separators=(",", ":")).encode()
    assert parse(b'{"type":"t","data":%b}' % buffer).data == payload


#: Objects that are nearly what a Node Buffer's toJSON makes: data like any other.
NEARLY = [
    b'{"type":"Buffer"}',
    b'{"type":"Buffer","data":null}',
    b'{"type":"Buffer","data":"AA=="}',
    b'{"type":"Buffer","data":{"0":1}}',
    b'{"type":"Buffer","data":[256]}',
    b'{"type":"Buffer","data":[-1]}',
    b'{"type":"Buffer","data":[1.0]}',
    b'{"type":"Buffer","data":[true]}',
    b'{"type":"Buffer","data":["1"]}',
    b'{"type":"Buffer","data":[null]}',
    b'{"type":"Buffer","data":[[1]]}',
    b'{"type":"Buffer","data":[1e999]}',
    b'{"type":"Buffer","data":[%b]}' % (b"9" * 400),
    b'{"type":"Buffer","data":[1],"more":1}',
    b'{"type":"Buffer","data":[1],"type":"Other"}',
    b'{"type":"Buffers","data":[1]}',
    b'[{"type":"Buffer","data":[1]}]',
    b'{"file":{"type":"Buffer","data":[1]}}',
]


@pytest.mark.parametrize(
    "text",
    [
        b'{"data":[1],"type":"Buffer"}',
        b'{ "type":"Buffer","data":[1]}',
        b'{"type": "Buffer" , "data": [ 1 ] }',
    ],
)
def test_the_form_of_a_node_buffer_is_json_and_may_be_written_as_such(text: bytes) -> None:
    job = parse(b'{"type":"t","data":%b}' % text)
    assert (job.data, job.binary) == (b"\x01", True)


@pytest.mark.parametrize("text", NEARLY)
def test_only_the_exact_form_of_a_node_buffer_is_bytes(text: bytes) -> None:
    job = parse(b'{"type":"t","data":%b}' % text)
    assert (job.data, job.binary) == (text, False)


def test_the_binary_part_may_be_empty() -> None:
    job = parse(b'{"type":"t"}', blob=b"")
    assert (job.data, job.binary) == (b"", True)
    job = parse(b'{"type":"t","data64":""}')
    assert (job.data, job.binary) == (b"", True)


@pytest.mark.parametrize(
    ("text", "blob", "field"),
    [
        (b'{"type":"t","data":1,"data64":"AA=="}', None, "data"),
        (b'{"type":"t","data64":"","data":0}', None, "data"),
        (b'{"type":"t","data":false}', b"x", "data"),
        (b'{"type":"t","data":[]}', b"", "data"),
        (b'{"type":"t","data64":"AA=="}', b"x", "data64"),
        (b'{"type":"t","data":{"type":"Buffer","data":[]}}', b"x", "data"),
    ],
)
def test_a_payload_given_twice(text: bytes, blob: bytes | None, field: str) -> None:
    with pytest.raises(BadRequest, match="given twice") as caught:
        parse(text, blob)
    assert caught.value.field == field


@pytest.mark.parametrize("blob", [None, b"x"])
def test_null_data_beside_binary_counts_as_none(blob: bytes | None) -> None:
    """A client that always writes ``data`` can still send bytes."""
    other = b',"data64":"eA=="' if blob is None else b""
    assert parse(b'{"type":"t","data":null%b}' % other, blob).data == b"x"
