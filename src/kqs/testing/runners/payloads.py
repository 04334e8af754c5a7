"""The handler gets the payload as it was inserted, however long it is and whatever bytes it has."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from kqs.core.outcome import OK

from .harness import Attempt, Cases

BYTES = bytes(range(256))


class PayloadCases(Cases):
    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\0",
            b"\r\n\r\n",
            b"null",
            b'{"looks": "like JSON"}',
            BYTES,
            BYTES * 32 * 1024,
        ],
        ids=["empty", "nul", "newlines", "null", "json", "all", "8-MiB"],
    )
    def test_bytes_arrive_unchanged(self, attempt: Attempt, payload: bytes) -> None:
        assert attempt.value("digest", payload, binary=True) == hashlib.sha256(payload).hexdigest()

    @pytest.mark.parametrize(
        "payload",
        [b"null", b"[]", b'{"a":[1,2.5,"\xc3\xa9\xe2\x98\x83"]}', b'"\\u0000\\n"'],
        ids=["null", "list", "text", "controls"],
    )
    def test_json_arrives_unchanged(self, attempt: Attempt, payload: bytes) -> None:
        assert attempt.value("echo", payload) == msgspec.json.decode(payload)

    def test_a_large_payload_that_nobody_reads(self, attempt: Attempt) -> None:
        assert attempt("quiet", BYTES * 32 * 1024, binary=True) == OK
