"""Wires the parts into a running server. The only place that knows which engine, store and clock are used."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from typing import Any

import structlog

from ..core.calls import ALLOWED
from ..core.job import DefaultsTable
from ..engines.embedded import EmbeddedEngine
from ..errors import ConfigError, DataDirError, JournalFailed
from ..journal.log import Journal
from ..journal.recovery import Apply
from ..runners.spec import WorkerSpec
from .calllog import CallLog
from .calls import Desk
from .config import Config, split_address
from .dispatch import Dispatch
from .handlers import Handlers
from .health import HealthFacts, assess
from .host import Host, RealHost
from .intake import Intake
from .metrics import Metrics
from .server import Connection, Server
from .workers import LocalWorkers

#: How often due times and leases are looked at, seconds: a delay is late by this at most.
TICK = 0.02
#: Seconds peers have, at the end, to take the replies that are on their way to them.
LAST_WORDS = 2.0
#: An oversize payload no job refers to is collected when it is this old, seconds.
ORPHAN_GRACE = 3600.0


class Service:
    """One server process.

    Args:
        config: checked settings.
        handlers: what local workers run.
        insecure: listen on an address other than loopback although nothing is encrypted.
        host: the machine below, or None for the real one.
    """

    def __init__(
        self, config: Config, handlers: Handlers, *, insecure: bool = False, host: Host | None = None
    ) -> None:
        self._config = config
        self._handlers = handlers
        self._host = host or RealHost()
        self._monotonic = self._host.monotonic
        self._log = structlog.get_logger()
        self._stopping: asyncio.Future[float] | None = None
        self._failure: JournalFailed | None = None
        self._quickly = asyncio.Event()
        self._idle_since = self._monotonic()
        address, _port = split_address(config.server.listen, "listen")
        if not insecure and not _is_loopback(address):
            raise ConfigError(
                f"server.listen: {address} is reachable from other machines, and this version has no TLS; "
                f"listen on 127.0.0.1, or add --insecure when the network is trusted"
            )
        if not _is_loopback(address) and not config.tokens:
            raise ConfigError(
                f"server.listen: {address} is reachable from other machines; add [[tokens]] first"
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
        self._server = Server(config.limits, tokens=bool(config.tokens), monotonic=self._monotonic)
        self._desk = Desk(
            engine=self._engine,
            intake=intake,
            dispatch=self._dispatch,
            bulk=self._store,
            clock=host.clock,
            table=DefaultsTable(self._handlers.defaults, self._handlers.base),
            tokens=config.tokens,
            metrics=self._metrics,
            log=self._call_log,
            health=self._health,
            about=self._about,
            quit=self.shutdown,
            monotonic=self._monotonic,
        )
        self._server.desk = self._desk
        self._workers = LocalWorkers(
            self._handlers.specs, self._engine, self._dispatch, self._attach, self._log
        )
        await self._engine.journal.make_room()  # what ends jobs has its space before the first call (G9)
        await host.listen(self._server, config.server.listen, data)
        host.started()
        self._timer = asyncio.create_task(self._tick())
        self._workers.start()
        self._log.info(
            "ready",
            listen=f"{split_address(config.server.listen, '')[0]}:{self._server.port}",
            data=data,
            jobs=sum(self._engine.stats()["jobs"][state] for state in ("delayed", "ready", "reserved")),
            handlers=sorted(self._workers.types()),
        )

    async def _attach(self, sock: socket.socket, spec: WorkerSpec) -> Connection:
        """Make a worker's socket a connection of its own role."""
        connection = Connection(self._server, holder=spec.name, types=spec.types, role="work")
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        return connection

    # -- running --------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Release delays, take expired leases back, look for work, collect orphans."""
        next_collection = next_look = self._monotonic()
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
        """Ready jobs a worker is here for."""
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
        free, total = self._host.disk.free(self._data)
        facts = HealthFacts(
            accepting=self._engine.journal.accepting,
            failed=str(self._failure) if self._failure else None,
            draining=not self._desk.accepting,
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
            "reserves_waiting": self._dispatch.waiting,
            "workers": self._workers.states(),
            "process": self._host.process(),
            "calls_known": sorted(ALLOWED),
        }

    # -- stopping -------------------------------------------------------------------------------

    async def _drain(self, grace: float) -> None:
        """Take nothing new, let running jobs finish, release the rest."""
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
