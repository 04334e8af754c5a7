"""What is in the tubes: how many jobs of which type, in which state."""

from __future__ import annotations

import asyncio
from typing import Final

from ...errors import EngineAway
from .client import Connection
from .pool import Pool, Server
from .protocol import LIST_TUBES, Reply, figure, names, peek, stats_job, stats_tube
from .tubes import PREFIX, cut, type_of

STATES: Final = ("ready", "delayed", "reserved", "buried")
_READY: Final = b"current-jobs-ready"
#: Tubes asked about in one go.
_AT_ONCE: Final = 500
#: Tubes of which the oldest ready job is looked for.
_AGED: Final = 100


class Tubes:
    """All tubes of job types. A server that does not answer soon is left out.

    Args:
        pool: the servers.

    Attributes:
        seen: the types whose tube cannot tell them, by tube.
        known: the tubes there were when they were last looked at, and those that jobs were put into since.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.seen: dict[bytes, str] = {}
        self.known: dict[bytes, None] = {}

    def type_of(self, tube: bytes) -> str:
        """The type a tube is for, or the tube's name as long as no job of it was seen."""
        return type_of(tube) or self.seen.get(tube) or tube.decode("utf-8", "replace")

    async def refresh(self) -> list[bytes]:
        """Look which tubes there are; returns those of job types."""
        found = await asyncio.gather(*map(self._list, self._pool.up()))
        self.known = dict.fromkeys(tube for tubes in found for tube in tubes)
        return list(self.known)

    async def ready_on(self, server: Server) -> set[str] | None:
        """The types of which a server has ready jobs; None: any may be among them.

        Raises:
            EngineAway: it does not answer.
        """
        found = {tube for tube, stats in (await _stats(server.connection)).items() if figure(stats, _READY)}
        self.known |= dict.fromkeys(found)
        if any(cut(tube) and tube not in self.seen for tube in found):
            return None
        return set(map(self.type_of, found))

    @staticmethod
    async def _list(server: Server) -> list[bytes]:
        try:
            return await _names(server.connection)
        except EngineAway:
            return []

    async def counts(self) -> dict[bytes, dict[str, int]]:
        """Jobs in each state, by tube."""
        total: dict[bytes, dict[str, int]] = {}
        for counted in await asyncio.gather(*map(self._count, self._pool.up())):
            for tube, stats in counted.items():
                sums = total.setdefault(tube, dict.fromkeys(STATES, 0))
                for state in STATES:
                    sums[state] += figure(stats, b"current-jobs-" + state.encode())
        self.known = dict.fromkeys(total)
        return total

    @staticmethod
    async def _count(server: Server) -> dict[bytes, bytes]:
        try:
            return await _stats(server.connection)
        except EngineAway:
            return {}

    async def oldest_age(self, tubes: list[bytes]) -> int | None:
        """Seconds since the oldest job at the head of one of these tubes was put."""
        found = await asyncio.gather(*(self._ages(server, tubes[:_AGED]) for server in self._pool.up()))
        return max((age for ages in found for age in ages), default=None)

    @staticmethod
    async def _ages(server: Server, tubes: list[bytes]) -> list[int]:
        ages: list[int] = []
        try:
            connection = server.connection
            for tube in tubes:
                found = await connection.within(tube, peek("ready"))
                if found.word == b"FOUND":
                    reply = await connection.ask(stats_job(found.number))
                    ages += [figure(reply.body, b"age")] if reply.word == b"OK" else []
        except EngineAway:
            pass
        return ages


async def _names(connection: Connection) -> list[bytes]:
    """The tubes of job types on a server."""
    reply = await connection.ask(LIST_TUBES)
    return [tube for tube in names(reply.body) if tube.startswith(PREFIX)]


async def _stats(connection: Connection) -> dict[bytes, bytes]:
    """What a server says of each of its tubes of job types."""
    tubes, replies = await _names(connection), list[Reply]()
    for start in range(0, len(tubes), _AT_ONCE):
        replies += await connection.soon([stats_tube(tube) for tube in tubes[start : start + _AT_ONCE]])
    return {tube: reply.body for tube, reply in zip(tubes, replies, strict=True) if reply.word == b"OK"}
