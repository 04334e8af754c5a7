"""``kqs worker``: processes under the same supervisor as a server's own, their server elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ..runners.crew import Crew
from ..runners.spec import WorkerSpec
from .book import RemoteBook
from .limits import Limits

#: How often leases and processes are looked at, seconds.
TICK = 0.02
#: Seconds attempts have, at the end, to finish.
GRACE = 30.0
#: Seconds, at the end, in which servers that are away may come back and take what is unsaid; and when in a
#: hurry.
LAST_WORDS, HURRY = 15.0, 2.0


class RemoteWorker:
    """Worker processes of one machine.

    Args:
        specs: one a process.
        urls: servers, in the order in which they are tried.
        token: for servers that want one; None for ``KQS_TOKEN``.
        log: where to say what happens.
        jobs: attempts after which it ends; 0 for no limit.
        seconds: after which it ends; 0 for no limit.
        burst: end when no job is ready.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        urls: Sequence[str],
        *,
        token: str | None = None,
        log: Any,
        jobs: int = 0,
        seconds: float = 0.0,
        burst: bool = False,
    ) -> None:
        self._specs = specs
        self._urls = urls
        self._token = token
        self._log = log
        self._jobs = jobs
        self._seconds = seconds
        self._burst = {spec.pool for spec in specs} if burst else None
        self._stopping: asyncio.Future[str] | None = None
        self._quickly = asyncio.Event()

    async def check(self, timeout: float) -> str:
        """Connect and see that the token may work; returns the URL of the server that answered.

        Raises:
            CallError, ConnectionFailed: it can't.
        """
        book = RemoteBook(self._urls, self._token, Limits(self._stop), self._log)
        try:
            return await book.connect(timeout)
        finally:
            await book.finish(0)

    async def run(self) -> int:
        """Work until told to stop, or a limit is reached; returns the exit status."""
        loop = asyncio.get_running_loop()
        self._stopping = loop.create_future()
        limits = Limits(self._stop, jobs=self._jobs, burst=self._burst)
        book = RemoteBook(self._urls, self._token, limits, self._log)
        crew = Crew(self._specs, book, self._log)
        crew.start()
        self._log.info("started", workers=len(self._specs), types=sorted(crew.types()))
        looking = asyncio.create_task(self._look(book, crew))
        if self._seconds:
            loop.call_later(self._seconds, self._stop, f"{self._seconds:g} s are over")
        reason = await self._stopping
        self._log.info("stopping", reason=reason, grace=GRACE)
        limits.end()
        await self._drain(crew)
        looking.cancel()
        unsaid = await book.finish(HURRY if self._quickly.is_set() else LAST_WORDS)
        if unsaid:
            self._log.error("no server took the outcomes of attempts; their jobs run again", attempts=unsaid)
        self._log.info("stopped")
        return 1 if unsaid else 0

    def shutdown(self) -> None:
        """Begin to stop; a second call stops at once."""
        if self._stopping is not None and not self._stopping.done():
            self._stop("told to")
        else:
            self._quickly.set()

    def _stop(self, reason: str) -> None:
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(reason)

    async def _drain(self, crew: Crew) -> None:
        drain = asyncio.create_task(crew.drain(GRACE))
        hurry = asyncio.create_task(self._quickly.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not drain.done():
            await crew.drain(0)
            await drain

    async def _look(self, book: RemoteBook, crew: Crew) -> None:
        while True:
            try:
                await crew.keep_alive(book.ending())
                await crew.lost(book.take_lost())
                crew.cancel(book.take_cancelled())
                await crew.look_after(book.ended(), renewable=False)
            except Exception:  # whatever it was, attempts must still end with their leases
                self._log.exception("bug", task="look")
            await asyncio.sleep(TICK)
