"""Arrays of jobs: the error names the element and the member."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core.job import (
    MAX_BATCH,
    NEEDS,
    DefaultsTable,
    JobDefaults,
    parse_batch,
    parse_job,
    split_batch,
)
from kqs.errors import BadRequest, CallError, TooLarge

PLAIN = DefaultsTable()
EVERYTHING = frozenset(NEEDS.values())


@pytest.mark.parametrize("count", [1, 2, MAX_BATCH])
def test_a_batch_is_split_unread(count: int) -> None:
    text = b"[" + b" , ".join(b'{"type":"t","data": %d}' % number for number in range(count)) + b"]"
    items = split_batch(text)
    assert len(items) == count
    assert bytes(items[-1]) == b'{"type":"t","data": %d}' % (count - 1)
    assert parse_job(items[-1], PLAIN, EVERYTHING, index=count - 1).data == b"%d" % (count - 1)


def test_a_batch_over_the_limit() -> None:
    with pytest.raises(TooLarge, match="at most 10000 jobs, this one has 10001") as caught:
        split_batch(b"[" + b",".join([b"{}"] * (MAX_BATCH + 1)) + b"]")
    assert caught.value.limit == MAX_BATCH


@pytest.mark.parametrize(
    "text", [b"[]", b"[ ]", b"{}", b"1", b"null", b"", b"[", b"[{},]", b"[{} {}]", b"[NaN]"]
)
def test_not_a_batch(text: bytes) -> None:
    with pytest.raises(BadRequest, match="array of jobs"):
        split_batch(text)


def test_a_batch_nested_too_deep() -> None:
    with pytest.raises(BadRequest, match="nested too deep"):
        split_batch(b"[" * 100_000 + b"]" * 100_000)


def test_an_error_in_a_batch_names_its_job() -> None:
    items = split_batch(b'[{"type":"t"},{"type":"t","prio":"x"},7]')
    assert parse_job(items[0], PLAIN, EVERYTHING, index=0).type == "t"
    for index in (1, 2):
        with pytest.raises(BadRequest) as caught:
            parse_job(items[index], PLAIN, EVERYTHING, index=index)
        assert caught.value.index == index


# -- parse_batch ---------------------------------------------------------------------------------

#: Jobs, good and bad; a batch of any of them is taken or refused as its jobs are one by one.
ITEMS = [
    b'{"type":"t"}',
    b'{"type":"own","data":[ 1 ],"prio":"low","delay":1.5}',
    b'{"type":"t","data64":"AAE="}',
    b'{"type":"t","data":{"type":"Buffer","data":[1]}}',
    b'{"type":"t","max_attempts":3}',
    b'{"type":"t","prio":"x"}',
    b'{"type":"t","typ":1}',
    b'{"type":"t","retry":{"jitter":2}}',
    b'{"type":"%b"}' % (b"x" * 198),
    b'{"type":"t","data":1,"data64":""}',
    b'{"type":"t","fair":"f"}',
    b"{}",
    b"7",
    b"[]",
]
TABLE = DefaultsTable({"own": JobDefaults("high", 5, 2)})


@given(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=6))
def test_a_batch_is_its_jobs_one_by_one(items: list[bytes]) -> None:
    text = b"[" + b", ".join(items) + b"]"
    expected = []
    for index, item in enumerate(items):
        try:
            expected.append(parse_job(item, TABLE, frozenset(), index=index))
        except CallError as error:
            with pytest.raises(type(error)) as caught:
                parse_batch(text, TABLE, frozenset())
            assert caught.value.to_wire() == error.to_wire()
            assert caught.value.index == index
            return
    assert parse_batch(text, TABLE, frozenset()) == expected


@pytest.mark.parametrize("at", [0, 1, 5000, MAX_BATCH - 1])
def test_the_bad_job_of_a_large_batch_is_named(at: int) -> None:
    items = [b'{"type":"t"}'] * MAX_BATCH
    assert len(parse_batch(b"[" + b",".join(items) + b"]", PLAIN, EVERYTHING)) == MAX_BATCH
    items[at] = b'{"type":"t","prio":"top"}'
    with pytest.raises(BadRequest) as caught:
        parse_batch(b"[" + b",".join(items) + b"]", PLAIN, EVERYTHING)
    assert (caught.value.index, caught.value.field) == (at, "prio")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"[]", BadRequest),
        (b"[", BadRequest),
        (b'[{"type":"t"},]', BadRequest),
        (b"[" * 100_000 + b"]" * 100_000, BadRequest),
        (b'[{"type":"t","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", BadRequest),
        (b"[" + b",".join([b'{"type":"t"}'] * (MAX_BATCH + 1)) + b"]", TooLarge),
        (b"[" + b",".join([b"7"] * (MAX_BATCH + 1)) + b"]", TooLarge),
    ],
    ids=["empty", "cut", "comma", "deep", "deep data", "long", "long and bad"],
)
def test_no_batch_at_all(text: bytes, error: type[CallError]) -> None:
    with pytest.raises(error):
        parse_batch(text, PLAIN, EVERYTHING)
