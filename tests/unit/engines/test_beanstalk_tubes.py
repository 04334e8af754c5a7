"""Types as tubes and back, and bodies."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core.job import BulkRef, JobOptions, NewJob
from kqs.core.retry import RetryPolicy
from kqs.engines.beanstalk.tubes import (
    HEADER,
    MAX_TUBE,
    PRIORITIES,
    decode,
    encode,
    priority_class,
    tube_of,
    type_of,
)
from kqs.testing.engines import new_job

TYPES = st.text(min_size=1, max_size=197).filter(
    lambda text: text.isprintable() and len(text.encode()) <= 197
)
NAME = re.compile(rb"[A-Za-z0-9+/;.$_()][A-Za-z0-9\-+/;.$_()]*")


@given(TYPES)
def test_a_type_has_a_tube_of_its_own_and_comes_back(type: str) -> None:
    tube = tube_of(type)
    assert NAME.fullmatch(tube) and len(tube) <= MAX_TUBE
    body = decode(encode("id", new_job(type), 7), tube)
    assert body.type == type
    assert type_of(tube) in (type, None)


@given(st.lists(TYPES, min_size=2, max_size=20, unique=True))
def test_no_two_types_share_a_tube(types: list[str]) -> None:
    assert len({tube_of(type) for type in types}) == len(types)


def test_types_that_look_like_escapes_or_digests() -> None:
    types = ["a_b", "a_5fb", "a b", "a_20b", "_", "_-", "-", "\u00e9" * 98, "\u00e9" * 97 + "xx", "x" * 197]
    tubes = [tube_of(type) for type in types]
    assert len(set(tubes)) == len(types)
    assert tube_of("mail.send") == b"kq-mail.send"
    assert [type_of(tube) for tube in tubes[:7]] == types[:7]
    assert type_of(tubes[7]) is None  # too long: only its jobs tell


@pytest.mark.parametrize("tube", [b"default", b"kq-a_2", b"kq-_ff", b"kq-_41", b"kq-_-" + b"0" * 64])
def test_tubes_of_others_are_no_types(tube: bytes) -> None:
    assert type_of(tube) is None


def test_a_body_holds_all_of_a_job() -> None:
    options = JobOptions(3, RetryPolicy("linear", 2, 60, 0.5), BulkRef("f" * 32, "0" * 64, 9))
    job = NewJob("\u00e9" * 98, b"KQS1 {}\n\xff", True, 4, 5, 2500, options)
    id, at = "0123abcd-12345678901234567890", 1_767_225_600_000_000
    body = encode(id, job, at)
    found = decode(body, tube_of(job.type))
    header = found.header
    assert header is not None
    assert (header.id, header.at, header.ttr) == (
        "0123abcd-12345678901234567890",
        1_767_225_600_000_000,
        2500,
    )
    assert (header.options, found.binary, found.data, found.type) == (options, True, job.data, job.type)
    assert len(body) - len(job.data) < HEADER


@pytest.mark.parametrize(
    ("body", "binary"),
    [(b'{"a":1}', False), (b"", True), (b"\xff", True), (b"KQS1 nonsense\nx", True), (b"KQS1 {}\n1", True)],
)
def test_what_somebody_else_put_is_the_payload(body: bytes, binary: bool) -> None:
    found = decode(body, b"kq-mail")
    assert (found.header, found.type, found.data, found.binary) == (None, "mail", body, binary)


def test_priorities_are_kqueues() -> None:
    assert PRIORITIES == (8000, 9000, 10000, 11000, 12000)
    assert [priority_class(number) for number in (0, 8000, 8999, 9000, 10500, 12000, 1 << 31)] == [
        *(0, 0, 0, 1, 2, 4, 4)
    ]
