"""File systems for the tests of this folder: made when asked for, gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import unavailable

from .machine import FileSystem, Unavailable

MakeFileSystem = Callable[..., FileSystem]


@pytest.fixture
def file_system(tmp_path: Path) -> Iterator[MakeFileSystem]:
    """Makes file systems (the arguments of :class:`FileSystem`, but the folder); skips where it can't."""
    made: list[FileSystem] = []

    def make(kind: str = "ext4", size: int = 64 << 20) -> FileSystem:
        try:
            made.append(FileSystem(tmp_path / f"disk{len(made)}", kind, size))
        except Unavailable as reason:
            unavailable(str(reason))
        return made[-1]

    yield make
    for one in made:
        one.discard()
