"""What people do to jobs by hand, as far as beanstalkd can: by type, not by id."""

from __future__ import annotations

from typing import Final

from ...errors import Conflict, EngineAway, Unsupported
from ...ports import Selection
from .client import Connection
from .leases import Corrections
from .look import Tubes
from .pool import Pool
from .protocol import Reply, bury, delete, figure, kick, kick_job, peek, stats_job, stats_tube
from .tubes import PRIORITIES, Body, decode, tube_of

#: The states a verb is for when none is given.
_USUAL: Final = {"kick": ("buried",), "bury": ("ready", "delayed"), "delete": ("ready", "delayed")}
#: The states it can take.
_CAN: Final = {
    "kick": ("buried", "delayed"),
    "bury": ("ready", "delayed"),
    "delete": ("ready", "delayed", "buried"),
}
#: Jobs kicked in one go.
_KICKED: Final = 100
_RESERVE_JOB: Final = b"reserve-job %d\r\n"


class Controller:
    """Kicks, buries and deletes.

    Args:
        pool: the servers.
        tubes: what is in them.
        corrections: of attempts.
    """

    def __init__(self, pool: Pool, tubes: Tubes, corrections: Corrections) -> None:
        self._pool = pool
        self._tubes = tubes
        self._corrections = corrections

    async def control(self, verb: str, selection: Selection) -> tuple[int, list[Body], set[str]]:
        """See :meth:`kqs.ports.Engine.control`.

        Returns:
            How many jobs; those that are deleted; the types of those that may run now.

        Raises:
            Unsupported: beanstalkd cannot find jobs so.
            Conflict: the state forbids the verb.
        """
        if verb not in _CAN:
            raise Unsupported(f"{verb} needs an engine with cancel, which beanstalkd has not")
        if selection.ids is not None:
            raise Unsupported(
                f"{verb} by id needs an engine with inspect, which beanstalkd has not; give a type",
                field="id",
            )
        if selection.older is not None:
            raise Unsupported("older needs an engine with inspect, which beanstalkd has not", field="older")
        states = _USUAL[verb] if selection.state is None else (selection.state,)
        if not set(states) <= set(_CAN[verb]):
            raise Conflict(f"{verb} cannot be done to {states[0]} jobs of beanstalkd", field="state")
        if selection.type is None:
            tubes = await self._tubes.refresh()
        else:
            tubes = [tube_of(selection.type)]
        left = (1 << 62) if selection.limit is None else selection.limit
        count, gone, ready = 0, list[Body](), set[str]()
        for server in self._pool.up():
            for tube in tubes:
                for state in states:
                    done, bodies = await self._all(server.connection, verb, tube, state, left - count)
                    count += done
                    gone += bodies
                    if done and verb == "kick":
                        ready.add(self._tubes.type_of(tube))
        return count, gone, ready

    async def _all(
        self, connection: Connection, verb: str, tube: bytes, state: str, most: int
    ) -> tuple[int, list[Body]]:
        """Do it to the jobs of one tube in one state; returns how many, and those that are deleted."""
        count, gone = 0, list[Body]()
        try:
            if verb == "kick" and state == "buried":
                return await self._kick(connection, tube, most), gone
            while count < most:
                found = await self._peek(connection, tube, state)
                if found is None:
                    break
                if await self._one(connection, verb, found.number):
                    count += 1
                    body = decode(found.body, tube)
                    if verb == "delete":
                        gone.append(body)
                    elif verb == "bury" and body.header is not None:  # it was reserved for that
                        self._corrections.not_run(body.header.id)
        except EngineAway:
            pass  # what was done is counted; the rest is on a server that is down
        return count, gone

    @staticmethod
    async def _peek(connection: Connection, tube: bytes, state: str) -> Reply | None:
        found = await connection.within(tube, peek(state), None)
        return found if found.word == b"FOUND" else None

    @staticmethod
    async def _kick(connection: Connection, tube: bytes, most: int) -> int:
        """Buried jobs only: beanstalkd's kick takes delayed ones when there are none.

        A tube that can't be used holds no job, so that those of no other tube are kicked. A few at a time:
        beanstalkd answers nobody meanwhile.
        """
        count = 0
        while count < most:
            stats = await connection.ask(stats_tube(tube), None)
            bound = min(most - count, _KICKED, figure(stats.body, b"current-jobs-buried"))
            kicked = (await connection.within(tube, kick(bound), None)).number if bound else 0
            if kicked <= 0:
                break
            count += kicked
        return count

    @staticmethod
    async def _one(connection: Connection, verb: str, number: int) -> bool:
        if verb == "kick":
            return (await connection.ask(kick_job(number), None)).word == b"KICKED"
        if verb == "delete":
            return (await connection.ask(delete(number), None)).word == b"DELETED"
        if (await connection.ask(_RESERVE_JOB % number, None)).word != b"RESERVED":
            return False
        reply = await connection.ask(stats_job(number), None)
        priority = figure(reply.body, b"pri") if reply.word == b"OK" else PRIORITIES[2]
        return (await connection.ask(bury(number, priority), None)).word == b"BURIED"
