"""The desk: every call, from its decoded line to its reply.

Commands hold no business logic: each checks its argument, asks intake, dispatch or the engine, and encodes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final

import msgspec
import psutil
import structlog
from msgspec import UNSET, Raw, Struct, UnsetType

from ..core import calls, wire
from ..core.calls import ALLOWED, Role, given
from ..core.job import (
    PRIOS,
    SECOND,
    DefaultsTable,
    check_job,
    decode_argument,
    parse_batch,
    parse_job,
    split_batch,
)
from ..core.outcome import Settlement
from ..core.wire import BadLine, Request
from ..errors import (
    BadRequest,
    Busy,
    CallError,
    Forbidden,
    Internal,
    KQSError,
    ShuttingDown,
    Unauthorized,
    Unsupported,
)
from ..ports import BulkStore, Clock, Engine, Lease
from .calllog import CallLog
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
        engine, intake, dispatch, bulk, clock: the parts that do the work.
        table: settings of job types; another one may be set later.
        tokens: who may call.
        metrics, log: told of every call.
        health: gathers the answer to ``health``.
        about: gathers the service's part of ``stats``.
        quit: begins the shutdown, given the grace in seconds.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        intake: Intake,
        dispatch: Dispatch,
        bulk: BulkStore,
        clock: Clock,
        table: DefaultsTable,
        tokens: Tokens,
        metrics: Metrics,
        log: CallLog,
        health: Callable[[], dict[str, Any]],
        about: Callable[[], dict[str, Any]],
        quit: Callable[[float], None],
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
        self._process = psutil.Process()
        self._started = monotonic()
        # Calls answered at once, and calls that take their time.
        self._now: dict[str, Callable[[Connection, Request, bytes], bytes]] = {
            "ping": lambda connection, request, raw: PONG,
            "auth": self._auth,
            "stats": self._stats,
            "health": self._health_call,
            "quit": self._quit_call,
            "drain": self._drain_call,
        }
        self.jobs = JobCalls(engine, clock)
        self._later: dict[str, Callable[[Connection, Request, bytes], Awaitable[bytes | None]]] = {
            "reserve": self._reserve,
            "settle": self._settle,
            "renew": self._renew,
            **self.jobs.handlers,
        }

    @property
    def calls(self) -> list[str]:
        """The names of all calls it takes."""
        return sorted({"insert", "echo", *self._now, *self._later})

    # -- from a slice of lines to calls ---------------------------------------------------------

    def take(self, connection: Connection, block: bytes) -> None:
        """Begin every call in a block of whole lines, in order."""
        begun = monotonic()
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
            if (later := self._later.get(name)) is not None:
                connection.in_flight += 1
                work = self._finish(connection, name, id_part, later(connection, request, raw), size, begun)
                task = asyncio.create_task(work)
                connection.tasks.add(task)
                task.add_done_callback(connection.tasks.discard)
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
        latency, duration = begun - connection.received, monotonic() - begun
        if name:
            self.metrics.done(name, latency, duration)
        if outcome != "ok":
            self.metrics.failed(name, outcome)
        self._log.note(name, connection.peer, latency, duration, size, outcome)

    async def _finish(
        self,
        connection: Connection,
        name: str,
        id_part: bytes,
        work: Awaitable[bytes | None],
        size: int,
        begun: float,
    ) -> None:
        """Await a call and answer it."""
        outcome = "ok"
        try:
            value = await work
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
        now = monotonic()
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
                except CallError as error:
                    # The store is away or lost it: the job waits and says so; it is not failed (G6).
                    await self._engine.settle([Settlement(lease.receipt, "again", reason=str(error))])
                    continue
            views.append(_view(lease, data))
        return _encode({"jobs": views})

    async def _settle(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        try:
            settlements = _settlements.decode(raw or b"[]")
        except (msgspec.MsgspecError, RecursionError):
            settlements = self._settle_one_by_one(raw)
        refused = await self._engine.settle(settlements)
        self.progressed = monotonic()
        connection.settled = True
        answer: dict[str, Any] = {"settled": len(settlements) - len(refused), "refused": refused}
        return _encode(answer)

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
        current = await self._engine.renew(argument.receipts, progress)
        answer: dict[str, list[str]] = {"renewed": [], "lost": [], "cancelled": []}
        for receipt, became in zip(argument.receipts, current, strict=True):
            answer[became].append(receipt)
        if answer["renewed"]:
            self.progressed = monotonic()  # a long attempt that goes on
        return _encode(answer)

    def _stats(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        argument = decode_argument(raw, calls.StatsArgument, "stats")
        with self._process.oneshot():
            process = {
                "pid": self._process.pid,
                "rss_bytes": self._process.memory_info().rss,
                "uptime": monotonic() - self._started,
            }
        return _encode(
            {
                **self._engine.stats(given(argument.type)),
                "engine": self._engine.name,
                "calls": self.metrics.shown(),
                "errors": self.metrics.errors,
                "process": process,
                **self._about(),
            }
        )

    def _health_call(self, connection: Connection, request: Request, raw: bytes) -> bytes:
        decode_argument(raw, calls.HealthArgument, "health")
        return _encode(self._health())

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
