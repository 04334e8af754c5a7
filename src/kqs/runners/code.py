"""The Python files handlers are made of: which they are, and whether they changed."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable

#: Code below these folders is installed, not edited: it changes with a restart.
_INSTALLED = ("site-packages", "dist-packages")


def imported(folder: str) -> list[str]:
    """The packages and modules below a folder that this process imported: folders and files, sorted.

    A package counts as a whole, with the modules its functions import only when they run.
    """
    inside = os.path.join(os.path.realpath(folder), "")
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        if "." in name or name in ("__main__", "kqs"):
            continue
        places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
        paths = (os.path.realpath(place) for place in places if isinstance(place, str))
        found.update(path for path in paths if path.startswith(inside) and not _installed(path))
    return sorted(found)


def _installed(path: str) -> bool:
    own_interpreter = sys.prefix != sys.base_prefix and path.startswith(os.path.join(sys.prefix, ""))
    return own_interpreter or not set(path.split(os.sep)).isdisjoint(_INSTALLED)


def stamp(roots: Iterable[str]) -> str:
    """A digest that changes when a Python file below the roots does: its path, size or time of change."""
    digest = hashlib.sha256()
    for root in roots:
        for file in _files(root):
            try:
                state = os.stat(file)
            except OSError:
                continue  # gone between the two looks; so is its line
            digest.update(
                f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
            )
    return digest.hexdigest()


def _files(root: str) -> list[str]:
    """The file itself, or the Python files below a folder, sorted."""
    if not os.path.isdir(root):
        return [root]
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        found += [os.path.join(folder, name) for name in files if name.endswith(".py")]
    return sorted(found)
