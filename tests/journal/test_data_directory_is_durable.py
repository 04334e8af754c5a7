"""A new data directory's own name is synced: a power loss must not take it back, jobs and all (G1)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kqs.errors import DataDirError
from kqs.journal.recovery import lock_directory


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of what fsync was called on, in order."""
    paths: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        paths.append(os.path.realpath(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("made_before", [False, True])
def test_every_name_above_is_synced(tmp_path: Path, synced: list[str], made_before: bool) -> None:
    data = tmp_path / "a" / "b"
    if made_before:
        data.mkdir(parents=True)
    os.close(lock_directory(str(data)))
    wanted = {data.parent} if made_before else {data.parent, tmp_path}
    assert {str(path) for path in wanted} <= set(synced)


def test_a_failed_sync_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DataDirError, match="Input/output error"):
        lock_directory(str(tmp_path / "data"))


def test_a_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.close(lock_directory("data"))
    assert (tmp_path / "data" / "lock").is_file()
