"""Takes jobs for an engine, journal first, and delivers them in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog

from ...core.job import SECOND, NewJob
from ...errors import Busy, DamagedJournal, EngineAway, JournalFailed, ShuttingDown
from ...journal.log import Journal
from ...journal.scan import Apply
from ...ports import Clock, CronMark
from ..marks import CronEntry, Pause
from .log import Fed, FeedLog

#: Jobs offered to the engine in one go, and bytes of payload.
BATCH: Final = 1000
BATCH_BYTES: Final = 8 * 1024 * 1024
#: Seconds between two tries while the engine is away: doubled from the first to the last.
FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 5.0
#: Seconds after which jobs the engine would not have are offered to it again.
OFFER_AGAIN: Final = 60.0
#: Seconds a delivery that is under way has at the end.
LAST_DELIVERY: Final = 5.0

Deliver = Callable[[Sequence[Fed]], Awaitable[None]]


class Feed:
    """See the module.

    Ensures: a job is durable before :meth:`put` returns its id, and is offered to the engine, oldest first,
    until the engine confirmed it. After a crash what was confirmed last may be offered once more.

    Args:
        open_journal: opens the journal, replaying its frames into the callback it is given.
        clock: time.
        deliver: gives jobs to the engine, in this order, and sets ``delivered`` on each that it confirmed, or
            ``refused`` on one it will not have. All others are offered again; it raises
            :class:`~kqs.errors.EngineAway` when there is to be a pause before that.
        random: draws from [0, 1), for jitter.
        window: bytes of undelivered jobs kept in memory.
        limit: bytes of memory all that is undelivered may take; inserts get ``busy`` beyond it.

    Attributes:
        log: what waits.
        journal: where it is kept.
    """

    def __init__(
        self,
        open_journal: Callable[[Apply], Journal],
        clock: Clock,
        *,
        deliver: Deliver,
        random: Callable[[], float],
        window: int = 64 * 1024 * 1024,
        limit: int = 1 << 30,
    ) -> None:
        self._clock = clock
        self._deliver = deliver
        self._random = random
        self.log = FeedLog(open_journal, window=window, limit=limit)
        self.journal = self.log.journal
        self._away = ""
        self._away_since = 0
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to deliver; space for what must always be written is made before (G9)."""
        await self.journal.make_room()
        self._task = asyncio.create_task(self._run())
        self._wake.set()

    @property
    def accepting(self) -> bool:
        """Whether there is space for new jobs."""
        return self.journal.accepting

    @property
    def waiting(self) -> int:
        """How many jobs are not delivered yet."""
        return self.log.waiting

    async def put(self, jobs: Sequence[NewJob]) -> list[str]:
        """Accept jobs, all or none; returns their ids, durable.

        Raises:
            Busy, DiskFull, ShuttingDown: none was accepted.
            JournalFailed: unknown; nothing more is accepted.
        """
        await self.log.admit(jobs)
        ids = await self.log.append(jobs, self._clock.now())
        self._wake.set()
        return ids

    # -- crons and pauses -----------------------------------------------------------------------

    async def fire(self, name: str, upto: int, jobs: Sequence[NewJob]) -> list[str] | None:
        """See :meth:`kqs.ports.Engine.fire`."""
        log = self.log
        if jobs and not self._taken(name, upto):
            await log.admit(jobs)
        if self._taken(name, upto):
            await log.journal.sync()
            return None
        if not jobs:
            await log.write_mark(CronEntry(name, upto, log.crons.marks.get(name, CronMark(0)).last))
            return []
        ids = await log.append(jobs, self._clock.now(), CronEntry(name, upto, upto))
        self._wake.set()
        return ids

    def _taken(self, name: str, upto: int) -> bool:
        mark = self.log.crons.marks.get(name)
        return mark is not None and mark.at >= upto

    def fired(self) -> dict[str, CronMark]:
        """How far each cron has come, by name."""
        return dict(self.log.crons.marks)

    async def forget_cron(self, name: str) -> None:
        """A cron has no mark any more; durable."""
        if name in self.log.crons.marks:
            await self.log.write_mark(CronEntry(name, 0))

    async def pause(self, type: str, paused: bool, by: str = "") -> None:
        """A type is paused, or is not any more; durable."""
        if self.log.closing:
            raise ShuttingDown("the server is shutting down")
        await self.log.write_pause(Pause(type, paused, by, self._clock.now()))

    def paused(self) -> dict[str, str]:
        """The paused types, and who paused each."""
        return {type: paused.by for type, paused in self.log.paused.items()}

    # -- delivering -----------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        try:
            while not self._stop.is_set():
                if not await self._step():
                    pause = FIRST_PAUSE
                    await self._set(self._wake, OFFER_AGAIN)
                    self._wake.clear()
                elif self._away:
                    await self._set(self._stop, pause * (0.5 + self._random()))
                    pause = min(2 * pause, LAST_PAUSE)
                else:
                    pause = FIRST_PAUSE
        except JournalFailed:
            pass  # the server is stopping for it

    async def _step(self) -> bool:
        """Deliver the next jobs, as far as the engine takes them; False when there is nothing to do."""
        self._offer_again()
        try:
            jobs = self.log.offer(BATCH, BATCH_BYTES)
        except (Busy, DamagedJournal) as error:
            self._tell(str(error))
            return True
        if not jobs:
            return False
        try:
            await self._deliver(jobs)
        except EngineAway as away:
            self._tell(str(away))
        except JournalFailed:
            raise
        except Exception as error:  # whatever it was: the jobs are offered again
            structlog.get_logger().exception("bug", task="feed")
            self._tell(repr(error))
        else:
            self._tell("")
        for fed in jobs:
            if fed.refused and not fed.delivered:
                structlog.get_logger().error("the engine refuses a job", job=fed.id, reason=fed.refused)
        if self.log.confirm():
            self._moved.set()
            await self.log.trim()
        return True

    def _offer_again(self) -> None:
        """Once in a while, what the engine would not have is offered again: it may have other limits now."""
        now = self._clock.now()
        if self.log.refused and now - self._away_since >= OFFER_AGAIN * SECOND:
            self._away_since = now
            for fed in self.log.refused:
                fed.refused = ""

    def _tell(self, reason: str) -> None:
        """Log when the engine goes away, and when it is back."""
        if bool(reason) != bool(self._away):
            if reason:
                structlog.get_logger().warning("jobs wait for the engine", reason=reason)
            else:
                structlog.get_logger().info("the engine takes jobs again", waiting=self.log.waiting)
        self._away = reason

    @staticmethod
    async def _set(event: asyncio.Event, seconds: float) -> None:
        """Return when an event is set, or time is up."""
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass

    async def moved(self) -> None:
        """Return when some jobs were delivered."""
        self._moved.clear()
        await self._moved.wait()

    async def drained(self) -> None:
        """Return when everything accepted so far is delivered, or refused."""
        while self.log.waiting > len(self.log.refused):
            await self.moved()

    def stats(self) -> dict[str, Any]:
        """``waiting bytes delivered``, and where they apply ``oldest_age refused away``."""
        log = self.log
        figures: dict[str, Any] = {"waiting": log.waiting, "bytes": log.bytes, "delivered": log.delivered}
        if (oldest := log.oldest()) is not None:
            figures["oldest_age"] = max(0.0, (self._clock.now() - oldest) / SECOND)
        if refused := log.refused:
            figures["refused"] = {"jobs": len(refused), "reason": refused[0].refused}
        if self._away:
            figures["away"] = self._away
        return figures

    async def close(self) -> None:
        """Let a delivery that is under way end, and stop. The rest is offered after the next start."""
        self.log.closing = True
        self._stop.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=LAST_DELIVERY)
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.journal.close()
