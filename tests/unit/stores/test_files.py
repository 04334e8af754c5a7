"""The file store's own part: order of syncs, failures, orphans. The rest is in tests/conformance."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kqs.core.job import BulkRef
from kqs.errors import Busy, DiskFull, Internal, NotFound
from kqs.stores.files import FileStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    store = FileStore(str(tmp_path))
    yield store
    await store.close()


def failing(number: int) -> Callable[..., Any]:
    def fail(*_args: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


async def test_the_file_is_synced_before_it_has_its_name_and_the_name_before_put_returns(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(fd: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
        size = os.fstat(fd).st_size
        fsync(fd)
        events.append(f"{kind} synced" if kind == "directory" else f"file of {size} bytes synced")

    def watched_rename(source: str, target: str) -> None:
        rename(source, target)
        events.append("renamed")

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    ref = await store.put(b"x" * 100)
    assert events == ["file of 100 bytes synced", "renamed", "directory synced"]
    assert os.listdir(tmp_path) == [ref.name]


async def test_short_writes_go_on(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    ref = await store.put(b"0123456789" * 10)
    assert await store.get(ref) == b"0123456789" * 10


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_said_and_nothing_is_left(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(number))
        with pytest.raises(DiskFull):
            await store.put(b"x")
    assert os.listdir(tmp_path) == []
    assert await store.get(await store.put(b"x")) == b"x"


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "open"])
async def test_a_disk_that_fails_is_said(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(errno.EIO))
        with pytest.raises(Internal, match="Input/output error"):
            await store.put(b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("lack", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_what_lacks_for_a_moment_is_no_failure_of_the_store(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, lack: int
) -> None:
    ref = await store.put(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing(lack))
        with pytest.raises(Busy):
            await store.put(b"y")
        with pytest.raises(Busy):
            await store.get(ref)
    assert await store.get(ref) == b"x"


async def test_a_file_that_cannot_be_removed_is_left_to_be_collected(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await store.put(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing(errno.EIO))
        await store.delete([ref])
    assert os.listdir(tmp_path) == [ref.name]
    os.utime(tmp_path / ref.name, (1, 1))
    assert await store.collect(set(), 3600) == 1


async def test_a_read_that_fails_is_said(store: FileStore, tmp_path: Path) -> None:
    ref = await store.put(b"x")
    (tmp_path / ref.name).unlink()
    (tmp_path / ref.name).mkdir()  # reading a directory fails
    with pytest.raises(Internal, match="failed"):
        await store.get(ref)


async def test_links_are_not_followed(store: FileStore, tmp_path: Path) -> None:
    ref = await store.put(b"x")
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / ref.name).unlink()
    (tmp_path / ref.name).symlink_to(tmp_path / "other")
    with pytest.raises(Internal):
        await store.get(ref)
    await store.delete([ref])
    assert os.listdir(tmp_path) == ["other"]


async def test_files_and_their_directory_are_private(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "bulk"))
    ref = await store.put(b"x")
    await store.close()
    assert stat.S_IMODE((tmp_path / "bulk").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "bulk" / ref.name).stat().st_mode) == 0o600


async def test_orphans_are_collected_after_their_grace(store: FileStore, tmp_path: Path) -> None:
    wanted, orphan, young = [await store.put(b"x") for _ in range(3)]
    (tmp_path / f"{'0' * 32}.new").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"not ours")
    for path in tmp_path.iterdir():
        if path.name != young.name:
            os.utime(path, (1, 1))
    assert await store.collect({wanted.name}, 3600) == 2
    assert sorted(os.listdir(tmp_path)) == sorted([wanted.name, young.name, "notes.txt"])
    assert orphan.name not in os.listdir(tmp_path)


async def test_a_file_that_goes_while_orphans_are_looked_for_is_passed_over(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, orphan = await store.put(b"going"), await store.put(b"orphan")
    listed = os.scandir

    def stale(path: str) -> list[os.DirEntry[str]]:
        entries = list(listed(path))
        (tmp_path / going.name).unlink()
        return entries

    monkeypatch.setattr("kqs.stores.files.os.scandir", stale)
    assert await store.collect((), -1) == 1
    with pytest.raises(NotFound):
        await store.get(orphan)


async def test_an_unknown_name_is_refused_before_anything_is_deleted(
    store: FileStore, tmp_path: Path
) -> None:
    ref = await store.put(b"x")
    with pytest.raises(Internal, match="no name of this store"):
        await store.delete([ref, BulkRef("../x", "", 0)])
    assert os.listdir(tmp_path) == [ref.name]


async def test_nothing_is_deleted_while_a_copy_is_made(tmp_path: Path) -> None:
    """By another process, which has opened the store for itself."""
    served, copying = FileStore(str(tmp_path / "bulk")), FileStore(str(tmp_path / "bulk"))
    ref, orphan = await served.put(b"x"), await served.put(b"y")
    os.utime(tmp_path / "bulk" / orphan.name, (1, 1))
    with copying.hold(), copying.hold():
        await served.delete([ref])
        assert await served.collect({ref.name}, 3600) == 0
        assert await served.get(ref) == b"x"
    assert await served.collect({ref.name}, 3600) == 1
    await served.delete([ref])
    with pytest.raises(NotFound):
        await served.get(ref)
    await served.close()
    await copying.close()


async def test_a_copy_holds_what_was_asked_for_and_tells_what_is_missing(
    store: FileStore, tmp_path: Path
) -> None:
    good, other, gone, changed = [await store.put(data) for data in (b"1", b"2", b"3", b"4")]
    (tmp_path / gone.name).unlink()
    (tmp_path / changed.name).write_bytes(b"5")
    into = tmp_path / "copy" / "bulk"
    assert store.copy([good, gone, changed], str(into)) == [gone, changed]
    assert os.listdir(into) == [good.name]
    assert other.name not in os.listdir(into)
    assert await FileStore(str(into)).get(good) == b"1"
