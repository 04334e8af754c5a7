"""Rebuilds the index from the journal's entries."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from ...core import record
from ...core.job import NO_OPTIONS, JobOptions
from ...core.lifecycle import Event, State, step
from ...core.record import Damaged, EventRecord, Newer
from ...errors import Conflict
from .index import Index, LiveJob

_options = msgspec.json.Decoder(JobOptions)


class EventOptions(Struct, omit_defaults=True):
    """The rare parts of an event entry.

    Attributes:
        holder: the worker a lease went to.
        outcome: what the settlement said, remembered for its receipt.
        error: the new last error, as shown.
    """

    holder: str = ""
    outcome: str = ""
    error: dict[str, Any] | None = None


_event_options = msgspec.json.Decoder(EventOptions)
NO_EVENT_OPTIONS = EventOptions()

_MOVES = {int(event): event for event in (Event.RETRY, Event.BURY, Event.RELEASE, Event.KICK, Event.RESCUE)}


def live_job(
    accept: record.Accept,
    segment: int,
    offset: int,
    size: int,
    entry: bytes | None,
    now: int,
) -> LiveJob:
    """The job an accept entry stands for."""
    return LiveJob(
        accept.sequence,
        accept.type,
        State.DELAYED if accept.due > now else State.READY,
        accept.prio,
        accept.flags,
        accept.inserted,
        accept.due,
        accept.ttr,
        segment,
        offset,
        size,
        accept.data_start,
        entry,
        _options.decode(accept.options) if accept.options else NO_OPTIONS,
    )


class Replay:
    """Takes entries in journal order and applies them to an index.

    Args:
        index: what to rebuild.
        keep: most bytes of payload to keep in memory meanwhile.
    """

    def __init__(self, index: Index, keep: int) -> None:
        self._index = index
        self._keep = keep

    def apply(self, kind: int, entry: bytes, segment: int, offset: int) -> None:
        """Apply one entry.

        Raises:
            Damaged: it contradicts what came before.
            Newer: a kind this version does not know.
        """
        try:
            if kind == record.ACCEPT:
                self._accept(entry, segment, offset)
            elif kind in record.EVENTS:
                self._event(record.decode_event(entry))
            else:
                raise Newer(f"entry kind {kind}")
        except Damaged as damage:
            raise Damaged(offset + damage.offset, damage.what) from None
        except (Conflict, KeyError, msgspec.MsgspecError) as error:
            raise Damaged(offset, f"entry of kind {kind} cannot be: {error}") from None

    def _accept(self, entry: bytes, segment: int, offset: int) -> None:
        accept = record.decode_accept(entry)
        size = len(entry)
        self._keep -= size
        kept = entry if self._keep >= 0 else None
        self._index.add(live_job(accept, segment, offset, size, kept, accept.inserted))

    def _event(self, event: EventRecord) -> None:
        job = self._index.live.get(event.job)
        if job is None:
            return  # accepted in a segment that is gone: its end was told there or is told here
        options = _event_options.decode(event.options) if event.options else NO_EVENT_OPTIONS
        if event.kind == record.LEASE:
            if job.state is State.DELAYED:
                self._index.release_due(job.due)
            local = bool(event.flags & record.FLAG_LOCAL)
            self._index.lease(job, event.at, event.attempt, event.nonce, event.due, options.holder, local)
        elif event.kind == record.RENEW:
            if job.state is State.RESERVED and job.nonce == event.nonce:
                self._index.renew(job, event.due)
        elif event.kind in (Event.ACK, Event.DELETE):
            self._index.finish(job, Event(event.kind), event.at, options.outcome)
        else:
            kind = _MOVES[event.kind]
            step(job.state, kind)
            self._index.move(
                job,
                kind,
                due=event.due,
                delayed=event.due > event.at,
                attempt=event.attempt,
                prio=event.prio,
                deaths=event.deaths,
                error=options.error,
                outcome=options.outcome,
            )
