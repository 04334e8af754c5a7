"""Arguments of calls: the error names the member."""

from __future__ import annotations

import pytest
from msgspec import Struct

from kqs.core.arguments import decode_argument
from kqs.core.calls import ReserveArgument
from kqs.core.outcome import Settlement
from kqs.errors import BadRequest


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
