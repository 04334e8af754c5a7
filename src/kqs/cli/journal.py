"""``kqs journal``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..core import record
from ..core.job import PRIOS
from ..core.lifecycle import Event, State
from ..engines.rules import iso
from ..errors import DataDirError, ranges
from .text import as_json_option, print_json

if TYPE_CHECKING:
    from ..journal.scan import Apply
    from ..journal.survey import Survey

_KINDS = {
    record.ACCEPT: "accept",
    record.RENEW: "renew",
    record.CARRY: "carry",
    record.MARK: "mark",
    record.KEYS: "keys",
    record.RESULT: "result",
    record.PAUSE: "pause",
    record.CRON: "cron",
    record.FED: "fed",
} | {int(event): event.name.lower() for event in Event if event is not Event.DUE}


data_option = click.option(
    "--data",
    envvar="KQS_DATA",
    default="./kqs-data",
    show_default=True,
    metavar="DIR",
    help="Data directory.",
)


@click.group()
def journal() -> None:
    """Look into a journal, and repair it."""


@journal.command()
@data_option
@as_json_option
def check(data: str, as_json: bool) -> int:
    """Verify the manifest, every segment and every entry, and name all damage.

    Reads only; also beside a running server. Exits 0 when a server can start on it, 1 when it is damaged. An
    unfinished end, as a kill leaves it, is no damage.
    """
    from ..journal.disk import RealDisk
    from ..journal.scan import read_only
    from ..journal.survey import survey

    disk = RealDisk(read_only=True)
    with _disk_errors(data):
        found = survey(disk, data)
        if not found.damage:
            read_only(disk, data, _rehearsal(data))
    if as_json:
        print_json({"sound": not found.damage, **msgspec.to_builtins(found)})
    else:
        _show(found)
    if found.damage:
        click.echo(
            "kqs: the journal is damaged; restore a backup, or see 'kqs journal repair --help'", err=True
        )
    return 1 if found.damage else 0


@journal.command()
@data_option
@click.option("--accept-loss", is_flag=True, help="Repair it although entries are lost.")
@as_json_option
def repair(data: str, accept_loss: bool, as_json: bool) -> None:
    """Rebuild a damaged journal from everything that is left of it.

    No server may run on it. The original is kept whole, in journal.before-repair-N beside. When entries are
    lost, it names their sequences and changes nothing, unless --accept-loss is given.

    What a lost entry was is not known. A job that was accepted in one is gone, unless it was carried forward
    later. A job that ended in one is there again, and runs again.
    """
    from ..journal import repair as repairs
    from ..journal.disk import RealDisk
    from ..journal.listing import list_segments
    from ..journal.recovery import lock_directory
    from ..journal.survey import survey

    with _disk_errors(data):
        list_segments(RealDisk(read_only=True), data)  # before a lock is made where no journal is
        lock = lock_directory(os.path.dirname(os.path.abspath(data)) if _is_feed(data) else data)
        try:
            found = survey(RealDisk(), data)
            kept = None
            if found.damage:
                kept = repairs.repair(
                    RealDisk(),
                    data,
                    found,
                    _rehearsal(data),
                    accept_loss=accept_loss,
                    random=os.urandom,
                    now=time.time_ns() // 1000,
                )
        finally:
            os.close(lock)
    if as_json:
        print_json({"repaired": kept is not None, "original": kept, **msgspec.to_builtins(found)})
        return
    _show(found)
    if kept is not None:
        click.echo(f"repaired; the original is in {kept}")
    if found.lost:
        click.echo(f"lost for good: sequences {ranges(found.lost)}")
        click.echo("jobs accepted in these are gone; jobs that ended in these run again")


def _is_feed(data: str) -> bool:
    """Whether this is the journal of an engine that is fed."""
    from ..service.engines import FEEDS

    return os.path.basename(os.path.abspath(data)) in FEEDS.values()


def _rehearsal(data: str) -> Apply:
    """Takes every frame as a start of the server would."""
    from ..engines.embedded import replay
    from ..engines.feed import log

    return log.rehearsal() if _is_feed(data) else replay.rehearsal()


@contextmanager
def _disk_errors(data: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or data
        raise DataDirError(
            f"{where}: {error.strerror}; the journal that was in use still is, nothing of it was changed"
        ) from None


def _show(found: Survey) -> None:
    click.echo(
        f"journal {found.journal}: {found.segments} segments, {found.entries} entries, "
        f"next sequence {found.next_sequence}"
    )
    for damage in found.damage:
        sequence = "" if damage.sequence is None else f", from sequence {damage.sequence}"
        lost = "" if damage.lost is None else f"; lost: {ranges([damage.lost])}"
        click.echo(f"{damage.segment} at byte {damage.offset}{sequence}: {damage.what}{lost}")
    if found.torn is not None:
        torn = found.torn
        click.echo(
            f"{torn.segment} at byte {torn.offset}: an unfinished end of {torn.size} bytes; a start cuts it"
        )
    click.echo(f"places damaged: {len(found.damage)}" if found.damage else "sound")


@journal.command()
@data_option
@click.option("--job", "number", type=int, metavar="N", help="Only what is about job number N.")
def cat(data: str, number: int | None) -> None:
    """Print every entry of a data directory's journal as a JSON line, without payloads.

    Reads only; also beside a running server, whose newest entries may be missing. Exits 2 and names the
    place when the journal is damaged.
    """
    from ..journal.disk import RealDisk
    from ..journal.scan import each_entry, read_only

    def show(kind: int, entry: bytes, segment: int, offset: int) -> None:
        line: dict[str, Any] = {"segment": segment, "offset": offset, "kind": _KINDS.get(kind, kind)}
        if kind == record.ACCEPT:
            line |= _accept(entry)
        elif kind == record.CARRY:
            line |= _carry(entry)
        elif kind in record.EVENTS:
            line |= _event(entry)
        elif kind == record.MARK:
            line["options"] = msgspec.Raw(record.decode_mark(entry))
        elif kind in (record.RESULT, record.PAUSE, record.CRON, record.FED):
            line["data"] = msgspec.Raw(record.decode_data(entry))
        if number is None or line.get("job") == number:
            click.echo(msgspec.json.encode(line))

    read_only(RealDisk(read_only=True), data, each_entry(show))


def _accept(entry: bytes) -> dict[str, Any]:
    accept = record.decode_accept(entry)
    return {
        "sequence": accept.sequence,
        "job": accept.sequence,
        "type": accept.type,
        "prio": PRIOS[accept.prio],
        "inserted_at": iso(accept.inserted),
        "due_at": iso(accept.due),
        "ttr": accept.ttr / 1000,
        "size": accept.data_end - accept.data_start,
        "binary": bool(accept.flags & record.FLAG_BINARY),
        "options": msgspec.Raw(accept.options or b"{}"),
    }


def _event(entry: bytes) -> dict[str, Any]:
    event = record.decode_event(entry)
    return {
        "sequence": event.sequence,
        "job": event.job,
        "at": iso(event.at),
        "due_at": iso(event.due),
        "attempt": event.attempt,
        "prio": PRIOS[event.prio],
        "deaths": event.deaths,
        "options": msgspec.Raw(event.options or b"{}"),
    }


def _carry(entry: bytes) -> dict[str, Any]:
    carry = record.decode_carry(entry)
    return {
        "sequence": carry.sequence,
        "job": carry.job,
        "state": State(carry.state).name.lower(),
        "type": carry.type,
        "prio": PRIOS[carry.prio],
        "inserted_at": iso(carry.inserted),
        "due_at": iso(carry.due),
        "attempt": carry.attempt,
        "deaths": carry.deaths,
        "size": carry.data_end - carry.data_start,
        "options": msgspec.Raw(carry.options or b"{}"),
    }
