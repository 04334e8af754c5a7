"""The real file system and the real thread keep the ports' promises."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kqs.journal.disk import RealDisk, ThreadExecutor
from kqs.ports import Disk
from kqs.testing.disk import SimDisk

# -- one table for the real disk and for the simulated one --------------------------------------


@pytest.fixture(params=["real", "simulated"])
def disk_at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Disk, str]]:
    """A disk and a directory on it."""
    if request.param == "real":
        yield RealDisk(), str(tmp_path)
    else:
        disk = SimDisk()
        disk.makedirs("/d")
        yield disk, "/d"


def test_files_are_written_and_read_at_offsets(disk_at: tuple[Disk, str]) -> None:
    disk, base = disk_at
    file = disk.open(f"{base}/f", create=True)
    assert file.pwrite(b"hello", 3) == 5
    assert file.pwrite(memoryview(b"J"), 3) == 1
    assert (file.pread(100, 0), file.pread(2, 4), file.pread(9, 100)) == (b"\0\0\0Jello", b"el", b"")
    assert file.size() == 8
    file.datasync()
    file.close()
    again = disk.open(f"{base}/f")
    assert again.pread(8, 0) == b"\0\0\0Jello"
    again.close()
    with pytest.raises(FileExistsError):
        disk.open(f"{base}/f", create=True)
    with pytest.raises(FileNotFoundError):
        disk.open(f"{base}/none")


def test_what_has_no_name_any_more_is_not_stored(disk_at: tuple[Disk, str]) -> None:
    disk, base = disk_at
    file = disk.open(f"{base}/f", create=True)
    file.pwrite(b"x", 0)
    disk.rename(f"{base}/f", f"{base}/g")
    file.datasync()
    disk.unlink(f"{base}/g")
    with pytest.raises(FileNotFoundError):
        file.datasync()
    file.close()


def test_allocated_space_reads_as_zeros_and_leaves_the_rest(disk_at: tuple[Disk, str]) -> None:
    disk, base = disk_at
    file = disk.open(f"{base}/f", create=True)
    file.pwrite(b"abc", 0)
    file.allocate(10)
    assert (file.size(), file.pread(99, 0)) == (10, b"abc" + bytes(7))
    file.allocate(5)
    assert file.size() == 10
    file.close()


def test_names_change_and_go(disk_at: tuple[Disk, str]) -> None:
    disk, base = disk_at
    disk.makedirs(f"{base}/a/b")
    disk.makedirs(f"{base}/a/b")
    for name in ("x", "y"):
        file = disk.open(f"{base}/a/b/{name}", create=True)
        file.pwrite(name.encode(), 0)
        file.close()
    assert sorted(disk.listdir(f"{base}/a/b")) == ["x", "y"]
    disk.rename(f"{base}/a/b/x", f"{base}/a/b/y")
    assert disk.listdir(f"{base}/a/b") == ["y"]
    file = disk.open(f"{base}/a/b/y")
    assert file.pread(9, 0) == b"x"
    disk.unlink(f"{base}/a/b/y")
    assert file.pread(9, 0) == b"x"
    file.close()
    disk.sync_dir(f"{base}/a/b")
    assert disk.listdir(f"{base}/a/b") == []
    with pytest.raises(FileNotFoundError):
        disk.unlink(f"{base}/a/b/y")
    free, total = disk.free(base)
    assert 0 < free <= total


# -- the real disk alone ------------------------------------------------------------------------


def test_files_and_directories_are_private(tmp_path: Path) -> None:
    disk = RealDisk()
    disk.makedirs(f"{tmp_path}/d")
    disk.open(f"{tmp_path}/d/f", create=True).close()
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d" / "f").stat().st_mode & 0o777 == 0o600


def test_new_directories_are_durable_in_the_ones_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    RealDisk().makedirs(f"{tmp_path}/a/b")
    assert sorted(synced) == [str(tmp_path), f"{tmp_path}/a"]
    synced.clear()
    RealDisk().makedirs(f"{tmp_path}/a/b")
    assert synced == [f"{tmp_path}/a"]  # an earlier start may have ended between making and syncing


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_reserve_space_still_gives_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    file = RealDisk().open(f"{tmp_path}/f", create=True)
    file.allocate(4096)
    assert file.size() == 4096
    file.close()


def test_no_space_to_reserve_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    file = RealDisk().open(f"{tmp_path}/f", create=True)
    with pytest.raises(OSError, match="full"):
        file.allocate(4096)
    assert file.size() == 0
    file.close()


def test_a_read_goes_on_after_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RealDisk().open(f"{tmp_path}/f", create=True)
    file.pwrite(b"0123456789", 0)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 3), offset))
    assert file.pread(100, 1) == b"123456789"
    assert file.pread(4, 1) == b"1234"
    file.close()


# -- the thread ---------------------------------------------------------------------------------


async def test_work_is_done_in_one_other_thread_and_reported_on_the_loop_in_order() -> None:
    executor = ThreadExecutor(asyncio.get_running_loop(), "kqs-test")
    here = threading.get_ident()
    workers: list[tuple[int, str]] = []
    reported: list[tuple[int, int]] = []
    finished = asyncio.Event()

    def work(number: int) -> int:
        workers.append((threading.get_ident(), threading.current_thread().name))
        return number

    def done(number: int, error: BaseException | None) -> None:
        assert error is None
        reported.append((number, threading.get_ident()))
        if number == 19:
            finished.set()

    for number in range(20):
        executor.submit(lambda number=number: work(number), done)  # type: ignore[misc]
    await finished.wait()
    assert reported == [(number, here) for number in range(20)]
    assert len(set(workers)) == 1
    assert workers[0][0] != here
    assert workers[0][1] == "kqs-test"
    executor.close()


async def test_an_error_is_reported_and_the_thread_goes_on() -> None:
    executor = ThreadExecutor(asyncio.get_running_loop())
    first: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    second: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    executor.submit(lambda: 1 / 0, lambda _result, error: first.set_result(error))
    executor.submit(lambda: "fine", lambda result, _error: second.set_result(result))
    assert isinstance(await first, ZeroDivisionError)
    assert await second == "fine"
    executor.close()


async def test_closing_does_what_was_submitted() -> None:
    executor = ThreadExecutor(asyncio.get_running_loop())
    done: list[int] = []
    for number in range(50):
        executor.submit(lambda number=number: done.append(number), lambda *_: None)  # type: ignore[misc]
    executor.close()
    assert done == list(range(50))
    assert not any(thread.name == "kqs-journal" for thread in threading.enumerate())


def test_a_loop_that_is_gone_ends_the_thread() -> None:
    loop = asyncio.new_event_loop()
    executor = ThreadExecutor(loop, "kqs-orphan")
    hold, ran = threading.Event(), threading.Event()

    def work() -> None:
        ran.set()
        hold.wait()

    executor.submit(work, lambda *_: None)
    ran.wait()
    loop.close()
    hold.set()
    executor.close()
    assert not any(thread.name == "kqs-orphan" for thread in threading.enumerate())


def test_a_second_name_is_the_same_file(tmp_path: Path) -> None:
    disk = RealDisk()
    disk.open(f"{tmp_path}/f", create=True).pwrite(b"1", 0)
    disk.link(f"{tmp_path}/f", f"{tmp_path}/g")
    disk.unlink(f"{tmp_path}/f")
    assert disk.open(f"{tmp_path}/g").pread(9, 0) == b"1"


def test_a_disk_that_is_only_read_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    file = RealDisk(read_only=True).open(f"{tmp_path}/f")
    assert file.pread(9, 0) == b"1"
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.pwrite(b"2", 0)
