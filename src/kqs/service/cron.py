"""Crons: jobs the server inserts at set times.

The engine's mark of a cron says up to when its runs are taken care of; it moves in the commit of the jobs.
Which runs are due is worked out from it (core/cron.py), by the clock on the wall as it is now (ADR 0003): a
machine that slept, or whose clock was set right, keeps to the hours people see. A clock that is set back
brings no run again, since a mark only grows.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from ..core import calls
from ..core.arguments import decode_argument
from ..core.cron import LATE, MOST, due
from ..core.job import SECOND
from ..core.wire import Request
from ..errors import Busy, DiskFull, JournalFailed, NotFound, ShuttingDown
from ..ports import Engine
from ..settings.crons import Cron
from .server import Connection

_encode = msgspec.json.encode
#: How often the clock is looked at, at least, seconds: it may have been set.
_LOOK: Final = 1.0
#: Bytes of payloads that are inserted in one commit, about.
_AT_ONCE: Final = 4 * 1024 * 1024
#: A mark that is ahead of the clock by this much is worth a warning, microseconds.
_AHEAD: Final = 60 * SECOND


class _State:
    """What is known of one cron, beside its mark.

    Args:
        cron: as it is set.

    Attributes:
        anew: whether its schedule is another than the mark was made for: the past has none of its runs.
        decided: whether each run up to here is to be made is decided; None: the mark was not looked at yet.
        next: its next run after ``decided``.
        runs: those that are to be made.
        move: whether the mark is to be moved to ``decided`` without a run.
        told: whether a warning was logged already, and no reason for it went by since.
    """

    def __init__(self, cron: Cron) -> None:
        self.cron = cron
        self.anew = False
        self.decided: int | None = None
        self.next: int | None = None
        self.runs: list[int] = []
        self.move = False
        self.told = False

    def decide(self, upto: int) -> None:
        """All runs up to a time are decided."""
        self.decided = upto
        self.next = self.cron.schedule.next(upto)


class Crons:
    """Inserts the jobs of crons, and takes the calls about them.

    Args:
        engine: where they go.
        wall: the time of the clock on the wall, microseconds since 1970.
        may_run: whether this server makes runs now.
        may_accept: whether it accepts jobs now.
        log: where to say what was missed.

    Attributes:
        handlers: see :class:`~kqs.service.jobcalls.JobCalls`.
    """

    def __init__(
        self,
        engine: Engine,
        wall: Callable[[], int],
        may_run: Callable[[], bool],
        may_accept: Callable[[], bool],
        log: Any,
    ) -> None:
        self._engine = engine
        self._wall = wall
        self._may_run = may_run
        self._may_accept = may_accept
        self._log = log
        self._states: dict[str, _State] = {}
        self._looked = 0
        self._changed = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.handlers: dict[str, Callable[[Connection, Request, bytes], Awaitable[bytes | None]]] = {
            "cron": self._cron,
            "cron_run": self._cron_run,
        }

    def replace(self, crons: Mapping[str, Cron]) -> None:
        """Run these crons from now on. One whose schedule is another than before has no runs in the past."""
        states: dict[str, _State] = {}
        for name, cron in crons.items():
            states[name] = new = _State(cron)
            if (old := self._states.get(name)) is not None:
                self._decide(name, old, self._wall())
                new.runs = old.runs
                if old.cron.when == cron.when:
                    new.anew, new.move, new.decided, new.next = old.anew, old.move, old.decided, old.next
                else:
                    new.anew = True
        self._states = states
        self._changed.set()

    # -- making runs ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to make runs."""
        self._task = asyncio.create_task(self._run())

    async def close(self, *, at_once: bool) -> None:
        """Return when no run is under way any more, and the marks say how far this server has looked.

        So the next server does not take runs of a schedule that is changed in between for missed ones.

        Args:
            at_once: the journal has failed: nothing is waited for.
        """
        self._closing = True
        self._changed.set()
        if self._task is None:
            return
        if at_once:
            self._task.cancel()
            return
        await self._task
        try:
            for name, state in self._states.items():
                if state.decided is not None and not state.runs:
                    await self._engine.fire(name, self._looked, [])
        except (JournalFailed, ShuttingDown):
            pass  # then the next server takes what was due since the last run for missed

    async def _run(self) -> None:
        away = False
        while not self._closing:
            self._changed.clear()
            try:
                await self.look()
                away = False
            except (JournalFailed, ShuttingDown):
                return
            except (Busy, DiskFull) as error:  # the engine is away
                if not away:
                    self._log.warning("crons wait", reason=str(error))
                away = True
            except Exception:  # whatever it was, the other runs must still be made
                self._log.exception("bug", task="cron")
            if not self._changed.is_set():
                try:
                    await asyncio.wait_for(self._changed.wait(), self._pause())
                except TimeoutError:
                    pass

    def _pause(self) -> float | None:
        """Seconds until the next look; None: there is nothing to look for."""
        if not self._states:
            return None
        moments = [state.next for state in self._states.values() if state.next is not None]
        pause = (min(moments) - self._wall()) / SECOND if moments else _LOOK
        return pause if 0 < pause < _LOOK else _LOOK

    async def look(self) -> None:
        """Make the runs that are due.

        Raises:
            JournalFailed, ShuttingDown: no more can be made.
        """
        if not self._may_run():
            return
        for name in await self._engine.fired():
            if name not in self._states:
                await self._engine.forget_cron(name)
        now = self._wall()
        for name, state in list(self._states.items()):
            if self._states.get(name) is state:
                await self._attend(name, state, now)
        self._looked = now

    async def _attend(self, name: str, state: _State, now: int) -> None:
        """Make one cron's runs that are due."""
        if state.decided is None:
            mark = (await self._engine.fired()).get(name)
            state.move = mark is None or state.anew
            state.decide(now if mark is None else max(mark.at, now) if state.anew else mark.at)
        self._decide(name, state, now)
        try:
            while state.runs and self._may_run():
                await self._make(name, state)
            if state.move and not state.runs and state.decided is not None:
                await self._engine.fire(name, state.decided, [])
                state.move = False
        except (Busy, DiskFull) as error:
            if not state.told:
                self._log.warning("cron waits: its job is not accepted now", cron=name, reason=str(error))
            state.told = True

    def _decide(self, name: str, state: _State, now: int) -> None:
        """Find the runs to make that nobody has looked at yet."""
        decided = state.decided
        if decided is None:
            return
        if decided > now + _AHEAD:
            if not state.told:
                self._log.warning(
                    "cron waits: its runs up to a time ahead were made; was the clock set back?",
                    cron=name,
                    until=_iso(decided),
                )
            state.told = True
        if state.next is None or state.next > now:
            return
        missed = state.cron.config.missed
        runs = due(state.cron.schedule, decided, now, missed)
        if state.next < now - LATE:
            self._log.warning(
                "cron runs missed",
                cron=name,
                missed=missed,
                first=_iso(state.next),
                made=len(runs),
                **({"left_out_before": _iso(runs[0])} if len(runs) == MOST else {}),
            )
        runs = state.runs + runs
        if len(runs) > MOST:
            self._log.warning("cron runs left out: too many wait to be accepted", cron=name)
        state.runs = runs[-MOST:]
        state.move = not state.runs
        state.decide(now)

    async def _make(self, name: str, state: _State) -> None:
        """Insert the next jobs of a cron; where servers share them one: others may have made some already.

        Raises:
            Busy, DiskFull, ShuttingDown, JournalFailed: see :meth:`~kqs.ports.Engine.fire`.
        """
        job = state.cron.job
        at_once = 1 if "shared" in self._engine.capabilities else _AT_ONCE // (len(job.data) + 1024)
        runs = state.runs[: max(1, at_once)]
        ids = await self._engine.fire(name, runs[-1], [job] * len(runs))
        state.runs = state.runs[len(runs) :]
        if ids is None:  # somebody else was first, and maybe not with all of them
            return
        state.told = False
        self._log.info("cron run", cron=name, type=job.type, jobs=len(ids), job=ids[-1], at=_iso(runs[-1]))

    # -- calls ----------------------------------------------------------------------------------

    async def _cron(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        decode_argument(raw, calls.CronArgument, "cron")
        marks, now = await self._engine.fired(), self._wall()
        views: list[dict[str, Any]] = []
        for name, state in self._states.items():
            config, mark = state.cron.config, marks.get(name)
            view = {
                "name": name,
                "schedule": config.schedule,
                "timezone": config.timezone,
                "type": config.type,
                "missed": config.missed,
            }
            following = state.cron.schedule.next(max(now, mark.at) if mark is not None else now)
            if following is not None:
                view["next_at"] = _iso(following)
            if mark is not None and mark.last:
                view["last_at"] = _iso(mark.last)
            views.append(view)
        return _encode({"crons": views})

    async def _cron_run(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        name = decode_argument(raw, calls.CronRunArgument, "cron_run").name
        if not self._may_accept():
            raise ShuttingDown("the server is shutting down; call another one or later")
        state = self._states.get(name)
        if state is None:
            known = f"known are {', '.join(sorted(self._states))}" if self._states else "there are none"
            raise NotFound(f"no cron {name!r} here; {known}", field="name")
        inserted = await self._engine.put([state.cron.job])
        return _encode({"id": inserted.ids[0]})


def _iso(at: int) -> str:
    return dt.datetime.fromtimestamp(at // SECOND, dt.UTC).isoformat().replace("+00:00", "Z")
