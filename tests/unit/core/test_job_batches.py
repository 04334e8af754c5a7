"""Arrays of jobs, and the arguments of other calls: the error names the element and the member."""

from __future__ import annotations

import pytest
from msgspec import Struct

from kqs.core.calls import ReserveArgument
from kqs.core.job import MAX_BATCH, NEEDS, DefaultsTable, decode_argument, parse_job, split_batch
from kqs.core.outcome import Settlement
from kqs.errors import BadRequest, TooLarge

PLAIN = DefaultsTable()
EVERYTHING = frozenset(NEEDS.values())


# -- batches -------------------------------------------------------------------------------------


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


# -- other arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "struct", "field", "says"),
    [
        (b'{"max":0}', ReserveArgument, "max", "max: expected `int` >= 1"),
        (b'{"types":["a",""]}', ReserveArgument, "types", "types: expected `str` of length >= 1"),
        (b'{"maxx":0}', ReserveArgument, "maxx", "did you mean 'max'?"),
        (b"[]", ReserveArgument, None, "reserve: expected `object`, got `array`"),
        (b'{"receipt":"r"}', Settlement, "outcome", "needs 'outcome'"),
        (
            b'{"receipt":"r","outcome":"ok","reason":{}}',
            Settlement,
            "reason.message",
            "needs 'reason.message'",
        ),
        (
            b'{"receipt":"r","outcome":"ok","reason":{"message":"","knd":""}}',
            Settlement,
            "reason.knd",
            "did you mean 'kind'?",
        ),
    ],
)
def test_arguments_of_calls(raw: bytes, struct: type[Struct], field: str | None, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_argument(raw, struct, "reserve")
    assert caught.value.field == field
    assert says in caught.value.message


def test_an_absent_argument_is_an_empty_one() -> None:
    assert decode_argument(b"", ReserveArgument, "reserve") == ReserveArgument()


def test_an_argument_nested_too_deep() -> None:
    raw = b'{"receipt":"r","outcome":"ok","result":%b%b}' % (b"[" * 100_000, b"]" * 100_000)
    with pytest.raises(BadRequest, match="nested too deep"):
        decode_argument(raw, Settlement, "settlement")
