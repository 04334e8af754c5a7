"""Wires the parts into a running server. The only place that knows which engine, store and clock are used."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
from typing import Any

import msgspec
import structlog

from ..core.job import NEEDS
from ..engines.embedded import EmbeddedEngine
from ..errors import ConfigError, DataDirError, JournalFailed
from ..journal.log import Journal
from ..journal.scan import Apply
from ..runners.crew import Crew
from ..settings.config import Config, LimitsConfig, split_address
from ..settings.handlers import Handlers
from .calllog import CallLog
from .calls import Desk
from .dispatch import Dispatch
from .health import HealthFacts, assess
from .host import Host, RealHost
from .intake import Intake
from .metrics import Metrics
from .reload import Reloads, Sources
from .server import Server
from .tls import server_context
from .tokens import Tokens
from .workers import EngineBook

#: How often due times and leases are looked at, seconds: a delay is late by this at most.
TICK = 0.02
#: Seconds peers have, at the end, to take the replies that are on their way to them.
LAST_WORDS = 2.0
#: How often the tokens' file is looked at, seconds.
LOOK_AT_TOKENS = 1.0
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
            self._store = host.store(data)
            self._call_log = CallLog(data, config.call_log, random.random)
            executor = host.executor()

            def open_journal(apply: Apply) -> Journal:
                return Journal.open(
                    host.disk,
                    executor,
                    data,
                    apply,
                    now=host.clock.now(),
                    segment_size=config.journal.segment_size,
                    random=random.randbytes,
                    on_failure=self._journal_failed,
                )

            self._engine = EmbeddedEngine(
                open_journal,
                host.clock,
                random=random.random,
                nonce=random.getrandbits,
                bulk=self._store,
                payload_window=config.journal.payload_window,
                memory_limit=config.journal.memory_limit,
                key_window=config.journal.key_window,
                key_cap=config.journal.key_cap,
            )
        except OSError as error:
            raise DataDirError(f"data directory {data} cannot be used: {error.strerror}") from None
        if self._engine.journal.torn is not None:
            self._log.warning(
                "the journal's unfinished last frame was cut; nothing accepted was in it",
                kept=self._engine.journal.torn,
            )
        self._data = data
        self._refuse_unsupported(self._handlers)
        self._metrics = Metrics()
        intake = Intake(
            self._engine,
            self._store,
            config.bulk.threshold,
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
            bulk=self._store,
            clock=host.clock,
            table=self._handlers.table,
            tokens=self._tokens,
            metrics=self._metrics,
            log=self._call_log,
            health=self._health,
            about=self._about,
            quit=self.shutdown,
            monotonic=self._monotonic,
        )
        self._server.desk = self._desk
        book = EngineBook(self._engine, self._dispatch, self._server)
        self._workers = Crew(self._handlers.specs, book, self._log)
        self._engine.on_revoked(self._workers.cancel)
        await self._engine.journal.make_room()  # what ends jobs has its space before the first call (G9)
        tls = self._certificates if self._tls else None
        await host.listen(self._server, config.server.listen, data, tls)
        if self._unprotected:
            self._log.warning(
                "others may call this server, or read what its clients send", why=self._unprotected
            )
        host.started()
        self._timer = asyncio.create_task(self._tick())
        self._workers.start()
        if self._sources is not None:
            self._reloads = Reloads(config, self._sources, self._take_over, self._log)
            if self._watch:
                self._watching = asyncio.create_task(self._reloads.watch(lambda: self._handlers.roots))
        self._log.info(
            "ready",
            listen=f"{split_address(config.server.listen, '')[0]}:{self._server.port}",
            tls=self._tls is not None,
            data=data,
            jobs=sum(self._engine.stats()["jobs"][state] for state in ("delayed", "ready", "reserved")),
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

    def _take_over(self, handlers: Handlers) -> None:
        """Run with other handlers and other settings of job types from now on."""
        self._refuse_unsupported(handlers)
        self._handlers = handlers
        self._desk.table = handlers.table
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
        while True:
            try:
                expired: dict[float, list[str]] = {}
                for lease in await self._workers.look_after(self._engine.tick()):
                    expired.setdefault(lease.ttr, []).append(lease.receipt)
                for ttr, receipts in expired.items():
                    reason = f"ttr of {ttr:g} s exceeded"
                    await self._engine.rescue(receipts, overdue=True, reason=reason)
                if self._monotonic() >= next_look:
                    next_look = self._monotonic() + min(1.0, self._config.health.stall / 4)
                    self._look_for_work()
                if self._monotonic() >= next_tokens:
                    next_tokens = self._monotonic() + LOOK_AT_TOKENS
                    self._look_at_tokens()
                if self._monotonic() >= next_collection:
                    next_collection = self._monotonic() + ORPHAN_GRACE
                    await self._store.collect(self._engine.bulk_names(), ORPHAN_GRACE)
            except JournalFailed:
                return
            except Exception:  # whatever it was, leases must still expire
                self._log.exception("bug", task="tick")
            await asyncio.sleep(TICK)

    def _journal_failed(self, failure: JournalFailed) -> None:
        """G5: stop. Replies that say "unknown" are still sent; nothing else is."""
        self._failure = failure
        self._log.critical(str(failure))
        self._quickly.set()
        self.shutdown(0)

    def _eligible(self) -> dict[str, int]:
        """Ready jobs a worker is here for; none while nothing is handed out."""
        if self._dispatch.draining:
            return {}
        local = self._workers.types()
        return {
            type_: count
            for type_, count in self._engine.ready_types().items()
            if type_ in local or self._dispatch.serves(type_)
        }

    def _look_for_work(self) -> dict[str, int]:
        """:meth:`_eligible`, remembering when there was last nothing: only work that waits can stall."""
        eligible = self._eligible()
        if not eligible:
            self._idle_since = self._monotonic()
        return eligible

    def _health(self) -> dict[str, Any]:
        eligible = self._look_for_work()
        now = self._monotonic()
        failed = None if self._failure is None else str(self._failure)
        free = total = 0
        try:
            free, total = self._host.disk.free(self._data)
        except OSError as error:
            failed = failed or f"data directory {self._data}: {error.strerror}"
        facts = HealthFacts(
            accepting=self._engine.journal.accepting,
            failed=failed,
            leaving=not self._desk.accepting,
            draining=self._dispatch.draining,
            disk_free=free,
            disk_total=total,
            eligible=eligible,
            idle_for=now - max(self._desk.progressed, self._idle_since),
            longest_ttr=self._engine.longest_ttr,
            workers=self._workers.states(),
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
