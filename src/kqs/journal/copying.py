"""Durable copies of files; their directory is the caller's to sync."""

from __future__ import annotations

import errno
from typing import Final

from ..ports import Disk
from .manifest import write_all
from .scan import read_file

#: What says that the file system has no hard links, or no more of them.
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS)


def keep_file(disk: Disk, source: str, target: str) -> None:
    """A second name for a file that will never be written again, or a copy where there are no such names."""
    try:
        disk.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_file(disk, source, target)
        return
    file = disk.open(target)
    try:
        file.datasync()
    finally:
        file.close()


def copy_file(disk: Disk, source: str, target: str) -> None:
    """A copy of a file, synced."""
    write_file(disk, target, read_file(disk, source))


def write_file(disk: Disk, path: str, data: bytes) -> None:
    """A new file, synced."""
    file = disk.open(path, create=True)
    try:
        write_all(file, data, 0)
        file.datasync()
    finally:
        file.close()
