"""The protocol of beanstalkd, as bytes: commands to send, and replies taken apart. No I/O.

Source: doc/protocol.txt of beanstalkd 1.12. A command and a reply are a line that ends with CR LF; ``put``
and some replies are followed by a body, whose length stands last in the line, and another CR LF.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: The longest line a server sends; anything longer is not beanstalkd's.
MAX_LINE: Final = 1024
#: The largest body taken. Servers may be started with up to 1 GiB (``-z``).
MAX_BODY: Final = 1 << 30
#: Replies that are followed by a body.
_WITH_BODY: Final = frozenset({b"RESERVED", b"FOUND", b"OK"})

LIST_TUBES: Final = b"list-tubes\r\n"
STATS: Final = b"stats\r\n"
#: Reserve what is ready now, or nothing.
RESERVE: Final = b"reserve-with-timeout 0\r\n"


class Reply(NamedTuple):
    """One reply.

    Attributes:
        word: its first word: INSERTED, RESERVED, NOT_FOUND ..
        number: the first argument, where that is a number; else 0.
        body: what follows the line, if anything does.
    """

    word: bytes
    number: int = 0
    body: bytes = b""


class NotBeanstalkd(Exception):
    """These bytes are no reply of beanstalkd."""


class Replies:
    """Takes bytes as they come and gives the replies that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0
        self._head: tuple[bytes, int, int] | None = None  # of a reply whose body is not all there

    def feed(self, data: bytes) -> list[Reply]:
        """More bytes.

        Raises:
            NotBeanstalkd: the connection can't be used any more.
        """
        buffer = self._buffer
        buffer += data
        at, replies = self._start, []
        while True:
            if self._head is None:
                end = buffer.find(b"\r\n", at)
                if end < 0:
                    if len(buffer) - at > MAX_LINE:
                        raise NotBeanstalkd("a reply's line is too long")
                    break
                words = bytes(buffer[at:end]).split(b" ")
                at = end + 2
                if words[0] not in _WITH_BODY:
                    replies.append(Reply(words[0], _number(words[1]) if len(words) > 1 else 0))
                    continue
                number = _number(words[1]) if len(words) > 2 else 0
                size = _number(words[-1]) if len(words) > 1 else -1
                if not 0 <= size <= MAX_BODY:
                    raise NotBeanstalkd(f"a reply has an impossible size: {words!r}")
                self._head = (words[0], number, size)
            word, number, size = self._head
            end = at + size
            if len(buffer) < end + 2:
                break
            if buffer[end : end + 2] != b"\r\n":
                raise NotBeanstalkd("a reply's body does not end where it should")
            replies.append(Reply(word, number, bytes(buffer[at:end])))
            at, self._head = end + 2, None
        if at > 65536 or at == len(buffer):
            del buffer[:at]
            at = 0
        self._start = at
        return replies


def _number(word: bytes) -> int:
    """A decimal number, or -1 where there is none (KICKED and FOUND have nothing else there)."""
    return int(word) if word.isdigit() and len(word) < 20 else -1


def put(priority: int, delay: int, ttr: int, body: bytes) -> bytes:
    """Insert into the used tube.

    Args:
        priority: 0 .. 2**32 - 1, lower first.
        delay, ttr: seconds.
        body: the job.
    """
    return b"put %d %d %d %d\r\n%b\r\n" % (priority, delay, ttr, len(body), body)


def use(tube: bytes) -> bytes:
    """What is put goes into this tube from now on."""
    return b"use %b\r\n" % tube


def watch(tube: bytes) -> bytes:
    """Reserve from this tube, too."""
    return b"watch %b\r\n" % tube


def ignore(tube: bytes) -> bytes:
    """Reserve from this tube no more."""
    return b"ignore %b\r\n" % tube


def delete(id: int) -> bytes:
    """Remove a job."""
    return b"delete %d\r\n" % id


def release(id: int, priority: int, delay: int) -> bytes:
    """Give a reserved job back."""
    return b"release %d %d %d\r\n" % (id, priority, delay)


def bury(id: int, priority: int) -> bytes:
    """Park a reserved job."""
    return b"bury %d %d\r\n" % (id, priority)


def touch(id: int) -> bytes:
    """Start the ttr of a reserved job anew."""
    return b"touch %d\r\n" % id


def kick(bound: int) -> bytes:
    """Bring back jobs of the used tube: buried ones, or if there are none delayed ones."""
    return b"kick %d\r\n" % bound


def kick_job(id: int) -> bytes:
    """Bring back a buried or delayed job."""
    return b"kick-job %d\r\n" % id


def peek(state: str) -> bytes:
    """Look at the next job of the used tube that is ``ready``, ``delayed`` or ``buried``."""
    return b"peek-%b\r\n" % state.encode()


def stats_job(id: int) -> bytes:
    """Figures of a job."""
    return b"stats-job %d\r\n" % id


def stats_tube(tube: bytes) -> bytes:
    """Figures of a tube."""
    return b"stats-tube %b\r\n" % tube


def figures(body: bytes) -> dict[str, str]:
    """The YAML dictionary of a ``stats`` reply: flat, its values bare or in double quotes."""
    found = {}
    for line in body.decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition(": ")
        if colon:
            found[name] = value.strip('"')
    return found


def figure(body: bytes, name: bytes) -> int:
    """One number of a ``stats`` reply, without taking all of it apart; 0 when it is not there."""
    at = body.find(b"\n%b: " % name)
    if at < 0:
        return 0
    start = at + len(name) + 3
    return max(0, _number(body[start : body.find(b"\n", start)]))


class About(NamedTuple):
    """What ``stats-job`` says of a job, as far as it is wanted here; seconds."""

    tube: bytes
    priority: int
    age: int
    ttr: int
    reserves: int


_ABOUT: Final = re.compile(
    rb'\ntube: "?([^"\n]*)"?\nstate: \w+\npri: (\d+)\nage: (\d+)\ndelay: \d+\nttr: (\d+)\n'
    rb"time-left: \d+\nfile: \d+\nreserves: (\d+)\n"
)


def about(body: bytes) -> About:
    """A ``stats-job`` reply; one look at it where the figures stand as in 1.12 and 1.13."""
    found = _ABOUT.search(body)
    if found is not None:
        tube, priority, age, ttr, reserves = found.groups()
        return About(tube, int(priority), int(age), int(ttr), int(reserves))
    numbers = (figure(body, name) for name in (b"pri", b"age", b"ttr", b"reserves"))
    return About(figures(body).get("tube", "").encode(), *numbers)


def names(body: bytes) -> list[bytes]:
    """The YAML list of a ``list-tubes`` reply."""
    return [line[2:] for line in body.split(b"\n") if line.startswith(b"- ")]
