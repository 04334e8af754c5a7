"""What a worker started is found by its mark, wherever it went, and ended; other processes are left alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from secrets import token_hex

import psutil
import pytest

from kqs.runners.marked import NAME, kill_marked


@pytest.fixture
def marked() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A mark, and a process with it that left its session."""
    mark = token_hex(16)
    environment = {**os.environ, NAME: mark}
    with subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True) as process:
        yield mark, process
        process.kill()


def test_only_what_has_the_mark_is_ended(marked: tuple[str, subprocess.Popen[bytes]]) -> None:
    mark, process = marked
    kill_marked(mark[:-1])
    assert process.poll() is None
    kill_marked(mark)
    assert process.wait(60) == -9


def test_a_process_that_one_list_lacks_is_found_in_the_next(
    marked: tuple[str, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent ended while the list was made: neither of them is in it."""
    mark, process = marked
    lists = [[os.getpid()], [os.getpid(), process.pid]]
    monkeypatch.setattr(psutil, "pids", lambda: lists.pop(0) if len(lists) > 1 else lists[0])
    kill_marked(mark)
    assert process.wait(60) == -9
