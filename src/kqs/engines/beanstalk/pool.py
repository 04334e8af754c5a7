"""The servers of a pool: who is up, who gets the next job, and connections to each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

import structlog
from msgspec import Struct

from ...errors import ConfigError, EngineAway
from .client import PATIENCE, Connection, connect
from .protocol import STATS, figure

#: Seconds between two tries to reach a server that is down: doubled from the first to the last.
FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 5.0
#: Connections on which jobs are taken, at most, to each server: one for each set of types.
TAKERS: Final = 32
#: beanstalkd 1.12 and later know ``reserve-job``, and count what the binlog writes.
OLDEST: Final = (1, 12)


class Address(Struct, frozen=True):
    """Where a server listens, and its part of new jobs."""

    host: str
    port: int
    weight: int = 1


def parse_address(text: str) -> Address:
    """``HOST:PORT`` or ``HOST:PORT*WEIGHT``.

    Raises:
        ConfigError: it is not of that form.
    """
    place, star, weight = text.partition("*")
    host, colon, port = place.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    good = colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not good or (star and not (weight.isascii() and weight.isdigit() and 0 < int(weight) <= 1000)):
        raise ConfigError(f"beanstalkd.servers: {text!r} is not HOST:PORT or HOST:PORT*WEIGHT (1 to 1000)")
    return Address(host, int(port), int(weight) if star else 1)


class Limits(Struct, frozen=True):
    """What is asked of a server.

    Attributes:
        timeout: seconds to reach it.
        silence: seconds it may be silent before its connections are given up.
        unsafe: whether its binlog may be off.
    """

    timeout: float
    silence: float
    unsafe: bool


class Server:
    """One beanstalkd.

    Args:
        address: where it is.
        limits: what is asked of it.
        random: draws from [0, 1), for jitter.

    Attributes:
        draining: it takes no new jobs.
        credit: how much it is its turn to get a job.
        reason: why it is down.
    """

    def __init__(self, address: Address, limits: Limits, random: Callable[[], float]) -> None:
        self.address = address
        self.name = f"{address.host}:{address.port}"
        self.draining = False
        self.credit = 0
        self.reason = ""
        self._main: Connection | None = None  # puts, asks, kicks
        self._takers: dict[frozenset[str], Connection] = {}
        self._limits = limits
        self._random = random
        self._binlog: tuple[int, int] | None = None
        self._closed = False

    @property
    def up(self) -> bool:
        return self._main is not None and self._main.open

    @property
    def answers(self) -> bool:
        """Whether it is up and has not just fallen silent."""
        return self._main is not None and self._main.open and self._main.silent_for() < PATIENCE

    @property
    def connection(self) -> Connection:
        """The one for everything but taking jobs.

        Raises:
            EngineAway: there is none.
        """
        if self._main is None:
            raise EngineAway(f"beanstalkd at {self.name} is down")
        return self._main

    async def open(self) -> int:
        """Connect; returns the largest body it takes, bytes.

        Raises:
            EngineAway: it cannot be reached.
            ConfigError: it is no server to trust jobs to.
        """
        made = await self._connect()
        try:
            largest = _checked(self.name, made.told, self._limits.unsafe)
        except ConfigError:
            made.close()
            raise
        self._main, self._binlog, self.reason = made, None, ""
        return largest

    async def _connect(self) -> Connection:
        limits = self._limits
        return await connect(self.address.host, self.address.port, limits.timeout, limits.silence)

    async def keep_open(self) -> None:
        """Connect again whenever the connection is lost; runs for ever."""
        pause = FIRST_PAUSE
        log = structlog.get_logger()
        while True:
            if not self.up:
                if not self.reason:
                    self.reason = "the connection was lost"
                    log.warning("a beanstalkd is down", server=self.name)
                try:
                    await self.open()
                except EngineAway as away:
                    self.reason = str(away)
                except ConfigError as error:
                    if self.reason != str(error):
                        log.error("a beanstalkd is not used", server=self.name, reason=str(error))
                    self.reason = str(error)
                else:
                    log.info("a beanstalkd is up", server=self.name)
                    pause = FIRST_PAUSE
                    continue
                await asyncio.sleep(pause * (0.5 + self._random()))
                pause = min(2 * pause, LAST_PAUSE)
            await asyncio.sleep(FIRST_PAUSE / 2)

    async def taker(self, types: frozenset[str]) -> Connection:
        """The connection on which jobs of these types are taken: it watches their tubes and no others.

        Raises:
            EngineAway: there is none, and none can be made.
        """
        found = self._takers.get(types)
        if found is not None and found.open:
            return found
        made = await self._connect()
        current = self._takers.get(types)
        if self._closed or (current is not None and current.open):  # somebody else was faster
            made.close()
            return current or made
        self._takers[types] = made
        return made

    def spare(self, busy: Collection[Connection]) -> None:
        """Close connections that are one too many and hold no job."""
        for types, connection in list(self._takers.items()):
            if len(self._takers) <= TAKERS:
                return
            if connection not in busy:
                connection.close()
                del self._takers[types]

    async def stats(self) -> bytes:
        """The server's own figures, as it says them.

        Raises:
            EngineAway: it is down, or does not say.
        """
        reply = await self.connection.ask(STATS)
        if reply.word != b"OK":
            raise EngineAway(f"beanstalkd at {self.name} says {reply.word.decode('ascii', 'replace')}")
        self._look_at_binlog(reply.body)
        self.draining = b"\ndraining: true" in reply.body
        return reply.body

    def _look_at_binlog(self, body: bytes) -> None:
        """beanstalkd turns its binlog off when a write fails, and tells nobody; but it counts no more."""
        puts, records = figure(body, b"cmd-put"), figure(body, b"binlog-records-written")
        before = self._binlog
        if before is not None and puts > before[0] + 10 and records == before[1] > 0:
            structlog.get_logger().error(
                "a beanstalkd writes its binlog no more: what it holds is lost when it ends", server=self.name
            )
        if before is None or puts > before[0] + 10 or puts < before[0]:
            self._binlog = (puts, records)

    def close(self) -> None:
        """End all connections: what is reserved on them becomes ready."""
        self._closed = True
        for connection in (self._main, *self._takers.values()):
            if connection is not None:
                connection.close()


class Pool:
    """All servers.

    Args:
        addresses: where they are.
        limits: what is asked of each.
        random: draws from [0, 1), for jitter.
    """

    def __init__(self, addresses: Collection[Address], limits: Limits, random: Callable[[], float]) -> None:
        self.servers = [Server(address, limits, random) for address in addresses]
        self._tasks: list[asyncio.Task[None]] = []
        self._next = 0

    async def open(self) -> int:
        """Connect to those that are up, and look at how they are set up.

        Returns:
            The largest body all of them take, bytes.

        Raises:
            ConfigError: none is up, or one is no server to trust jobs to.
        """
        opened = await asyncio.gather(*(server.open() for server in self.servers), return_exceptions=True)
        reasons, largest = [], []
        for found in opened:
            if isinstance(found, EngineAway):
                reasons.append(str(found))
            elif isinstance(found, BaseException):
                raise found
            else:
                largest.append(found)
        if not largest:
            raise ConfigError(f"beanstalkd.servers: none is up: {'; '.join(reasons)}")
        for reason in reasons:
            structlog.get_logger().warning("a beanstalkd is down", reason=reason)
        self._tasks = [asyncio.create_task(server.keep_open()) for server in self.servers]
        return min(largest)

    def up(self) -> list[Server]:
        """The servers that are up and answer, beginning with another one each time."""
        found = [server for server in self.servers if server.answers]
        self._next += 1
        turn = self._next % len(found) if found else 0
        return found[turn:] + found[:turn]

    def spread(self, count: int) -> Iterator[Server]:
        """Who gets each of these new jobs, by weight, as evenly as can be; none when none takes any.

        Source of the way: nginx's smooth weighted round-robin (its upstream module, 2012).
        """
        taking = [server for server in self.servers if server.answers and not server.draining]
        total = sum(server.address.weight for server in taking)
        for _ in range(count if taking else 0):
            for server in taking:
                server.credit += server.address.weight
            best = max(taking, key=lambda server: server.credit)
            best.credit -= total
            yield best

    def shown(self) -> list[dict[str, Any]]:
        """The servers as ``stats`` shows them."""
        return [
            {"server": server.name, "up": server.up}
            | ({"draining": True} if server.draining else {})
            | ({} if server.up else {"reason": server.reason})
            for server in self.servers
        ]

    async def close(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for server in self.servers:
            server.close()


def _checked(name: str, stats: dict[str, str], unsafe: bool) -> int:
    """The largest body a server takes.

    Raises:
        ConfigError: its version is too old, or what it holds is lost when it ends.
    """
    version = stats.get("version", "")
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        raise ConfigError(
            f"beanstalkd.servers: {name} is version {version or 'unknown'}; KQS needs "
            f"{'.'.join(map(str, OLDEST))} or newer"
        )
    if stats.get("binlog-current-index", "0") == "0":
        text = f"{name} has no binlog: what it holds is lost when it ends; start it with -b DIR -f 0"
        if not unsafe:
            raise ConfigError(f"beanstalkd.servers: {text}, or set beanstalkd.unsafe")
        structlog.get_logger().warning("a beanstalkd is unsafe", why=text)
    return int(stats.get("max-job-size", "65535"))
