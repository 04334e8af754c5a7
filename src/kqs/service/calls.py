"""The desk: every call, from its decoded line to its reply.

Commands hold no business logic: each checks its argument, asks intake, dispatch or the engine, and encodes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

import msgspec
import structlog
from msgspec import UNSET, Raw, Struct, UnsetType

from ..core import calls, wire
from ..core.arguments import decode_argument
from ..core.calls import ALLOWED, Role, given
from ..core.job import (
    PRIOS,
    SECOND,
    DefaultsTable,
    check_job,
    parse_batch,
    parse_job,
    split_batch,
)
from ..core.outcome import OutcomeName, Reason, Settlement
from ..core.wire import BadLine, Request
from ..errors import (
    BadRequest,
    Busy,
    CallError,
    Forbidden,
    Internal,
    KQSError,
    NotFound,
    ShuttingDown,
    Unauthorized,
    Unsupported,
)
from ..ports import BulkStore, Clock, Engine, Lease
from .calllog import CallLog
from .cron import Crons
from .dispatch import Dispatch
from .intake import Intake
from .jobcalls import JobCalls
from .metrics import Metrics
from .server import Connection
from .throttle import Throttle
from .tokens import Tokens, digest

_encode = msgspec.json.encode
_settlements = msgspec.json.Decoder(list[Settlement])
PONG: Final = b'"pong"'
NULL: Final = b"null"
#: Seconds a job waits when its payload can't be read just now.
_LATER: Final = 1.0
T = TypeVar("T")
#: Seconds between two tries while the engine is away.
_AWAY: Final = 0.2


class LeaseView(Struct, omit_defaults=True, gc=False):
    """A lease as ``reserve`` answers it; ``data`` is spliced."""

    receipt: str
    id: str
    type: str
    attempt: int
    ttr: float
    prio: str
    inserted_at: dt.datetime
    data: Raw | UnsetType = UNSET
    data64: bytes | UnsetType = UNSET
    deaths: int = 0
    result: bool = False


class Desk:
    """Takes calls for all connections.

    Args:
        engine, intake, dispatch, crons, bulk, clock: the parts that do the work.
        table: settings of job types; another one may be set later.
        tokens: who may call.
        metrics, log: told of every call.
        health: gathers the answer to ``health``.
        about: gathers the service's part of ``stats``.
        serves: whether a worker is here or connected that takes a type.
        quit: begins the shutdown, given the grace in seconds.
        monotonic: seconds that never run backwards.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        intake: Intake,
        dispatch: Dispatch,
        crons: Crons,
        bulk: BulkStore,
        clock: Clock,
        table: DefaultsTable,
        tokens: Tokens,
        metrics: Metrics,
        log: CallLog,
        health: Callable[[], Awaitable[dict[str, Any]]],
        about: Callable[[], dict[str, Any]],
        serves: Callable[[str], bool],
        quit: Callable[[float], None],
        monotonic: Callable[[], float] = monotonic,
    ) -> None:
        self.intake = intake
        self.metrics = metrics
        self.progressed = monotonic()
        self.accepting = True
        self._engine = engine
        self._dispatch = dispatch
        self._bulk = bulk
        self._clock = clock
        self.table = table
        self._tokens = tokens
        self._throttle = Throttle()
        self._log = log
        self._health = health
        self._about = about
        self._quit = quit
        self._monotonic = monotonic
        # Calls answered at once, and calls that take their time.
        self._now: dict[str, Callable[[Connection, Request, bytes], bytes]] = {
            "ping": lambda connection, request, raw: PONG,
            "auth": self._auth,
            "quit": self._quit_call,
            "drain": self._drain_call,
        }
        self.jobs = JobCalls(
            engine, clock, serves=serves, draining=lambda: dispatch.draining, caller=self._caller
        )
        self._later: dict[str, Callable[[Connection, Request, bytes], Awaitable[bytes | None]]] = {
            "stats": self._stats,
            "health": self._health_call,
            "reserve": self._reserve,
            "settle": self._settle,
            "renew": self._renew,
            **self.jobs.handlers,
            **crons.handlers,
        }

    @property
    def calls(self) -> list[str]:
        """The names of all calls it takes."""
        return sorted({"insert", "echo", *self._now, *self._later})

    # -- from a slice of lines to calls ---------------------------------------------------------

    def take(self, connection: Connection, block: bytes) -> None:
        """Begin every call in a block of whole lines, in order."""
        begun = self._monotonic()
        if self._take_singles(connection, block):
            return
        try:
            requests = wire.decode_requests(block)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadRequest):
            self._take_lines(connection, block, begun)
            return
        if not requests:
            return
        size = len(block) // len(requests)
        out: list[bytes] = []
        for request in requests:
            if connection.rejected:
                break
            self._begin(connection, request, size, begun, out)
        if out:
            connection.write(b"".join(out))
        if connection.rejected:
            connection.stop_reading()

    def _take_singles(self, connection: Connection, block: bytes) -> bool:
        """The hot path: a block of nothing but inserts of one job each, every one of them good.

        Returns:
            False when it is anything else; then nothing was begun.
        """
        if not (self.accepting and self._may(connection.role, "insert")):
            return False
        inserts = calls.decode_singles(block)
        if not inserts:
            return False
        table, capabilities = self.table, self._engine.capabilities
        try:
            jobs = [check_job(insert.m, table, capabilities) for insert in inserts]
        except CallError:
            return False
        id_parts = wire.string_ids([insert.id for insert in inserts])
        connection.in_flight += len(jobs)
        self.intake.add(connection, id_parts, jobs, connection.received, len(block))
        return True

    def _take_lines(self, connection: Connection, block: bytes, begun: float) -> None:
        """A block with an unusual or bad line in it: one by one."""
        for line in wire.lines(block):
            out: list[bytes] = []
            try:
                request = wire.decode_request(line)
            except BadLine as error:
                connection.write(wire.encode_error(b"", error))
                self.failed(connection, "", error)
                connection.stop_reading()
                return
            except BadRequest as error:
                connection.write(wire.encode_error(wire.salvage_id(line), error))
                self.failed(connection, "", error)
                continue
            self._begin(connection, request, len(line), begun, out)
            connection.write(b"".join(out))
            if connection.rejected:
                connection.stop_reading()
                return

    def ended(self, connection: Connection) -> None:
        """The peer sends no more. It may be gone, or have closed its half: a job it waits for could not be
        settled here, so its waiting reserves are answered now, with nothing."""
        self._dispatch.dismiss(connection)
        self.jobs.dismiss(connection)

    def failed(self, connection: Connection, call: str, error: CallError) -> None:
        """Count and log a line that never became a call."""
        self.metrics.failed(call, error.code)
        self._log.note(call, connection.peer, 0.0, 0.0, 0, error.code)

    def _begin(
        self, connection: Connection, request: Request, size: int, begun: float, out: list[bytes]
    ) -> None:
        """Begin one call; what can be answered at once goes to ``out``."""
        name = request.n
        id_part = b""
        try:
            id_part = wire.reply_id(request.id)
            raw = self._argument(connection, request)
            if name not in ALLOWED:
                raise Unsupported(f"{name}: no handler")
            self._authorize(connection, name)
            if name == "insert":
                self._insert(connection, request, id_part, raw, size)
                return
            if name in self._later:
                connection.in_flight += 1
                task = asyncio.create_task(self._finish(connection, request, id_part, raw, size, begun))
                connection.tasks[task] = None
                task.add_done_callback(connection.tasks.pop)
                return
            if name == "echo":
                out.append(self._echo(request, id_part, raw))
            else:
                out.append(wire.encode_reply(id_part, self._now[name](connection, request, raw)))
        except CallError as error:
            out.append(wire.encode_error(id_part, error))
            self._done(connection, name if name in ALLOWED else "", size, begun, error.code)
        except Exception as error:
            out.append(wire.encode_error(id_part, self._bug(name, error)))
            self._done(connection, name, size, begun, Internal.code)
        else:
            self._done(connection, name, size, begun, "ok")

    def _done(self, connection: Connection, name: str, size: int, begun: float, outcome: str) -> None:
        latency, duration = begun - connection.received, self._monotonic() - begun
        if name:
            self.metrics.done(name, latency, duration)
        if outcome != "ok":
            self.metrics.failed(name, outcome)
        self._log.note(name, connection.peer, latency, duration, size, outcome)

    async def _finish(
        self,
        connection: Connection,
        request: Request,
        id_part: bytes,
        raw: bytes,
        size: int,
        begun: float,
    ) -> None:
        """Make a call that takes its time, and answer it."""
        name, outcome = request.n, "ok"
        try:
            value = await self._later[name](connection, request, raw)
            reply = None if value is None else wire.encode_reply(id_part, value)
        except CallError as error:
            outcome = error.code
            reply = wire.encode_error(id_part, error)
        except Exception as error:
            outcome = Internal.code
            reply = wire.encode_error(id_part, self._bug(name, error))
        if reply is not None:
            connection.answer(reply, 1)
        self._done(connection, name, size, begun, outcome)

    @staticmethod
    def _bug(name: str, error: Exception) -> Internal:
        """What nobody foresaw: the caller learns that it is our fault, the log gets the traceback."""
        if isinstance(error, KQSError):
            return Internal(str(error))
        structlog.get_logger().exception("bug", call=name)
        return Internal(f"internal error in {name}; whether it was done is unknown")

    # -- who may --------------------------------------------------------------------------------

    @staticmethod
    def _may(role: Role | None, call: str) -> bool:
        return role == "admin" or (role is not None and role in ALLOWED[call])

    def _authorize(self, connection: Connection, name: str) -> None:
        role = connection.role
        if name == "auth" or self._may(role, name):
            return
        if role is None:
            raise Unauthorized("this server needs a token: call auth first, or set KQS_TOKEN for the client")
        raise Forbidden(f"role {role} may not call {name}")

    def _authenticate(self, connection: Connection, token: str) -> Role:
        """Give the connection the token's role; a wrong token ends it, so that guessing is slow."""
        if not self._tokens.required:
            return connection.role or "admin"
        sha256 = digest(token)
        if connection.role is not None and connection.token == sha256:
            return connection.role  # it shows the same one with every call
        now = self._monotonic()
        if pause := self._throttle.pause(connection.host, now):
            connection.rejected = True
            raise Busy(f"too many wrong tokens from {connection.host}; try again in {pause:.1f} s")
        role = self._tokens.role(sha256)
        if role is None:
            connection.rejected = True
            if pause := self._throttle.wrong(connection.host, sha256, now):
                structlog.get_logger().warning("wrong tokens", address=connection.host, pause=round(pause, 1))
            raise Unauthorized("unknown token")
        connection.authenticate(role, sha256)
        return role

    def _caller(self, connection: Connection) -> str:
        """Who calls, for people: the token's name, else the address."""
        token = None if connection.token is None else self._tokens.find(connection.token)
        return connection.peer if token is None else token.name

    def _argument(self, connection: Connection, request: Request) -> bytes:
        """The raw argument, without the seed's ``auth`` member, which is acted on."""
        raw = wire.copy_raw(request.m)
        if not raw.startswith(b"{") or b'"auth"' not in raw or request.n == "echo":
            return raw
        try:
            members = msgspec.json.decode(raw, type=dict[str, Raw])
            auth = members.pop("auth", None)
            if auth is None:
                return raw
            seed = msgspec.json.decode(auth, type=calls.SeedAuth)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"auth: {error}", field="auth") from None
        self._authenticate(connection, seed.pwd)
        return _encode(members)

    # -- the calls ------------------------------------------------------------------------------

    def _auth(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        token = decode_argument(raw, calls.AuthArgument, "auth").token
        return _encode({"role": self._authenticate(connection, token)})

    def _echo(self, request: Request, id_part: bytes, raw: bytes) -> bytes:
        blob = wire.request_blob(request)
        if blob is not None:
            return wire.encode_blob_reply(id_part, blob)
        return wire.encode_reply(id_part, raw) if raw else wire.encode_empty_reply(id_part)

    def _insert(
        self, connection: Connection, request: Request, id_part: bytes, raw: bytes, size: int
    ) -> None:
        if not self.accepting:
            raise ShuttingDown("the server is shutting down; insert at another one or later")
        blob = wire.request_blob(request)
        if not raw:
            raise BadRequest("insert needs a job, or an array of jobs")
        capabilities = self._engine.capabilities
        array = raw.startswith(b"[")
        if not array:
            jobs = [parse_job(raw, self.table, capabilities, blob=blob)]
        elif blob is None:
            jobs = parse_batch(raw, self.table, capabilities)
        else:
            raise BadRequest("a binary part goes with one job, not with an array", field="b")
        connection.in_flight += 1
        self.intake.add(connection, [id_part], jobs, connection.received, size, array=array)

    async def _reserve(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        argument = decode_argument(raw, calls.ReserveArgument, "reserve")
        types = frozenset(given(argument.types) or connection.types or ())
        holder = connection.holder or given(argument.worker) or connection.peer
        leases = await self._dispatch.reserve(
            types,
            argument.max,
            0.0 if connection.ending else argument.wait,
            asker=connection,
            holder=holder,
            local=connection.holder is not None,
        )
        views = []
        for lease in leases:
            data = lease.data
            if lease.bulk is not None:
                try:
                    data = await self._bulk.get(lease.bulk)
                except Busy as busy:
                    # The store is away, or descriptors are short: that is no attempt, and the job says so.
                    reason = Reason(str(busy), "bulk")
                    again = Settlement(lease.receipt, "release", delay=_LATER, reason=reason)
                    await self._engine.settle([again])
                    continue
                except CallError as error:
                    # The store is away or lost it: the job waits and says so; it is not failed (G6). An
                    # engine that may have a job twice has it once more when its payload is gone: parked.
                    twin = isinstance(error, NotFound) and "idempotency" not in self._engine.capabilities
                    outcome: OutcomeName = "fail" if twin else "again"
                    await self._engine.settle([Settlement(lease.receipt, outcome, reason=str(error))])
                    continue
            views.append(_view(lease, data))
        return _encode({"jobs": views})

    async def _settle(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        try:
            settlements = _settlements.decode(raw or b"[]")
        except (msgspec.MsgspecError, RecursionError):
            settlements = self._settle_one_by_one(raw)
        refused = await self._patiently(connection, partial(self._engine.settle, settlements))
        self.progressed = self._monotonic()
        connection.settled = True
        answer: dict[str, Any] = {"settled": len(settlements) - len(refused), "refused": refused}
        return _encode(answer)

    async def _patiently(self, connection: Connection, call: Callable[[], Awaitable[T]]) -> T:
        """What the engine answers; a worker of this server waits while the engine is away."""
        while True:
            try:
                return await call()
            except Busy:
                if connection.holder is None or not self.accepting:
                    raise
            await asyncio.sleep(_AWAY)

    @staticmethod
    def _settle_one_by_one(raw: bytes) -> list[Settlement]:
        """Find the element that is wrong and say which; nothing is settled then."""
        for index, item in enumerate(split_batch(raw)):
            try:
                decode_argument(bytes(item), Settlement, "settlement")
            except CallError as error:
                error.index = index
                raise
        raise BadRequest("settle takes an array of {receipt, outcome}")

    async def _renew(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        argument = decode_argument(raw, calls.RenewArgument, "renew")
        progress = None if argument.progress is UNSET else msgspec.to_builtins(argument.progress)
        renew = partial(self._engine.renew, argument.receipts, progress)
        current = await self._patiently(connection, renew)
        answer: dict[str, list[str]] = {"renewed": [], "lost": [], "cancelled": []}
        for receipt, became in zip(argument.receipts, current, strict=True):
            answer[became].append(receipt)
        if answer["renewed"]:
            self.progressed = self._monotonic()  # a long attempt that goes on
        return _encode(answer)

    async def _stats(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        argument = decode_argument(raw, calls.StatsArgument, "stats")
        return _encode(
            {
                **await self._engine.stats(given(argument.type)),
                "engine": self._engine.name,
                "calls": self.metrics.shown(),
                "errors": self.metrics.errors,
                **self._about(),
            }
        )

    async def _health_call(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        decode_argument(raw, calls.HealthArgument, "health")
        return _encode(await self._health())

    def _drain_call(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        on = decode_argument(raw, calls.DrainArgument, "drain").on
        if on:
            self._dispatch.drain()
        elif self.accepting:
            self._dispatch.resume()
        return _encode({"draining": self._dispatch.draining})

    def _quit_call(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        argument = decode_argument(raw, calls.QuitArgument, "quit")
        asyncio.get_running_loop().call_soon(self._quit, argument.grace)
        return NULL


def _view(lease: Lease, data: bytes) -> LeaseView:
    """A lease as it is answered."""
    inserted = dt.datetime.fromtimestamp(lease.inserted / SECOND, dt.UTC)
    view = LeaseView(
        lease.receipt,
        lease.id,
        lease.type,
        lease.attempt,
        lease.ttr,
        PRIOS[lease.prio],
        inserted,
        deaths=lease.deaths,
        result=lease.wants_result,
    )
    if lease.binary:
        view.data64 = data  # msgspec writes bytes as base64
    else:
        view.data = Raw(data)
    return view
