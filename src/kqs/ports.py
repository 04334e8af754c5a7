"""What the service needs from the outside world, as small Protocols.

Engines, stores, runners, disks and clocks are chosen in ``service/app.py`` and nowhere else. Each port has a
conformance suite in ``kqs.testing`` that every implementation passes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, Literal, Protocol, runtime_checkable

from msgspec import Struct

from .core.handler import Job
from .core.job import BulkRef, NewJob
from .core.outcome import Attempted, Settlement
from .core.shares import Shares


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> int:
        """Microseconds since 1970 UTC that never run backwards while the process lives."""
        ...


class Executor(Protocol):
    """One thread (or its simulation) that does blocking work in order."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Run ``work`` off the loop, then call ``done(result, error)`` on it. Order is kept."""
        ...

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        ...


#: What the operating system says of a full disk.
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
#: What it says when descriptors or memory are short: nothing is wrong with the disk.
LACKING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class DiskFile(Protocol):
    """An open file of a :class:`Disk`."""

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write at an offset; may write less than given, returns how much."""
        ...

    def pread(self, size: int, offset: int) -> bytes:
        """Read at an offset; shorter at the end of the file."""
        ...

    def allocate(self, size: int) -> None:
        """Make the file ``size`` bytes long with its space reserved; the new part reads as zeros."""
        ...

    def size(self) -> int: ...

    def will_need(self, size: int, offset: int) -> None:
        """A hint: these bytes are read soon."""
        ...

    def datasync(self) -> None:
        """Return when the content is on stable storage (fdatasync).

        Raises:
            FileNotFoundError: the file has no name any more: nobody could open what was stored.
        """
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """The file operations the journal needs. Paths are absolute."""

    def open(self, path: str, *, create: bool = False) -> DiskFile:
        """Open for reading and writing; with ``create`` the file must not exist yet."""
        ...

    def listdir(self, path: str) -> list[str]: ...

    def makedirs(self, path: str) -> None: ...

    def rename(self, source: str, target: str) -> None:
        """Replace ``target`` atomically; a directory only by nothing, or by an empty one."""
        ...

    def link(self, source: str, target: str) -> None:
        """Give a file a second name.

        Raises:
            OSError: ``target`` is there, or the file system has no such links.
        """
        ...

    def unlink(self, path: str) -> None: ...

    def sync_dir(self, path: str) -> None:
        """Make the directory's entries durable (fsync on it)."""
        ...

    def free(self, path: str) -> tuple[int, int]:
        """Free and total bytes of the file system."""
        ...


class Inserted(Struct, frozen=True):
    """What :meth:`Engine.put` did.

    Attributes:
        ids: one id a job, in order.
        duplicates: positions whose id is that of an earlier job (idempotency).
    """

    ids: list[str]
    duplicates: tuple[int, ...] = ()


class CronMark(Struct, frozen=True):
    """How far a cron has come. Microseconds since 1970 UTC.

    Attributes:
        at: all its runs up to here are taken care of.
        last: its latest run that inserted a job; 0: there was none.
    """

    at: int
    last: int = 0


class Lease(Struct, gc=False):
    """One job handed to a worker.

    Attributes:
        receipt: what settles it.
        id: the job.
        type, attempt, prio: as shown; attempt counts from 1.
        ttr: seconds the lease lasts.
        data: payload; JSON text unless ``binary``.
        bulk: where the payload lies instead, or None.
        inserted: microseconds since 1970 UTC.
        expires: the same, when the lease ends.
        deaths: workers that died running it so far.
        wants_result: whether the handler's result is kept.
    """

    receipt: str
    id: str
    type: str
    attempt: int
    prio: int
    ttr: float
    data: bytes
    binary: bool
    bulk: BulkRef | None
    inserted: int
    expires: int
    deaths: int = 0
    wants_result: bool = False


class Expired(Struct, frozen=True):
    """A lease whose time is over and that waits for :meth:`Engine.rescue`."""

    receipt: str
    id: str
    holder: str
    ttr: float


class Revoked(Struct, frozen=True):
    """A lease whose job was taken away from its worker: cancelled, deleted or buried by hand."""

    receipt: str
    holder: str


class Selection(Struct, frozen=True):
    """Which jobs a :meth:`Engine.control` is about: those with these ids, or all that fit the other members.

    Attributes:
        ids: job ids, or None.
        type: their type, or None for any.
        state: their state, or None for those the verb is usually for.
        older: seconds since they were inserted, at least.
        limit: at most so many, the oldest first, or None.
    """

    ids: Sequence[str] | None = None
    type: str | None = None
    state: str | None = None
    older: float | None = None
    limit: int | None = None


class JobEvent(Struct, frozen=True):
    """Something that happened to a job.

    Attributes:
        event: accepted, reserved, progress, again, released, rescued, buried, kicked, cancelling, done,
            deleted, cancelled.
        at: microseconds since 1970.
        job: as shown, after it.
    """

    event: str
    at: int
    job: dict[str, Any]


#: What a renewal came to. ``cancelled``: the lease lasts longer, but its job should not go on.
Renewal = Literal["renewed", "lost", "cancelled"]


class Refusal(Struct, frozen=True):
    """One settlement that changed nothing: its position and the error's wire code."""

    index: int
    code: str


class Runner(Protocol):
    """Executes attempts of one job type, one at a time, in a worker process.

    Attributes:
        decodes: whether it needs ``job.data`` decoded; else that is the payload's bytes.
    """

    decodes: bool

    def run(self, job: Job, payload: bytes) -> Attempted:
        """Run one attempt to its end; blocks. Whatever the handler does is told by the value.

        Args:
            job: what the handler is given.
            payload: the payload as it was inserted: JSON text, or any bytes.
        """
        ...


@runtime_checkable
class AsyncRunner(Protocol):
    """Executes attempts of one job type, many at a time on one event loop, in a worker process.

    Attributes:
        decodes: as :attr:`Runner.decodes`.
    """

    decodes: bool

    async def arun(self, job: Job, payload: bytes) -> Attempted:
        """Run one attempt to its end. Whatever the handler does is told by the value.

        Cancelled, it stops the attempt and raises ``CancelledError``.

        Args:
            job: what the handler is given.
            payload: the payload as it was inserted: JSON text, or any bytes.
        """
        ...


class BulkStore(Protocol):
    """Payloads too large for the engine."""

    async def put(self, data: bytes) -> BulkRef:
        """Store bytes; return only when they are durable.

        Raises:
            Busy, DiskFull: nothing was stored.
        """
        ...

    async def get(self, ref: BulkRef) -> bytes:
        """The bytes, verified against length and SHA-256.

        Raises:
            NotFound: it is not there.
            Internal: it is not what was stored.
            Busy: it can't be read just now.
        """
        ...

    async def delete(self, refs: Sequence[BulkRef]) -> None:
        """Remove; one that is gone already is no error, and one that can't be removed now is left."""
        ...

    async def collect(self, wanted: Collection[str], grace: float) -> int:
        """Remove payloads this server stored that are not ``wanted`` and older than ``grace`` seconds: what a
        crash left between storing and accepting.

        Returns:
            How many were removed.
        """
        ...

    async def close(self) -> None: ...


class Engine(Protocol):
    """A queue backend. All methods run on the service's event loop; times are microseconds.

    What may lie in another process is asked with ``await``; the other methods tell what this server knows.

    Attributes:
        name: as shown by ``stats``.
        max_payload: the largest payload it keeps itself, bytes; larger ones go to a bulk store.
        capabilities: optional things it can do, of ``idempotency unique fair_share expiry results pause
            cancel watch cron inspect leases shared``. A call that needs more is refused with
            ``unsupported``. ``leases``: they outlive the server that gave them; ``shared``: other servers
            may use it, too.
    """

    name: str
    max_payload: int
    capabilities: frozenset[str]

    def on_ready(self, notify: Callable[[Sequence[str]], None]) -> None:
        """Register who is told, on the loop, that jobs of these types became ready."""
        ...

    def on_revoked(self, notify: Callable[[Sequence[Revoked]], None]) -> None:
        """Register who is told, on the loop, that workers should stop what they do under these leases."""
        ...

    def arrange(self, shares: Shares) -> None:
        """Weights and limits from now on; what runs, runs on, and counts."""
        ...

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        """Accept jobs, all or none. When this returns they are durable.

        Raises:
            Busy, DiskFull, ShuttingDown: none was accepted.
            JournalFailed: unknown; the engine accepts nothing more.
        """
        ...

    async def fire(self, name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        """Accept jobs of a cron, and remember in the same commit up to when its runs are taken care of.

        Args:
            name: the cron's.
            upto: the time of the latest of these runs; without jobs any time.
            jobs: one a run, without ``key``.

        Returns:
            Their ids, durable; None: nothing was done, as the mark is there, or further, already.

        Raises:
            Busy, DiskFull, ShuttingDown: nothing was done.
            JournalFailed: unknown; the engine accepts nothing more.
        """
        ...

    async def fired(self) -> dict[str, CronMark]:
        """How far each cron has come, by name; what is on its way to the disk counts."""
        ...

    async def forget_cron(self, name: str) -> None:
        """A cron is no more: it has no mark, and begins anew should it come back; durable."""
        ...

    async def reserve(
        self, types: Collection[str], limit: int, *, holder: str, local: bool = False
    ) -> list[Lease]:
        """Lease up to ``limit`` ready jobs of these types, most urgent first; does not wait.

        Args:
            types: which job types; empty for all.
            limit: most jobs, at least 1.
            holder: name of the worker, as shown.
            local: whether it dies with this server, so that a restart may rescue its jobs at once.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Refusal]:
        """End leases by their outcomes. Returns, durable, with those that changed nothing."""
        ...

    async def renew(self, receipts: Sequence[str], progress: dict[str, Any] | None = None) -> list[Renewal]:
        """Start the ttr of leases anew.

        Args:
            progress: kept on these jobs, as shown, or None.
        """
        ...

    async def rescue(
        self,
        receipts: Sequence[str],
        *,
        overdue: bool = False,
        died: bool = False,
        alone: bool = True,
        reason: str = "",
    ) -> None:
        """Take expired or orphaned leases back; their attempt counts.

        Args:
            receipts: the leases; ones that are not current are passed over.
            overdue: pass over those, too, that were renewed since they expired.
            died: the worker died running it: counts towards burying it as poison.
            alone: whether nothing else ran in that worker. A job that was one of several counts as having
                killed one worker at most: which of them did it shows only when each runs alone.
            reason: kept as the job's last error.
        """
        ...

    def held_by(self, holder: str) -> list[str]:
        """Receipts of the leases a worker holds through this server, in the order they were given.

        Those that outlived a restart come in any order.
        """
        ...

    async def control(self, verb: str, selection: Selection) -> int:
        """``kick``, ``bury``, ``delete`` or ``cancel`` jobs; returns how many, durable.

        By id it is all of them or none. A cancelled job that waits ends at once; one that runs ends with its
        lease, however that ends, unless it is acked first.

        Raises:
            NotFound: an id is unknown.
            Conflict: a job's state, or the selection's, forbids it.
        """
        ...

    async def pause(self, type: str, paused: bool, *, by: str = "") -> None:
        """Hand out no job of a type until it is resumed; durable.

        Args:
            by: who wants it, for :meth:`why`.
        """
        ...

    async def paused(self) -> list[str]:
        """The types that are paused."""
        ...

    def watch(
        self, listener: Callable[[JobEvent], None], *, id: str | None = None, type: str | None = None
    ) -> Callable[[], None]:
        """Tell of what happens to jobs, on the loop; of what must be durable, when it is.

        Args:
            listener: told of every event; must be quick.
            id: of this job only.
            type: of jobs of this type only.

        Returns:
            A function that ends it.
        """
        ...

    async def job(self, id: str, *, data: bool = False) -> dict[str, Any]:
        """A job as shown.

        Raises:
            NotFound: no such job, or finished and no longer remembered.
        """
        ...

    async def jobs(
        self, *, state: str | None, type: str | None, fair: str | None = None, limit: int, after: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """A page of jobs in id order, and the id to go on after (None at the end)."""
        ...

    async def why(self, id: str) -> dict[str, Any]:
        """Why a job is not running: ``{id, type, state, reasons: [{code, text, ..}]}``.

        Raises:
            NotFound: as :meth:`job`.
        """
        ...

    async def tick(self) -> list[Expired]:
        """Release delays that are over; return leases that are."""
        ...

    def next_wake(self) -> int | None:
        """When :meth:`tick` has something to do next, or None."""
        ...

    @property
    def behind(self) -> bool:
        """Whether :meth:`tick` should be called again soon: more is due than it does in one go."""
        ...

    async def stats(self, type: str | None = None) -> dict[str, Any]:
        """``jobs``, ``types``, ``oldest_ready_age`` and the engine's own section (``journal``)."""
        ...

    async def ready_types(self, among: Callable[[str], bool] | None = None) -> Iterator[tuple[str, int]]:
        """The types of which some jobs may be handed out (no pause and no limit keeps all of them), and how
        many are ready. One after the other, as there may be very many: nothing may change meanwhile.

        Args:
            among: which types; None for all.
        """
        ...

    async def bulk_names(self) -> set[str]:
        """Names of all payloads and results in the bulk store that a job here refers to."""
        ...

    @property
    def accepting(self) -> bool:
        """Whether :meth:`put` takes jobs now, as far as this server knows."""
        ...

    @property
    def longest_ttr(self) -> float:
        """The longest ttr of the leases that are out, seconds; 0 when none is."""
        ...

    async def close(self) -> None:
        """Sync and stop. Nothing accepted is lost."""
        ...
