"""Wires the parts into a running server. The only place that knows which engine, store and clock are used."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
from collections.abc import Iterator
from typing import Any

import msgspec
import structlog

from ..core.job import NEEDS
from ..errors import Busy, ConfigError, DataDirError, DiskFull, JournalFailed
from ..runners.crew import Crew
from ..settings import crons
from ..settings.config import Config, LimitsConfig, split_address
from ..settings.crons import Cron
from ..settings.handlers import Handlers
from .calllog import CallLog
from .calls import Desk
from .cron import Crons
from .dispatch import Dispatch
from .engines import open_engine, threshold
from .health import HealthFacts, assess
from .host import Host, RealHost
from .intake import Intake
from .metrics import Metrics
from .reload import Reloads, Sources
from .server import Server
from .stores import open_store, refuse_to_leave
from .tls import server_context
from .tokens import Tokens
from .workers import EngineBook

#: How often due times and leases are looked at, seconds: a delay is late by this at most.
TICK = 0.02
#: Seconds peers have, at the end, to take the replies that are on their way to them.
LAST_WORDS = 2.0
#: How often the tokens' file is looked at, seconds.
LOOK_AT_TOKENS = 1.0
#: Seconds between two looks at an engine that is away.
_AWAY = 0.5
#: An oversize payload no job refers to is collected when it is this old, seconds.
ORPHAN_GRACE = 3600.0


class Service:
    """One server process.

    Args:
        config: checked settings.
        handlers: what local workers run.
        insecure: listen on an address other than loopback without tokens or TLS.
        sources: where :meth:`reload` finds other settings; None when it cannot.
        watch: reload when they or the handlers' code change.
        host: the machine below, or None for the real one.

    Raises:
        ConfigError: others could reach the server and it is not protected, or a certificate cannot be used.
        DataDirError: the tokens' file cannot be used.
    """

    def __init__(
        self,
        config: Config,
        handlers: Handlers,
        *,
        insecure: bool = False,
        sources: Sources | None = None,
        watch: bool = False,
        host: Host | None = None,
    ) -> None:
        self._config = config
        self._handlers = handlers
        self._host = host or RealHost()
        self._monotonic = self._host.monotonic
        self._log = structlog.get_logger()
        self._sources = sources
        self._watch = watch
        self._reloads: Reloads | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[float] | None = None
        self._failure: JournalFailed | None = None
        self._quickly = asyncio.Event()
        self._idle_since = self._monotonic()
        self._tls = server_context(config.tls) if config.tls.cert else None
        self._tokens = Tokens(os.path.abspath(config.server.data), config.tokens)
        address, _port = split_address(config.server.listen, "listen")
        missing = [
            *([] if self._tokens.required else ["tokens ('kqs token new')"]),
            *([] if self._tls else ["TLS (tls.cert)"]),
        ]
        self._unprotected = ""
        if missing and not _is_loopback(address):
            self._unprotected = (
                f"{address} is reachable from other machines, and this server has no {' and '.join(missing)}"
            )
            if not insecure:
                raise ConfigError(
                    f"server.listen: {self._unprotected}; listen on 127.0.0.1, "
                    f"or add --insecure when the network is trusted"
                )

    async def run(self) -> int:
        """Serve until told to stop.

        Returns:
            The exit status: 0, or 1 after the journal failed.

        Raises:
            ConfigError, DataDirError: the server cannot start.
        """
        loop = asyncio.get_running_loop()
        self._stopping = loop.create_future()
        await self._start()
        try:
            grace = await self._stopping
            await self._drain(grace)
        finally:
            await self._close()
        return 1 if self._failure is not None else 0

    def shutdown(self, grace: float = 30.0) -> None:
        """Begin to stop; a second call stops at once."""
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(grace)
        else:
            self._quickly.set()

    def reload(self) -> None:
        """Take over what can change of settings and certificates; the log says what came of it."""
        self.reload_tls()
        if self._reloads is not None:
            self._reloads.ask()

    # -- starting -------------------------------------------------------------------------------

    async def _start(self) -> None:
        config, host = self._config, self._host
        random = host.random
        data = os.path.abspath(config.server.data)
        try:
            host.claim(data)
            self._store = await open_store(config.bulk, host, data)
            self._call_log = CallLog(data, config.call_log, random.random)
            self._engine = await open_engine(config, host, data, self._store, self._journal_failed)
        except OSError as error:
            raise DataDirError(f"data directory {data} cannot be used: {error.strerror}") from None
        if "inspect" in self._engine.capabilities:
            refuse_to_leave(config.bulk, await self._engine.bulk_names())
        self._data = data
        self._refuse_unsupported(self._handlers)
        self._engine.arrange(self._handlers.shares)
        self._crons = Crons(
            self._engine,
            host.wall,
            may_run=lambda: self._desk.accepting and not self._dispatch.draining,
            may_accept=lambda: self._desk.accepting,
            log=self._log,
        )
        self._crons.replace(self._plan_crons(config, self._handlers))
        self._metrics = Metrics()
        intake = Intake(
            self._engine,
            self._store,
            threshold(config, self._engine),
            self._metrics,
            self._call_log,
            self._monotonic,
        )
        self._dispatch = Dispatch(self._engine)
        self._server = Server(self._limits(), self._tokens, monotonic=self._monotonic)
        self._desk = Desk(
            engine=self._engine,
            intake=intake,
            dispatch=self._dispatch,
            crons=self._crons,
            bulk=self._store,
            clock=host.clock,
            table=self._handlers.table,
            tokens=self._tokens,
            metrics=self._metrics,
            log=self._call_log,
            health=self._health,
            about=self._about,
            serves=self._serves,
            quit=self.shutdown,
            monotonic=self._monotonic,
        )
        self._server.desk = self._desk
        book = EngineBook(self._engine, self._dispatch, self._server)
        self._workers = Crew(self._handlers.specs, book, self._log)
        self._engine.on_revoked(self._workers.cancel)
        tls = self._certificates if self._tls else None
        await host.listen(self._server, config.server.listen, data, tls)
        if self._unprotected:
            self._log.warning(
                "others may call this server, or read what its clients send", why=self._unprotected
            )
        host.started()
        self._timer = asyncio.create_task(self._tick())
        self._workers.start()
        self._crons.start()
        if self._sources is not None:
            self._reloads = Reloads(config, self._sources, self._take_over, self._log)
            if self._watch:
                self._watching = asyncio.create_task(self._reloads.watch(lambda: self._handlers.roots))
        jobs = (await self._engine.stats())["jobs"]
        self._log.info(
            "ready",
            listen=f"{split_address(config.server.listen, '')[0]}:{self._server.port}",
            tls=self._tls is not None,
            data=data,
            jobs=sum(jobs[state] for state in ("delayed", "ready", "reserved")),
            handlers=sorted(self._workers.types()),
        )

    def _refuse_unsupported(self, handlers: Handlers) -> None:
        """Refuse settings the engine cannot keep, rather than ignore them."""
        for setting in ("expires", "result_ttl"):
            given = any(getattr(own.defaults, setting) for own in handlers.table.all())
            if given and NEEDS[setting] not in self._engine.capabilities:
                raise ConfigError(
                    f"{setting}: needs an engine with {NEEDS[setting]}, which {self._engine.name} has not; "
                    "remove it"
                )

        if handlers.share_given and "fair_share" not in self._engine.capabilities:
            raise ConfigError(
                f"{handlers.share_given}: weights, limits and orders need an engine with fair_share, which "
                f"{self._engine.name} has not; remove it"
            )

    def _plan_crons(self, config: Config, handlers: Handlers) -> dict[str, Cron]:
        return crons.plan(config.cron, handlers.table, self._engine.capabilities)

    def _take_over(self, config: Config, handlers: Handlers) -> None:
        """Run with other handlers, crons and settings of job types from now on."""
        self._refuse_unsupported(handlers)
        self._crons.replace(self._plan_crons(config, handlers))
        self._handlers = handlers
        self._desk.table = handlers.table
        self._engine.arrange(handlers.shares)
        self._workers.replace(handlers.specs)

    def _limits(self) -> LimitsConfig:
        """The configured limits, with no more connections than the limit on open files has room for.

        A peer that is one too many is refused; without room the journal could not open its next segment.
        """
        limits = self._config.limits
        room = self._host.connections(limits.connections)
        if room < limits.connections:
            self._log.warning(
                "limits.connections is lowered: the limit on open files has no room for more; raise it with "
                "'ulimit -n' or LimitNOFILE=",
                connections=room,
                configured=limits.connections,
            )
        return msgspec.structs.replace(limits, connections=room)

    def _certificates(self) -> ssl.SSLContext:
        assert self._tls is not None
        return self._tls

    def reload_tls(self) -> None:
        """Read the certificates again, for the connections to come; those that are open stay as they are.

        When the new ones cannot be used, the old ones stay, and the log says why.
        """
        if self._tls is None:
            return
        try:
            self._tls = server_context(self._config.tls)
        except ConfigError as error:
            self._log.warning("certificates not replaced", reason=str(error))
        else:
            self._log.info("certificates read again")

    def _look_at_tokens(self) -> None:
        """Act on what 'kqs token' did: who holds no token any more is let go."""
        try:
            if self._tokens.refresh():
                self._log.info("tokens read again")
                self._server.tokens_changed()
        except DataDirError as error:
            self._log.warning("tokens not read", reason=str(error))
            self._server.tokens_changed()

    # -- running --------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Release delays, take expired leases back, look for work, collect orphans."""
        next_collection = next_look = next_tokens = self._monotonic()
        away = ""
        while True:
            try:
                expired: dict[float, list[str]] = {}
                for lease in await self._workers.look_after(await self._engine.tick()):
                    expired.setdefault(lease.ttr, []).append(lease.receipt)
                for ttr, receipts in expired.items():
                    reason = f"ttr of {ttr:g} s exceeded"
                    await self._engine.rescue(receipts, overdue=True, reason=reason)
                if self._monotonic() >= next_look:
                    next_look = self._monotonic() + min(1.0, self._config.health.stall / 4)
                    await self._look_for_work()
                if self._monotonic() >= next_tokens:
                    next_tokens = self._monotonic() + LOOK_AT_TOKENS
                    self._look_at_tokens()
                if self._monotonic() >= next_collection:
                    next_collection = self._monotonic() + ORPHAN_GRACE
                    if "inspect" in self._engine.capabilities:  # else nobody knows what is an orphan
                        await self._store.collect(await self._engine.bulk_names(), ORPHAN_GRACE)
                away = ""
            except JournalFailed:
                return
            except (Busy, DiskFull) as error:
                if not away:
                    self._log.warning("the engine is away: leases and delays wait for it", reason=str(error))
                away = str(error)
                await asyncio.sleep(_AWAY)
            except Exception:  # whatever it was, leases must still expire
                self._log.exception("bug", task="tick")
            await asyncio.sleep(TICK / 4 if self._engine.behind else TICK)

    def _journal_failed(self, failure: JournalFailed) -> None:
        """G5: stop. Replies that say "unknown" are still sent; nothing else is."""
        self._failure = failure
        self._log.critical(str(failure))
        self._quickly.set()
        self.shutdown(0)

    def _serves(self, type_: str) -> bool:
        """Whether a worker is here or connected that takes a type."""
        return type_ in self._workers.types() or self._dispatch.serves(type_)

    async def _eligible(self) -> Iterator[tuple[str, int]]:
        """Types with ready jobs that a worker is here for, and how many; none while nothing is handed out.

        Raises:
            Busy, DiskFull: nobody knows.
        """
        if self._dispatch.draining:
            return iter(())
        here, connected = self._workers.types(), self._dispatch.serves
        return await self._engine.ready_types(lambda type_: type_ in here or connected(type_))

    async def _look_for_work(self) -> None:
        """Remember when there was last nothing to do, as far as is known: only work that waits can stall.

        Raises:
            Busy, DiskFull: nobody knows.
        """
        waiting = False
        try:
            waiting = next(await self._eligible(), None) is not None
        finally:
            if not waiting:
                self._idle_since = self._monotonic()

    async def _health(self) -> dict[str, Any]:
        failed = None if self._failure is None else str(self._failure)
        eligible, away = {}, ""
        try:
            await self._look_for_work()
            eligible = dict(await self._eligible())
        except (Busy, DiskFull) as error:
            away = str(error)
        free = total = 0
        try:
            free, total = self._host.disk.free(self._data)
        except OSError as error:
            failed = failed or f"data directory {self._data}: {error.strerror}"
        now = self._monotonic()
        facts = HealthFacts(
            accepting=self._engine.accepting,
            failed=failed,
            leaving=not self._desk.accepting,
            draining=self._dispatch.draining,
            disk_free=free,
            disk_total=total,
            eligible=eligible,
            idle_for=now - max(self._desk.progressed, self._idle_since),
            longest_ttr=self._engine.longest_ttr,
            workers=self._workers.states(),
            away=away,
        )
        health = self._config.health
        return assess(facts, stall=health.stall, disk_share=health.disk_free)

    def _about(self) -> dict[str, Any]:
        return {
            "name": self._config.server.name,
            "connections": {"open": self._server.connections, "refused": self._server.refused},
            "draining": self._dispatch.draining,
            "reserves_waiting": self._dispatch.waiting,
            "workers": self._workers.states(),
            "process": self._host.process(),
            "calls_known": self._desk.calls,
        }

    # -- stopping -------------------------------------------------------------------------------

    async def _drain(self, grace: float) -> None:
        """Take nothing new, let running jobs finish, release the rest."""
        if self._reloads is not None:
            self._reloads.close()
        if self._watching is not None:
            self._watching.cancel()
        self._desk.accepting = False
        self._server.stop_listening()
        self._dispatch.drain()
        if self._failure is not None:
            return
        self._log.info("stopping", grace=grace)
        drain = asyncio.create_task(self._workers.drain(grace))
        hurry = asyncio.create_task(self._quickly.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not drain.done():
            await self._workers.drain(0)
            await drain

    async def _close(self) -> None:
        """Answer what is in flight, sync, release everything."""
        timer = getattr(self, "_timer", None)
        if timer is not None:
            timer.cancel()
        if hasattr(self, "_crons"):
            await self._crons.close(at_once=self._failure is not None)
        if self._failure is not None:
            await asyncio.sleep(0.1)  # let the replies that say so go out
            return
        if hasattr(self, "_desk"):
            self._dispatch.close()
            self._desk.jobs.close()
            await self._desk.intake.finish()
            await self._server.close(LAST_WORDS)  # first: calls under way still need the engine
            await self._engine.close()
            await self._store.close()
            self._call_log.close()
            self._log.info("stopped")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
