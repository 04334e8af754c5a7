"""Which files handlers are made of, and whether they changed."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kqs.runners.code import imported, stamp


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module, two kinds of packages and an installed one, all but one module imported."""
    for name in ("kt_alone.py", "kt_unused.py", "kt_pack/__init__.py", "kt_pack/late.py", "kt_bare/inner.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    installed = tmp_path / ".venv" / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "kt_installed.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(installed))
    for name in ("kt_alone", "kt_pack", "kt_bare.inner", "kt_installed"):
        importlib.import_module(name)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("kt_")]:
        del sys.modules[name]


def test_own_modules_and_packages_are_found(folder: Path) -> None:
    assert imported(str(folder)) == [str(folder / name) for name in ("kt_alone.py", "kt_bare", "kt_pack")]
    assert imported(str(folder / "kt_pack")) == []


def test_the_stamp_follows_the_files(folder: Path) -> None:
    def now() -> str:
        return stamp(imported(str(folder)))

    seen = [now()]
    assert now() == seen[0]
    (folder / "kt_unused.py").write_text("1")
    (folder / "kt_pack" / "data.txt").write_text("1")
    assert now() == seen[0]
    (folder / "kt_alone.py").write_text("1")
    seen.append(now())
    (folder / "kt_pack" / "late.py").write_text("1")
    seen.append(now())
    os.utime(folder / "kt_pack" / "late.py", (1, 1))
    seen.append(now())
    (folder / "kt_bare" / "more.py").touch()
    seen.append(now())
    (folder / "kt_alone.py").unlink()
    seen.append(now())
    assert len(set(seen)) == len(seen)
