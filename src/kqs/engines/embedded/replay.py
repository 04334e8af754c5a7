"""Rebuilds the index from the journal's frames: the speed of a restart.

Accepts are the bulk of a long backlog and go into the table in columns, without an object each. Leases are
only noted; what is still leased at the end is loaded then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import Struct

from ...core import record
from ...core.job import NO_OPTIONS, JobOptions
from ...core.lifecycle import Event, State, step, step_after_loss
from ...core.record import Damaged, EventRecord, Frame, Newer
from ...core.salvage import LossMark
from ...errors import Conflict
from ...journal.scan import Apply
from ..marks import Paused, decode_pause
from .index import DELAYED, HISTORY, READY, RESERVED, SETTLED, Finished, Index
from .job import load
from .keys import KeyIndex
from .results import decode_result
from .table import LANE_SHIFT, PRIO_MASK, STATE_BITS, STATE_MASK, Row, pack_meta

_options = msgspec.json.Decoder(JobOptions)


class EventOptions(Struct, omit_defaults=True):
    """The rare parts of an event entry.

    Attributes:
        holder: the worker a lease went to.
        outcome: what the settlement said, remembered for its receipt.
        error: the new last error, as shown.
        leased: when the attempt that met the error began, microseconds since 1970.
    """

    holder: str = ""
    outcome: str = ""
    error: dict[str, Any] | None = None
    leased: int = 0


event_options = msgspec.json.Decoder(EventOptions)
_mark_options = msgspec.json.Decoder(LossMark)
NO_EVENT_OPTIONS = EventOptions()
_MOVES = {int(event): event for event in (Event.RETRY, Event.BURY, Event.RELEASE, Event.KICK, Event.RESCUE)}
READY_, DELAYED_ = int(READY), int(DELAYED)  # plain integers: an IntEnum's arithmetic is slow
_ENDS = frozenset({int(Event.ACK), int(Event.DELETE)})


class Replay:
    """Takes frames in journal order and applies them to an index.

    Args:
        index, keys: what to rebuild.
    """

    def __init__(self, index: Index, keys: KeyIndex) -> None:
        self._index = index
        self._keys = keys
        self._lane_ids: dict[bytes, int] = {}
        self._leases: dict[int, EventRecord] = {}
        self._cancelled: set[int] = set()
        self._settled: deque[tuple[EventRecord, EventRecord]] = deque(maxlen=SETTLED)
        self._finished: deque[Finished] = deque(maxlen=HISTORY)
        self._step = step

    def frame(self, data: bytes, frame: Frame, segment: int) -> None:
        """Apply one verified frame.

        Raises:
            Damaged: it contradicts what came before, or itself.
            Newer: a kind or flag this version does not know.
        """
        offset, left, sequence = frame.start, frame.entries, frame.first_sequence
        try:
            while left:
                count, offset = self._accepts(data, offset, frame.end, left, sequence, segment)
                left -= count
                sequence += count
                if left:
                    entry = record.entry_at(data, offset, frame.end, sequence)
                    try:
                        self._other(entry, offset, segment)
                    except Damaged as damage:
                        raise Damaged(offset + damage.offset, damage.what) from None
                    offset += len(entry)
                    left -= 1
                    sequence += 1
        except (Conflict, record.Truncated, msgspec.MsgspecError) as error:
            raise Damaged(offset, f"an entry cannot be: {error}") from None
        if offset != frame.end:
            raise Damaged(offset, "the frame is longer than its entries")

    def _accepts(
        self, data: bytes, offset: int, end: int, most: int, sequence: int, segment: int
    ) -> tuple[int, int]:
        """Take the accepts that stand here in a row; returns how many, and where the next entry is.

        Here is where a restart spends its time. The frame's CRC was verified, so only what would lead astray
        is checked; the rest is when the entry is loaded.
        """
        unpack, lane_ids, fixed = record.unpack_accept_start, self._lane_ids, record.ACCEPT_FIXED
        start, first, stop = offset, sequence, sequence + most
        sizes: list[int] = []
        dues: list[int] = []
        metas: list[int] = []
        add_size, add_due, add_meta = sizes.append, dues.append, metas.append
        groups: dict[int, list[int]] = {}
        last = -1
        add_number: Callable[[int], None] = sizes.append  # until the first entry's group is known
        while sequence < stop:
            kind, flags, options_length, size, found, inserted, due, prio, type_length = unpack(data, offset)
            if kind != record.ACCEPT:
                break
            type_start = offset + fixed
            type_end = type_start + type_length
            following = offset + size
            if found != sequence or following > end or type_end + options_length > following or prio > 4:
                raise Damaged(offset, "an accept entry is impossible")
            lane_id = lane_ids.get(data[type_start:type_end])
            if lane_id is None:
                lane_id = self._new_type(data[type_start:type_end], offset)
            if flags or options_length:
                try:
                    key = self._special(data[offset:following], sequence, inserted, flags, segment)
                except Damaged as damage:
                    raise Damaged(offset + damage.offset, damage.what) from None
                except msgspec.MsgspecError as error:
                    raise Damaged(offset, f"an accept entry's options are wrong: {error}") from None
                if key is not None:
                    lane_id = self._index.lane(str(data[type_start:type_end], "utf-8"), key).id
            meta = lane_id << LANE_SHIFT | prio << STATE_BITS | (READY_ if due <= inserted else DELAYED_)
            if meta != last:
                last = meta
                group = groups.get(meta)
                if group is None:
                    group = groups[meta] = []
                add_number = group.append
            add_number(sequence)
            add_size(size)
            add_due(due)
            add_meta(meta)
            sequence += 1
            offset = following
        if sizes:
            places = list(accumulate(sizes[:-1], initial=segment << 32 | start))
            self._index.join(groups)
            self._index.extend(first, places, sizes, dues, metas, groups, segment)
        return sequence - first, offset

    def _new_type(self, text: bytes, offset: int) -> int:
        try:
            lane_id = self._lane_ids[text] = self._index.lane(str(text, "utf-8")).id
        except UnicodeDecodeError:
            raise Damaged(offset, "an accept entry's type is not UTF-8") from None
        return lane_id

    def _special(self, entry: bytes, number: int, inserted: int, flags: int, segment: int) -> str | None:
        """What an accept with flags or options has for the index; returns its fairness key."""
        if flags & ~record.ACCEPT_FLAGS:
            raise Newer(f"accept flags {flags}")
        accept = record.decode_accept(entry)
        options = _options.decode(accept.options) if accept.options else NO_OPTIONS
        if options.bulk is not None:
            self._index.bulk[number] = options.bulk
        if options.key is not None:
            self._keys.add(options.key, number, inserted, segment, inserted)
        if options.expires:
            self._index.expire(number, inserted + options.expires)
        if options.unique is not None:
            self._index.unique.add(number, accept.type, options.unique)
        return options.fair

    def _other(self, entry: bytes, offset: int, segment: int) -> None:
        """Any entry that is no accept."""
        kind = entry[0]
        if kind in record.EVENTS:
            self._event(record.decode_event(entry), segment << 32 | offset)
        elif kind == record.CARRY:
            job = load(entry, segment << 32 | offset).job
            self._leases.pop(job.number, None)
            self._cancelled.discard(job.number)
            self._index.expires.pop(job.number, None)
            self._index.restore(job)
        elif kind == record.KEYS:
            self._keys.carried(record.decode_data(entry), segment)
        elif kind == record.RESULT:
            result = decode_result(record.decode_data(entry))
            self._index.results.add(result)
            self._index.results.placed(result.job, len(entry), segment << 32 | offset)
        elif kind == record.PAUSE:
            pause = decode_pause(record.decode_data(entry))
            if pause.paused:
                self._index.pause(pause.type, Paused(pause.by, pause.at, segment))
            else:
                self._index.resume(pause.type)
        elif kind == record.CRON:
            self._index.crons.put(record.decode_data(entry), segment)
        elif kind == record.MARK:
            self._mark(record.decode_mark(entry))
        elif kind == record.FED:
            raise Damaged(0, "this is the journal of a feed, not of the embedded engine")
        else:
            raise Newer(f"entry kind {kind}")

    def _mark(self, options: bytes) -> None:
        """Entries before this one are lost: the events behind it are believed as they are."""
        try:
            _mark_options.decode(options)
        except msgspec.MsgspecError as error:
            raise Newer(f"a mark of another kind: {error}") from None
        self._step = step_after_loss

    def _event(self, event: EventRecord, place: int) -> None:
        row = self._index.table.row(event.job)
        if row is None:
            return  # accepted in a segment that is gone: its end was told there or is told here
        meta = row.chunk.meta[row.at]
        state = State(meta & STATE_MASK)
        if event.kind == record.RENEW:
            self._renew(event)
            return
        if event.kind == record.CANCEL:
            self._step(state, Event.CANCEL)
            if state is not RESERVED:  # its lease is lost: nothing else would end it
                self._end(event._replace(kind=record.DELETE), row, state)
            elif (job := self._index.leased.get(event.job)) is not None:
                job.cancelled = True
            else:
                self._cancelled.add(event.job)
            return
        if state is RESERVED:
            self._end_lease(event)
        if event.kind == record.LEASE:
            if state is DELAYED:
                state = READY  # its time had come
            self._set(row, meta, self._step(state, Event.LEASE))
            row.chunk.attempt[row.at] = event.attempt
            self._leases[event.job] = event
        elif event.kind in _ENDS:
            self._end(event, row, state)
        else:
            self._move(event, row, state, place)

    def _set(self, row: Row, meta: int, after: State, prio: int | None = None) -> None:
        index = self._index
        counts = index.counts[index.type_of(row)]
        counts[meta & STATE_MASK] -= 1
        counts[after] += 1
        prio = meta >> STATE_BITS & PRIO_MASK if prio is None else prio
        row.chunk.meta[row.at] = pack_meta(meta >> LANE_SHIFT, prio, after)

    def _renew(self, event: EventRecord) -> None:
        leased = self._leases.get(event.job)
        if leased is not None:
            if leased.nonce == event.nonce:
                self._leases[event.job] = leased._replace(due=event.due)
        elif (job := self._index.leased.get(event.job)) is not None and job.nonce == event.nonce:
            self._index.renew(job, event.due)

    def _end_lease(self, event: EventRecord) -> None:
        leased = self._leases.pop(event.job, None)
        self._cancelled.discard(event.job)
        if leased is not None:
            self._settled.append((leased, event))
        elif (job := self._index.leased.get(event.job)) is not None:
            self._settled.append((event._replace(attempt=job.attempt, nonce=job.nonce), event))
            self._index.drop_lease(job)

    def _end(self, event: EventRecord, row: Row, state: State) -> None:
        index = self._index
        self._set(row, row.chunk.meta[row.at], self._step(state, Event(event.kind)))
        chunk, at = row
        self._finished.append(Finished(event.job, chunk.place[at], chunk.size[at], event, chunk.error[at]))
        index.forget(row)

    def _move(self, event: EventRecord, row: Row, state: State, place: int) -> None:
        index = self._index
        after = self._step(state, _MOVES[event.kind], delayed=event.due > event.at)
        self._set(row, row.chunk.meta[row.at], after, event.prio)
        row.chunk.due[row.at] = event.due
        row.chunk.attempt[row.at] = event.attempt
        row.chunk.deaths[row.at] = event.deaths
        if event.kind == Event.KICK:
            index.expires.pop(event.job, None)
        if b'"error"' in event.options:
            row.chunk.error[row.at] = place
        index.wait(after, event.prio, index.lane_of(row), event.job, event.due)

    def finish(self, read: Callable[[int, int], bytes]) -> None:
        """Load what is leased still, and remember what ended last.

        Args:
            read: gives the entry at a place, of a size.
        """
        index = self._index
        for event in self._leases.values():
            row = index.row(event.job)
            job = index.load(row, read(row.chunk.place[row.at], row.chunk.size[row.at])).job
            options = _event(event)
            job.nonce, job.leased, job.expires = event.nonce, event.at, event.due
            job.holder, job.local = options.holder, bool(event.flags & record.FLAG_LOCAL)
            job.cancelled = event.job in self._cancelled
            index.hold(job)
        for leased, event in self._settled:
            outcome = _event(event).outcome
            if outcome:
                index.settled[f"{leased.job}-{leased.attempt}-{leased.nonce:x}"] = outcome
        for finished in self._finished:
            index.history[finished.number] = finished
        index.unique.rebuild(lambda number: index.state_of(index.row(number)))


def rehearsal() -> Apply:
    """Takes every frame of a journal as a start would, for nothing but what that raises."""
    return Replay(Index(), KeyIndex(0, 0)).frame


def live_jobs(replay: Callable[[Apply], None]) -> int:
    """How many jobs of a journal are not over.

    Args:
        replay: replays the journal's frames into the callback it is given.
    """
    index = Index()
    replay(Replay(index, KeyIndex(0, 0)).frame)
    return len(index.table)


def _event(event: EventRecord) -> EventOptions:
    return event_options.decode(event.options) if event.options else NO_EVENT_OPTIONS
