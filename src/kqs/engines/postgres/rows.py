"""Jobs as rows of the tables, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ...core.job import NO_OPTIONS, JobOptions
from ...core.lifecycle import State
from ...core.record import FLAG_BINARY
from ..embedded.job import LiveJob

#: What is read of a live job, in the order :func:`job_of` wants it; the payload apart.
COLUMNS: Final = (
    "id, type, state, prio, is_binary, inserted, due, ttr, octet_length(data), attempt, deaths, nonce,"
    " leased, expires, local, cancelled, holder, overdue, settled, settled_as, options, error, progress"
)
#: The same of one that has ended; what it has no more is 0.
DONE_COLUMNS: Final = (
    "id, type, 5, prio, is_binary, inserted, due, ttr, size, attempt, deaths, 0::bigint, leased,"
    " 0::bigint, false, false, '', 0::bigint, nonce, said, options, error, NULL::text, finished, outcome"
)
_options = msgspec.json.Decoder(JobOptions)
_object = msgspec.json.Decoder(dict[str, Any])


class Row(LiveJob):
    """A job, and what only its row knows.

    Attributes:
        overdue: when it is buried if it still waits; 0: never.
        settled: nonce of the lease that was settled last.
        settled_as: the outcome that was said.
        broken: why its row does not read, or empty.
    """

    overdue: int = 0
    settled: int = 0
    settled_as: str = ""
    broken: str = ""


def job_of(values: Sequence[Any]) -> Row:
    """A job from the columns above. A row that was edited by hand into nonsense is told by ``broken``."""
    options, error, progress, broken = NO_OPTIONS, None, None, ""
    try:
        if values[21] is not None:
            error = _object.decode(values[21])
        if values[22] is not None:
            progress = _object.decode(values[22])
        if values[20] is not None:
            options = _options.decode(values[20])
    except msgspec.MsgspecError as damage:
        broken = f"its row does not read: {damage}"
    job = Row(
        values[0],
        values[1],
        State(values[2]),
        values[3],
        FLAG_BINARY if values[4] else 0,
        values[5],
        values[6],
        values[7],
        0,
        0,
        values[8],
        options,
        values[9],
        values[10],
        values[11],
        values[12],
        values[13],
        local=values[14],
        cancelled=values[15],
        holder=values[16],
        overdue=values[17],
        settled=values[18],
        settled_as=values[19],
        error=error,
        progress=progress,
        broken=broken,
    )
    if job.nonce:
        job.receipt = f"{job.number}-{job.attempt}-{job.nonce:x}"
    if len(values) > 23:
        job.finished, job.outcome = values[23], values[24]
    return job


#: The most an ``integer`` column holds.
MOST: Final = 2**31 - 1
#: When a lease that begins now ends. A ttr that was edited by hand may be anything.
EXPIRES: Final = "%s + least(job.ttr, 1000000000000) * 1000"

UPDATE: Final = (
    "UPDATE job SET state = %s, prio = %s, due = %s, attempt = %s, deaths = %s, overdue = %s, leased = %s,"
    " settled = %s, settled_as = %s, error = %s, nonce = 0, expires = 0, holder = '', server = 0,"
    " local = false, cancelled = false, progress = NULL WHERE id = %s"
)


def update_values(job: Row) -> tuple[Any, ...]:
    """The values of :data:`UPDATE`: a job without a lease, as it is now."""
    return (
        int(job.state),
        job.prio,
        job.due,
        job.attempt,
        min(job.deaths, MOST),
        job.overdue,
        job.leased,
        job.settled,
        job.settled_as,
        None if job.error is None else msgspec.json.encode(job.error).decode(),
        job.number,
    )


FINISH: Final = (
    "WITH gone AS (DELETE FROM job WHERE id = %s RETURNING *) INSERT INTO done SELECT id, %s, inserted, due,"
    " leased, %s, ttr, octet_length(data), attempt, deaths, prio, is_binary, type, fair, %s, %s, options,"
    " error FROM gone"
)


def finish_values(job: Row) -> tuple[Any, ...]:
    """The values of :data:`FINISH`."""
    return job.number, job.finished, job.settled, job.outcome, job.settled_as


def number_of_receipt(receipt: str) -> tuple[int, int] | None:
    """Job number and nonce in a receipt; None: it is none of ours."""
    number, _, rest = receipt.partition("-")
    attempt, _, nonce = rest.partition("-")
    if not (
        number.isascii() and number.isdigit() and attempt.isdigit() and len(number) < 20 and len(nonce) < 17
    ):
        return None
    try:
        value = int(nonce, 16)
    except ValueError:
        return None
    if value >= 1 << 63 or int(number) >= 1 << 63 or f"{int(number)}-{attempt}-{value:x}" != receipt:
        return None
    return int(number), value
