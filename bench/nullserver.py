"""nullserver.c where there is no C compiler: the least a server can do, in Python.

Usage: nullserver.py LINES SIZE, prints the port it listens on, ends when its stdin does.
"""

import asyncio
import sys


class Peer(asyncio.Protocol):
    """Answers one line of ``size`` bytes for every ``lines`` newlines."""

    def __init__(self, lines: int, size: int) -> None:
        self._lines = lines
        self._reply = b"x" * (size - 1) + b"\n"
        self._newlines = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        count, self._newlines = divmod(self._newlines + data.count(b"\n"), self._lines)
        self._transport.write(self._reply * count)


async def main(lines: int, size: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(lines, size), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
