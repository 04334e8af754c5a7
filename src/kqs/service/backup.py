"""A backup: the journal and the payloads its jobs need, as a data directory of its own."""

from __future__ import annotations

import os
import shutil

from msgspec import Struct

from ..core import record
from ..core.job import BulkRef
from ..core.lifecycle import Event
from ..engines.embedded.job import load
from ..errors import DataDirError
from ..journal.backup import Copied, copy_journal
from ..journal.disk import RealDisk
from ..journal.scan import each_entry, read_only
from ..stores.files import FileStore
from ..stores.names import FILES, place_of

_ENDS = (Event.ACK, Event.DELETE)


class Backup(Struct, frozen=True):
    """What a backup holds.

    Attributes:
        journal: see :class:`~kqs.journal.backup.Copied`.
        payloads: how many bulk payloads.
        missing: jobs whose payload the bulk store does not have.
        elsewhere: jobs whose payload is in a store on other machines; it is not copied.
    """

    journal: Copied
    payloads: int
    missing: list[int]
    elsewhere: list[int] = []


def back_up(data: str, into: str) -> Backup:
    """Make a directory on which a server can start with all jobs of this one; also while one runs on it.

    The copy is made under another name, synced, read back, and only then given its name.

    Args:
        data: the data directory.
        into: the new directory; must not exist, or be empty.

    Raises:
        DataDirError: one of the two cannot be used; DamagedJournal, NewerFormat: it cannot be copied.
    """
    making = f"{into.rstrip('/')}.partial"
    if os.path.exists(into) and not (os.path.isdir(into) and not os.listdir(into)):
        raise DataDirError(f"{into} is there already; give the backup a new name")
    if os.path.exists(making):
        raise DataDirError(f"{making} is there already: a backup that was ended, or runs; remove it first")
    if not os.path.isdir(f"{data}/bulk"):
        raise DataDirError(f"{data} holds no journal; give the data directory with --data")
    disk, store = RealDisk(), FileStore(f"{data}/bulk")
    disk.makedirs(making)
    try:
        with store.hold():
            copied = copy_journal(RealDisk(read_only=True), data, disk, making)
            referred = _needed(disk, making)
            needed = {number: ref for number, ref in referred.items() if place_of(ref.name) == FILES}
            missing = store.copy(needed.values(), f"{making}/bulk")
        disk.sync_dir(f"{making}/bulk")
        disk.sync_dir(making)
        disk.rename(making, into)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    disk.sync_dir(os.path.dirname(os.path.abspath(into)))
    lost = [number for number, ref in needed.items() if ref in missing]
    elsewhere = [number for number in referred if number not in needed]
    return Backup(copied, len(needed) - len(lost), lost, elsewhere)


def _needed(disk: RealDisk, directory: str) -> dict[int, BulkRef]:
    """The bulk payloads of the jobs that have not ended; all of the copy is read back for it."""
    needed: dict[int, BulkRef] = {}

    def take(kind: int, entry: bytes, _segment: int, _offset: int) -> None:
        if kind in (record.ACCEPT, record.CARRY):
            if entry[1] & record.FLAG_BULK:
                job = load(entry, 0).job
                if job.options.bulk is not None:
                    needed[job.number] = job.options.bulk
        elif kind in _ENDS:
            needed.pop(record.decode_event(entry).job, None)

    read_only(disk, directory, each_entry(take))
    return needed
