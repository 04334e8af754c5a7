"""``kqs journal``."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ..core import record
from ..core.job import PRIOS
from ..core.lifecycle import Event, State
from ..engines.embedded.show import iso

_KINDS = {
    record.ACCEPT: "accept",
    record.RENEW: "renew",
    record.CARRY: "carry",
    record.KEYS: "keys",
} | {int(event): event.name.lower() for event in Event if event is not Event.DUE}


@click.group()
def journal() -> None:
    """Look into a journal."""


@journal.command()
@click.option(
    "--data",
    envvar="KQS_DATA",
    default="./kqs-data",
    show_default=True,
    metavar="DIR",
    help="Data directory.",
)
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
        if number is None or line.get("job") == number:
            click.echo(msgspec.json.encode(line))

    read_only(RealDisk(), data, each_entry(show))


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
