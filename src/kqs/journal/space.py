"""Space made ahead: spare segments for what will be written, ballast for the manifest and for a start.

A disk that is full must not keep jobs from ending, nor the journal from starting (DESIGN section 5, rule 6).
"""

from __future__ import annotations

import re
from typing import Final

from ..ports import FULL, Disk
from . import manifest as manifests
from .manifest import Manifest

#: Spare segments are named so, and numbered.
SPARE: Final = "spare-"
#: A file whose space is given up on a full disk, for a manifest or a start's copy of the open segment.
BALLAST: Final = "ballast"

_SPARE_FILE = re.compile(r"spare-\d+")


def is_spare(name: str) -> bool:
    """Whether a file's name is a spare segment's."""
    return _SPARE_FILE.fullmatch(name) is not None


def spare_names(disk: Disk, folder: str) -> list[str]:
    """The spare segments of the journal's folder."""
    return sorted(filter(is_spare, disk.listdir(folder)))


def has_space(disk: Disk, path: str, size: int) -> bool:
    """Whether a file has this space; a crash, or a smaller ``segment_size``, may have left it shorter."""
    file = disk.open(path)
    try:
        return file.size() >= size
    finally:
        file.close()


def take_spare(disk: Disk, folder: str, path: str, size: int, *, ballast: bool = False) -> bool:
    """Turn a spare segment of at least this size into a new file; False when there is none.

    Args:
        disk, folder: where.
        path: the new file.
        size: bytes it needs.
        ballast: whether the ballast may be taken when no spare will do.
    """
    names = spare_names(disk, folder)
    if ballast and BALLAST in disk.listdir(folder):
        names.append(BALLAST)
    for name in names:
        if has_space(disk, f"{folder}/{name}", size):
            disk.rename(f"{folder}/{name}", path)
            return True
    return False


def store_manifest(disk: Disk, directory: str, manifest: Manifest) -> None:
    """:func:`~kqs.journal.manifest.store`, giving up the ballast if the disk is full."""
    try:
        manifests.store(disk, directory, manifest)
    except OSError as error:
        folder = f"{directory}/journal"
        if error.errno not in FULL or BALLAST not in disk.listdir(folder):
            raise
        disk.unlink(f"{folder}/{BALLAST}")
        manifests.store(disk, directory, manifest)
