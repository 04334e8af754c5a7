"""A connection to beanstalkd on which many commands are under way at a time.

beanstalkd answers in order and reads on while it answers, so commands need not wait for each other. What is
sent in one turn of the loop goes out in one write. See docs/adr/0011-a-beanstalkd-client-of-our-own.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, cast

from ...errors import EngineAway
from .protocol import STATS, NotBeanstalkd, Replies, Reply, figures, use

#: Seconds who looks or takes waits for a server at most, before it goes on without it.
PATIENCE: Final = 1.0
#: A connection is silent when nothing came between so many looks at it. One look would be wrong after the
#: machine stood still: then the timer is over, and the server had no time to answer.
_LOOKS: Final = 4


class _Call:
    """Commands that are answered together."""

    __slots__ = ("future", "left", "replies")

    def __init__(self, count: int) -> None:
        self.future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self.left = count
        self.replies: list[Reply] = []


class Connection(asyncio.Protocol):
    """See the module; made by :func:`connect`.

    Args:
        name: of the server, for messages.
        silence: seconds it may say nothing while something is asked; then the connection is given up.

    Attributes:
        told: the server's figures when the connection was made.
        watched: the tubes it watches; kept by who sends such commands.
    """

    def __init__(self, name: str, silence: float) -> None:
        self.name = name
        self.told: dict[str, str] = {}
        self._silence = silence
        self._heard = 0.0
        self._unheard = 0  # looks since then
        self._check: asyncio.TimerHandle | None = None
        self.watched = {b"default"}
        self._transport: asyncio.Transport | None = None
        self._parser = Replies()
        self._calls: deque[_Call] = deque()
        self._out: list[bytes] = []
        self._lost: str | None = None

    # -- asyncio's side -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._heard, self._unheard = asyncio.get_running_loop().time(), 0
        try:
            replies = self._parser.feed(data)
        except NotBeanstalkd as error:
            self._end(f"{self.name} does not speak as beanstalkd does: {error}")
            return
        calls = self._calls
        for reply in replies:
            if not calls:
                self._end(f"{self.name} answers what it was not asked")
                return
            call = calls[0]
            call.replies.append(reply)
            call.left -= 1
            if not call.left:
                calls.popleft()
                if not call.future.done():
                    call.future.set_result(call.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection to {self.name} was lost" + (f": {exc}" if exc else ""))

    # -- our side -------------------------------------------------------------------------------

    @property
    def instance(self) -> str:
        """The server process, as it calls itself. Its numbers of jobs mean nothing in another one."""
        return self.told.get("id", "")

    @property
    def open(self) -> bool:
        return self._lost is None

    def silent_for(self) -> float:
        """Seconds since it said anything, while something is asked."""
        return asyncio.get_running_loop().time() - self._heard if self._calls else 0.0

    def send(self, commands: Sequence[bytes]) -> asyncio.Future[list[Reply]]:
        """Send commands; the future resolves with a reply to each, in order.

        Raises (from the future):
            EngineAway: the connection is lost; what was not answered may have been done or not.
        """
        call = _Call(len(commands))
        if self._lost is not None:
            call.future.set_exception(EngineAway(self._lost))
            call.future.exception()  # whoever does not wait for it is not told again
        elif not commands:
            call.future.set_result([])
        else:
            loop = asyncio.get_running_loop()
            if not self._out:
                loop.call_soon(self._flush)
            if not self._calls:
                self._heard, self._unheard = loop.time(), 0
            if self._check is None:
                self._check = loop.call_later(self._silence / _LOOKS, self._listen)
            self._out += commands
            self._calls.append(call)
        return call.future

    async def soon(self, commands: Sequence[bytes], patience: float | None = PATIENCE) -> list[Reply]:
        """Send commands and wait for their replies, but not for long.

        Args:
            commands: see :meth:`send`.
            patience: seconds; None: until the connection is given up.

        Raises:
            EngineAway: the connection is lost, or there was no reply in this time; see :meth:`send`.
        """
        try:
            async with asyncio.timeout(patience):
                return await self.send(commands)
        except TimeoutError:
            raise EngineAway(f"{self.name} has not answered for {patience:g} s") from None

    async def ask(self, command: bytes, patience: float | None = PATIENCE) -> Reply:
        """Send one command and wait for its reply; see :meth:`soon`."""
        [reply] = await self.soon([command], patience)
        return reply

    async def within(self, tube: bytes, command: bytes, patience: float | None = PATIENCE) -> Reply:
        """Send a command that is about the used tube; see :meth:`soon`.

        Raises:
            EngineAway: also when the tube can't be used, so that the reply is about another one.
        """
        using, reply = await self.soon([use(tube), command], patience)
        if using.word != b"USING":
            raise EngineAway(f"{self.name} says {using.word.decode('ascii', 'replace')} to use")
        return reply

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._lost is None and self._transport is not None:
            self._transport.write(b"".join(out))

    def _listen(self) -> None:
        """Give the connection up if it is silent."""
        self._check = None
        if not self._calls:
            return
        self._unheard += 1
        if self._unheard > _LOOKS:
            self._end(f"{self.name} did not answer in {self._silence:g} s")
        else:
            self._check = asyncio.get_running_loop().call_later(self._silence / _LOOKS, self._listen)

    def _end(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        if self._check is not None:
            self._check.cancel()
            self._check = None
        calls, self._calls = self._calls, deque()
        for call in calls:
            if not call.future.done():
                call.future.set_exception(EngineAway(reason))
                call.future.exception()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the connection: what is reserved on it becomes ready."""
        self._end(f"the connection to {self.name} was closed")


async def connect(host: str, port: int, timeout: float, silence: float = 10.0) -> Connection:
    """A new connection, to a server that answers: the system takes connections to one that is stopped, too.

    Args:
        host, port: of the server.
        timeout: seconds until it must have answered.
        silence: see :class:`Connection`.

    Raises:
        EngineAway: it cannot be reached, or does not answer.
    """
    name = f"beanstalkd at {host}:{port}"
    loop = asyncio.get_running_loop()
    made = Connection(name, silence)
    try:
        async with asyncio.timeout(timeout):
            await loop.create_connection(lambda: made, host, port)
            [reply] = await made.send([STATS])
    except TimeoutError:
        made.close()
        raise EngineAway(f"{name} did not answer in {timeout:g} s") from None
    except OSError as error:
        raise EngineAway(f"{name} cannot be reached: {error.strerror or error}") from None
    except BaseException:
        made.close()
        raise
    made.told = figures(reply.body)
    if not made.instance:
        made.close()
        raise EngineAway(f"{name} does not say who it is, but {reply.word.decode('ascii', 'replace')}")
    return made
