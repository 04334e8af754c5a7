"""Calls about jobs that are there: showing, changing, waiting for and watching them."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from ..core import calls, wire
from ..core.arguments import decode_argument
from ..core.calls import given
from ..core.job import SECOND
from ..core.wire import Request
from ..errors import BadRequest, Busy, Unsupported
from ..ports import Clock, Engine, JobEvent, Selection
from .server import Connection

_encode = msgspec.json.encode
#: Events a watcher may be behind before its watch ends.
WATCH_BACKLOG: Final = 10_000
#: How often a watcher that does not read is looked at, seconds.
_BLOCKED: Final = 0.05
_ENDS: Final = frozenset({"done", "deleted", "cancelled"})


class JobCalls:
    """Takes these calls.

    Args:
        engine: where the jobs are.
        clock: time.
        serves: whether a worker is here or connected that takes a type.
        draining: whether this server hands out nothing.
        caller: who is at the other end of a connection, for people.

    Attributes:
        handlers: by the call's name; each takes the connection, the request and its argument, and gives the
            reply's value, or None when it has answered itself.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        *,
        serves: Callable[[str], bool],
        draining: Callable[[], bool],
        caller: Callable[[Connection], str],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._serves = serves
        self._draining = draining
        self._caller = caller
        self._watches: dict[Connection, set[_Watch]] = {}
        self._waits: set[asyncio.Event] = set()
        self.handlers: dict[str, Callable[[Connection, Request, bytes], Awaitable[bytes | None]]] = {
            "job": self._job,
            "jobs": self._jobs,
            "why": self._why,
            "kick": self._control,
            "bury": self._control,
            "delete": self._control,
            "cancel": self._control,
            "purge": self._purge,
            "pause": self._pause,
            "resume": self._pause,
            "wait": self._wait,
            "watch": self._watch,
        }

    def _need(self, capability: str, call: str) -> None:
        if capability not in self._engine.capabilities:
            raise Unsupported(f"{call} needs an engine with {capability}, which {self._engine.name} has not")

    async def _job(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        argument = decode_argument(raw, calls.JobArgument, "job")
        return _encode(await self._engine.job(argument.id, data=argument.data))

    async def _jobs(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        argument = decode_argument(raw, calls.JobsArgument, "jobs")
        jobs, following = await self._engine.jobs(
            state=given(argument.state),
            type=given(argument.type),
            fair=given(argument.fair),
            limit=argument.limit,
            after=given(argument.after),
        )
        return _encode({"jobs": jobs} if following is None else {"jobs": jobs, "next": following})

    async def _why(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        """What the engine knows, and first what this server does: whether anybody would run it."""
        found = await self._engine.why(decode_argument(raw, calls.WhyArgument, "why").id)
        here: list[dict[str, Any]] = []
        if found["state"] in ("delayed", "ready"):
            if not self._serves(found["type"]):
                text = f"no handler here runs type {found['type']}, and no worker that takes it is connected"
                here.append({"code": "no_worker", "text": text})
            if self._draining():
                here.append({"code": "draining", "text": "this server hands out no jobs; 'kqs drain --off'"})
        if not here and not found["reasons"]:
            here.append(
                {"code": "next", "text": "nothing: it is the next of its lane, for a worker that is free"}
            )
        return _encode({**found, "reasons": here + found["reasons"]})

    # -- changing -------------------------------------------------------------------------------

    async def _control(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        verb = request.n
        if verb == "cancel":
            self._need("cancel", verb)
        argument = decode_argument(raw, calls.ControlArgument, verb)
        ids = given(argument.ids)
        if argument.id is not msgspec.UNSET:
            if ids is not None:
                raise BadRequest("give id or ids, not both", field="ids")
            ids = [argument.id]
        type, state, limit = given(argument.type), given(argument.state), given(argument.limit)
        if ids is not None:
            if type is not None or state is not None or limit is not None:
                raise BadRequest(f"{verb} takes ids, or a type and state; not both", field="ids")
            selection = Selection(ids)
        elif type is None and state is None:
            raise BadRequest(f"{verb} needs id, ids, type or state", field="id")
        else:
            selection = Selection(type=type, state=state, limit=limit)
        return _encode({"count": await self._engine.control(verb, selection)})

    async def _purge(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        argument = decode_argument(raw, calls.PurgeArgument, "purge")
        selection = Selection(type=argument.type, state=argument.state, older=given(argument.older))
        return _encode({"count": await self._engine.control("delete", selection)})

    async def _pause(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        self._need("pause", request.n)
        type, paused = decode_argument(raw, calls.PauseArgument, request.n).type, request.n == "pause"
        await self._engine.pause(type, paused, by=self._caller(connection))
        return _encode({"type": type, "paused": paused})

    # -- waiting and watching -------------------------------------------------------------------

    async def _wait(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        """Answer when the job is done or buried, when time is up or the server stops, with its state then."""
        self._need("watch", "wait")
        argument = decode_argument(raw, calls.WaitArgument, "wait")
        ended = asyncio.Event()

        def look(event: JobEvent) -> None:
            if event.job["state"] in ("done", "buried"):
                ended.set()

        stop = self._engine.watch(look, id=argument.id)
        self._waits.add(ended)
        try:
            view = await self._engine.job(argument.id)
            if view["state"] not in ("done", "buried") and argument.timeout > 0:
                try:
                    await asyncio.wait_for(ended.wait(), argument.timeout)
                except TimeoutError:
                    pass
                view = await self._engine.job(argument.id)
        finally:
            stop()
            self._waits.discard(ended)
        members = ("id", "state", "outcome", "result", "last_error")
        return _encode({name: view[name] for name in members if name in view})

    async def _watch(self, connection: Connection, request: Request, raw: bytes) -> None:
        """Stream events until the watched job has ended, the peer is gone, or the server stops."""
        self._need("watch", "watch")
        argument = decode_argument(raw, calls.WatchArgument, "watch")
        id, type = given(argument.id), given(argument.type)
        if id is not None and type is not None:
            raise BadRequest("watch takes an id or a type, not both", field="type")
        watch = _Watch(until_end=id is not None)
        stop = self._engine.watch(watch.tell, id=id, type=type)
        self._watches.setdefault(connection, set()).add(watch)
        id_part = wire.reply_id(request.id)
        try:
            if id is not None:
                view = await self._engine.job(id)  # it must be there; how it is, is told first
                watch.first(JobEvent("state", self._clock.now(), view))
            if connection.ending:
                watch.end()
            while await watch.some():
                while not connection.writable and not watch.overrun:  # noqa: ASYNC110 (no event tells)
                    await asyncio.sleep(_BLOCKED)
                if watch.overrun:
                    raise Busy(f"the watcher is {WATCH_BACKLOG} events behind; watch less, or read faster")
                parts = (wire.encode_part(id_part, _encode(_shown(event))) for event in watch.take())
                connection.write(b"".join(parts))
            connection.answer(wire.encode_end(id_part), 1)
        finally:
            stop()
            self._watches[connection].discard(watch)
            if not self._watches[connection]:
                del self._watches[connection]

    def dismiss(self, connection: Connection) -> None:
        """The peer sends no more: its watches end."""
        for watch in self._watches.get(connection, ()):
            watch.end()

    def close(self) -> None:
        """The server stops: all watches end, all who wait are answered."""
        for ended in self._waits:
            ended.set()
        for watches in self._watches.values():
            for watch in watches:
                watch.end()


class _Watch:
    """What one watcher has still to be told.

    Args:
        until_end: whether the end of a job ends it.

    Attributes:
        overrun: whether more happened than it could keep.
    """

    def __init__(self, until_end: bool) -> None:
        self._until_end = until_end
        self._events: deque[JobEvent] = deque()
        self._some = asyncio.Event()
        self._over = False
        self.overrun = False

    def first(self, event: JobEvent) -> None:
        """What is told before anything else."""
        self._events.appendleft(event)
        self._some.set()
        if self._until_end and event.job["state"] == "done":
            self._over = True

    def tell(self, event: JobEvent) -> None:
        if self._over:
            return
        if len(self._events) >= WATCH_BACKLOG:
            self.overrun = True
        else:
            self._events.append(event)
        if self._until_end and event.event in _ENDS:
            self._over = True
        self._some.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._over = True
        self._some.set()

    async def some(self) -> bool:
        """Wait for something to tell; False when there is nothing any more."""
        if not self._events and not self._over:
            await self._some.wait()
        return bool(self._events)

    def take(self) -> list[JobEvent]:
        """What there is to tell."""
        events = list(self._events)
        self._events.clear()
        self._some.clear()
        if self._over:
            self._some.set()
        return events


def _shown(event: JobEvent) -> dict[str, Any]:
    return {
        "event": event.event,
        "at": dt.datetime.fromtimestamp(event.at / SECOND, dt.UTC),
        "job": event.job,
    }
