"""The load generator: calls made beforehand, pushed through sockets with a bounded number unanswered.

While the clock runs it only moves large buffers and counts newlines; what was answered is checked afterwards.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

READ = 256 * 1024


@dataclass
class Load:
    """What one connection sends.

    Attributes:
        data: all its calls, each of the same length.
        calls: how many.
        window: most calls unanswered at any time.
    """

    data: bytes
    calls: int
    window: int


class _Connection:
    def __init__(self, port: int, load: Load) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.replies: list[bytes] = []
        self.answered = 0
        self._load = load
        self._view = memoryview(load.data)
        self._length, rest = divmod(len(load.data), load.calls)
        assert rest == 0, "calls differ in length"
        self._sent = 0

    @property
    def done(self) -> bool:
        return self.answered >= self._load.calls

    def push(self) -> bool:
        """Send what the window allows; returns whether the socket is full."""
        load, length = self._load, self._length
        while True:
            end = min(self.answered + load.window, load.calls) * length
            # Not for a few calls: a window that opens bit by bit is used in good pieces.
            if end - self._sent < load.window * length // 4 and end < len(self._view):
                return False
            if end == self._sent:
                return False
            try:
                self._sent += self.socket.send(self._view[self._sent : end])
            except BlockingIOError:
                return True

    def pull(self) -> None:
        """Read replies and count them."""
        data = self.socket.recv(READ)
        if not data:
            raise SystemExit("the server closed the connection:\n" + repr(b"".join(self.replies)[-300:]))
        self.replies.append(data)
        self.answered += data.count(b"\n")


def run(port: int, loads: list[Load], check: Callable[[bytes], int]) -> float:
    """Send every load on a connection of its own, all at once.

    Args:
        port: of the server, on 127.0.0.1.
        loads: one a connection.
        check: given all replies of a connection, returns how many say that the call was done.

    Returns:
        Seconds from the first byte sent to the last reply.

    Raises:
        SystemExit: a call was not answered, or not with ok.
    """
    connections = [_Connection(port, load) for load in loads]
    poll = select.epoll() if hasattr(select, "epoll") else select.poll()
    by_fd = {connection.socket.fileno(): connection for connection in connections}
    both = select.POLLIN | select.POLLOUT
    waiting = dict.fromkeys(by_fd, both)
    for fd in by_fd:
        poll.register(fd, both)
    left = len(connections)
    begun = time.perf_counter()
    while left:
        for fd, events in poll.poll():
            connection = by_fd[fd]
            if events & ~select.POLLOUT:
                connection.pull()
            wanted = both if connection.push() else select.POLLIN
            if wanted != waiting[fd]:
                waiting[fd] = wanted
                poll.modify(fd, wanted)
            if connection.done:
                poll.unregister(fd)
                left -= 1
    seconds = time.perf_counter() - begun
    for connection, load in zip(connections, loads, strict=True):
        connection.socket.close()
        replies = b"".join(connection.replies)
        done = check(replies)
        if done != load.calls or replies.count(b"\n") != load.calls:
            raise SystemExit(f"{done} of {load.calls} calls were done; the last replies: {replies[-300:]!r}")
    return seconds
