"""What an attempt started is found and ended, wherever it went; what it did not start is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator

import psutil
import pytest

from kqs.runners import process
from kqs.runners.process import children, kill_descendants, no_survivors
from tests.support import until

linux = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")


@pytest.fixture(params=["kernel", "psutil"], autouse=True)
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to list children."""
    if request.param == "psutil":
        monkeypatch.setattr(process, "_LISTS_CHILDREN", False)
    elif not process._LISTS_CHILDREN:
        pytest.skip("this kernel does not list children")


@pytest.fixture
def others() -> Iterator[set[int]]:
    """What this process had before the test; orphans of the test come to it."""
    with no_survivors():
        yield children()


def started(script: str, count: int) -> list[int]:
    """Runs a script; its process id and those it prints, one a line, once all are there."""
    read, write = os.pipe()
    shell = shutil.which("sh") or "/bin/sh"
    pid = os.posix_spawn(
        shell, ["sh", "-c", script], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)]
    )
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        return [pid, *(int(next(lines)) for _ in range(count))]


@linux
@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("echo $$; exec sleep 600", 1),
        ("setsid sh -c 'echo $$; exec sleep 600' & wait", 1),
        ("(setsid sh -c 'echo $$; exec sleep 600' &) & wait", 1),
        ("trap '' TERM HUP INT; sh -c 'echo $$; exec sleep 600' & sh -c 'echo $$; kill -STOP $$' & wait", 2),
    ],
    ids=["child", "session", "orphan", "stubborn"],
)
def test_all_of_them_are_ended(others: set[int], script: str, count: int) -> None:
    pids = started(script, count)
    kill_descendants(keep=others)
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []  # not as zombies either
    assert children() == others


@linux
def test_a_bomb_is_ended(others: set[int]) -> None:
    """Each process starts another and ends: what is listed is gone when it is killed."""
    if not process._LISTS_CHILDREN:
        pytest.skip("a list of all processes, made one by one, can miss the one that lives")
    [_shell, pid] = started("echo $$; hop() { [ $1 = 0 ] || { (hop $(($1 - 1)) &) ; } ; }; hop 200; wait", 1)
    kill_descendants(keep=others)
    assert children() == others
    assert not psutil.pid_exists(pid)


def test_a_tree_is_ended_from_where_it_hangs() -> None:
    """Also where nobody takes in orphans."""
    before = children()
    pids = started("sh -c 'echo $$; (echo $$; sleep 600) & wait' & wait", 2)
    kill_descendants(keep=before)
    until(lambda: not any(runs(pid) for pid in pids), "all of them to end")


def runs(pid: int) -> bool:
    """Whether it does; an orphan nobody waits for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_was_there_before_is_kept_with_its_children() -> None:
    [helper, child] = started("sh -c 'echo $$; exec sleep 600' & wait", 1)
    try:
        kill_descendants(keep=children())
        assert psutil.Process(helper).is_running()
        assert psutil.Process(child).is_running()
    finally:
        kill_descendants(keep=children() - {helper})
    assert not psutil.pid_exists(helper)


@linux
def test_what_a_block_starts_ends_with_it() -> None:
    before = children()
    with no_survivors():
        pids = started("(setsid sh -c 'echo $$; exec sleep 600' &) ; exec sleep 600", 1)
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    assert children() == before
    [helper, orphan] = started("(setsid sh -c 'echo $$; exec sleep 600' &)", 1)
    os.waitpid(helper, 0)
    assert orphan not in children()  # only in the block are they taken in
    os.kill(orphan, signal.SIGKILL)


def test_nothing_to_end_is_nothing(others: set[int]) -> None:
    kill_descendants(keep=others)
    assert children() == others


def test_what_cannot_be_killed_keeps_nobody_waiting(
    others: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that became another user's: it is tried once."""
    [helper, _pid] = started("echo $$; exec sleep 600", 1)
    tried = []

    def refuse(pid: int, number: int) -> None:
        tried.append(pid)
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(process.os, "kill", refuse)
        kill_descendants(keep=others)
    assert tried == [helper]
    kill_descendants(keep=others)


def test_children_of_a_process_that_is_gone_are_none() -> None:
    [gone] = started("exit 0", 0)
    os.waitpid(gone, 0)
    assert children(gone) == set()
