"""What jobs print, cut into lines of theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from kqs.runners.capture import LINE, MOST, OVERFLOW, Captured, Lines, Stream, open_stream


class Job(NamedTuple):
    id: str
    type: str = "t"


Logged = list[tuple[str, str, str]]


@pytest.fixture
def logged() -> Logged:
    return []


@pytest.fixture
def lines(logged: Logged) -> Lines:
    return Lines(lambda job, stream, line: logged.append((job.id if job else "", stream, line)))


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = open_stream()
    yield made
    os.close(made.write)
    os.close(made.read)


def test_lines_are_whole_and_the_last_one_comes_with_the_end(lines: Lines, logged: Logged) -> None:
    a = Job("a")
    lines.add(a, "stdout", b"one\ntw")
    lines.add(a, "stderr", b"other\n")
    lines.add(a, "stdout", b"o\r\n\nthr")
    assert logged == [
        ("a", "stdout", "one"),
        ("a", "stderr", "other"),
        ("a", "stdout", "two"),
        ("a", "stdout", ""),
    ]
    lines.end(a)
    lines.add(Job("b"), "stdout", b"ee\n")
    assert logged[4:] == [("a", "stdout", "thr"), ("b", "stdout", "ee")]


def test_bytes_that_are_no_text_are_replaced(lines: Lines, logged: Logged) -> None:
    lines.add(Job("a"), "stdout", b"\xff\xc3\n")
    assert logged == [("a", "stdout", "��")]


@pytest.mark.parametrize("piece", [1000, MOST + 1, 10 * MOST])
def test_a_job_is_cut_at_its_bytes(lines: Lines, logged: Logged, piece: int) -> None:
    for _ in range(-(-2 * MOST // piece)):
        lines.add(Job("a"), "stdout", b"x" * piece)
    assert lines.full
    assert sum(len(line) for _job, _stream, line in logged[:-1]) == MOST
    assert all(len(line) <= LINE for _job, _stream, line in logged)
    assert logged[-1] == ("a", "stdout", f"truncated after {MOST} bytes")
    lines.end(Job("a"))
    lines.add(Job("b"), "stdout", b"whole\n")
    assert logged[-1] == ("b", "stdout", "whole")


def test_a_stream_is_read_on_by_whoever_reads(stream: Stream) -> None:
    os.write(stream.write, b"one")
    other = Stream(os.dup(stream.write), os.dup(stream.read))
    assert other.take() == b"one"
    os.write(other.write, b"two")
    assert stream.take() == b"two"
    assert other.take() == stream.take() == b""
    other.empty()
    os.write(stream.write, b"three")
    assert stream.take() == b"three"
    os.close(other.write)
    os.close(other.read)


def test_what_nobody_empties_is_bounded(logged: Logged) -> None:
    captured = Captured()
    out = captured.streams[0]
    os.write(out.write, b"before")
    assert out.take() == b"before"
    for _ in range(3):
        os.write(out.write, bytes(OVERFLOW // 2 + 1))
    captured.bound()
    assert out.size() == 0
    os.write(out.write, b"on\n")
    captured.rest(Job("a"), lambda job, stream, line: logged.append((job.id if job else "", stream, line)))
    assert logged == [("a", "stdout", "on")]
    assert out.size() == 0
    captured.close()
