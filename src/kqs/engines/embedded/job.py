"""A job as an object: made from its row and its journal entry when it is leased, changed or shown."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from ...core import record
from ...core.job import NO_OPTIONS, JobOptions
from ...core.lanes import Lane
from ...core.lifecycle import State


class CarryOptions(Struct, omit_defaults=True):
    """The options of a carry entry: the job's own, and what an event entry would have said.

    Attributes:
        job: the options of the accept.
        error: the last error, as shown.
        holder: the worker that has the lease.
        leased: when the lease began, microseconds since 1970.
        due: of a leased job, whose entry's ``due`` is the end of its lease.
    """

    job: JobOptions = NO_OPTIONS
    error: dict[str, Any] | None = None
    holder: str = ""
    leased: int = 0
    due: int = 0


_job_options = msgspec.json.Decoder(JobOptions)
_carry_options = msgspec.json.Decoder(CarryOptions)


class LiveJob(Struct, gc=False):
    """One job.

    ``gc=False``: it refers to nothing that could refer back; the collector need not visit it.

    Attributes:
        number: its id within this journal, and its place in line.
        place, size: where its accept or carry entry lies (segment << 32 | offset), and that entry's bytes.
        flags: of the entry.
        inserted, due, leased, expires, finished: microseconds since 1970.
        ttr: milliseconds.
        lane: its lane while it is live, where it was looked up.
        nonce, receipt: of the current lease; 0 and empty when there is none.
        charged: what its lane was charged for the lease, in virtual time.
        cost: microseconds the attempt ran, once that is known; 0 when it did not run; else -1.
        cancelled: whether it ends with this lease.
        error: the last one, as shown, or None.
        error_place: where the event entry with the last error lies, once the job has ended; 0: nowhere else.
    """

    number: int
    type: str
    state: State
    prio: int
    flags: int
    inserted: int
    due: int
    ttr: int
    place: int
    size: int
    payload_size: int
    options: JobOptions
    attempt: int = 0
    deaths: int = 0
    nonce: int = 0
    leased: int = 0
    expires: int = 0
    finished: int = 0
    local: bool = False
    cancelled: bool = False
    holder: str = ""
    outcome: str = ""
    error: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None
    error_place: int = 0
    charged: float = 0.0
    cost: int = -1
    lane: Lane | None = None
    receipt: str = ""


class Loaded(Struct, gc=False):
    """A job made from its entry alone, and its payload."""

    job: LiveJob
    payload: bytes


def load(entry: bytes, place: int) -> Loaded:
    """The job an accept or carry entry stands for, as it was when the entry was written.

    Raises:
        Damaged, Newer: see :mod:`kqs.core.record`.
    """
    size = len(entry)
    if entry[0] == record.ACCEPT:
        accept = record.decode_accept(entry)
        job = LiveJob(
            accept.sequence,
            accept.type,
            State.READY,
            accept.prio,
            accept.flags,
            accept.inserted,
            accept.due,
            accept.ttr,
            place,
            size,
            accept.data_end - accept.data_start,
            _job_options.decode(accept.options) if accept.options else NO_OPTIONS,
        )
        return Loaded(job, entry[accept.data_start : accept.data_end])
    carry = record.decode_carry(entry)
    options = _carry_options.decode(carry.options) if carry.options else CarryOptions()
    job = LiveJob(
        carry.job,
        carry.type,
        State(carry.state),
        carry.prio,
        carry.flags & ~_LEASE_FLAGS,
        carry.inserted,
        options.due if carry.state == State.RESERVED else carry.due,
        carry.ttr,
        place,
        size,
        carry.data_end - carry.data_start,
        options.job,
        carry.attempt,
        carry.deaths,
        carry.nonce,
        options.leased,
        carry.due if carry.state == State.RESERVED else 0,
        0,
        bool(carry.flags & record.FLAG_LOCAL),
        bool(carry.flags & record.FLAG_CANCELLED),
        options.holder,
        error=options.error,
    )
    return Loaded(job, entry[carry.data_start : carry.data_end])


def encode_carry(job: LiveJob, payload: bytes, sequence: int) -> bytes:
    """The entry that carries a job's whole state forward."""
    leased = job.state is State.RESERVED
    options = CarryOptions(job.options, job.error, job.holder, job.leased, job.due if leased else 0)
    text = b"" if options == _NO_CARRY_OPTIONS else msgspec.json.encode(options)
    return record.encode_carry(
        sequence,
        job.flags | (record.FLAG_LOCAL if job.local else 0) | (record.FLAG_CANCELLED if job.cancelled else 0),
        job.number,
        job.state,
        job.deaths,
        job.prio,
        job.attempt,
        job.ttr,
        job.inserted,
        job.expires if leased else job.due,
        job.nonce,
        job.type.encode(),
        text,
        payload,
    )


_NO_CARRY_OPTIONS = CarryOptions()
#: Flags of a carry entry that are the lease's, not the payload's.
_LEASE_FLAGS = record.FLAG_LOCAL | record.FLAG_CANCELLED


def receipt_of(job: LiveJob) -> str:
    """The receipt of a job's current lease: job, attempt, and a nonce that holds the epoch."""
    return f"{job.number}-{job.attempt}-{job.nonce:x}"
