"""Output as a result: JSON is a value, on one line; the rest is a text; what is neither is refused."""

from __future__ import annotations

import msgspec
import pytest

from kqs.runners import output
from kqs.runners.output import text, with_result


@pytest.mark.parametrize(
    ("said", "result"),
    [
        (b"", b"null"),
        (b"null\n", b"null"),
        (b'{\n  "a": [1, 2.5],\n  "b": "\\n"\n}\n', b'{"a":[1,2.5],"b":"\\n"}'),
        (b"12345678901234567890123", b"12345678901234567890123"),
        (b'"\xc3\xa9"', b'"\xc3\xa9"'),
        (b"done\n", b'"done\\n"'),
        (b" ", b'" "'),
        (b'{"a":', b'"{\\"a\\":"'),
        (b"{} {}", b'"{} {}"'),
        (b"NaN", b'"NaN"'),
        (b"1e999", b'"1e999"'),
        (b"\xef\xbb\xbf{}", b'"\xef\xbb\xbf{}"'),
        (b"[" * 3000, b'"' + b"[" * 3000 + b'"'),
        (b"[" * 3000 + b"]" * 3000, b'"' + b"[" * 3000 + b"]" * 3000 + b'"'),  # too deep to be read again
        (b"\0", b'"\\u0000"'),
    ],
)
def test_results(said: bytes, result: bytes) -> None:
    attempted = with_result(said)
    assert (attempted.outcome, attempted.reason, attempted.result) == ("ok", None, result)
    msgspec.json.decode(result)


@pytest.mark.parametrize(
    ("said", "at"), [(b"\xff", 0), (b'"\xff"', 1), (b"abc\xc3", 3), (b"\xed\xa0\x80", 0)]
)
def test_what_is_not_utf_8_is_no_result(said: bytes, at: int) -> None:
    attempted = with_result(said)
    assert (attempted.outcome, attempted.result) == ("fail", None)
    assert attempted.reason is not None
    assert (attempted.reason.kind, attempted.reason.message) == (
        "result",
        f"the result is not UTF-8 (at byte {at})",
    )


def test_what_is_large_only_as_json_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_RESULT", 100)
    assert with_result(b"x" * 98).outcome == "ok"
    attempted = with_result(b"\n" * 50)
    assert (attempted.outcome, attempted.result) == ("fail", None)
    assert attempted.reason is not None and "larger than 100 bytes" in attempted.reason.message


def test_text_beside_an_error() -> None:
    assert text(b" \n") is None
    assert text(b"\n no \xff\n") == "no \N{REPLACEMENT CHARACTER}"
