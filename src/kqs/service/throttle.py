"""Makes guessing tokens slow: after some wrong ones an address is not heard for a while."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque

#: Wrong tokens that cost an address nothing but its connections.
FREE = 5
#: Seconds of the first pause; each further wrong token doubles it, up to LONGEST.
FIRST = 0.5
LONGEST = 30.0
#: Seconds without a wrong token after which an address begins anew.
FORGET = 600.0
#: Addresses remembered; the one whose last wrong token is oldest is forgotten first.
MOST = 10_000


class _Guesser:
    """What is known of one address."""

    __slots__ = ("last", "recent", "until", "wrong")

    def __init__(self) -> None:
        self.wrong = 0
        self.last = 0.0
        self.until = 0.0
        self.recent: deque[str] = deque(maxlen=8)


class Throttle:
    """Counts wrong tokens for each address.

    A wrong token that was given before is a mistake in somebody's settings, not a guess: it is not counted
    again, or one worker with an old token would lock out everybody at its address.

    Times are those of a monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self._guessers: OrderedDict[str, _Guesser] = OrderedDict()

    def pause(self, address: str | None, now: float) -> float:
        """Seconds until tokens from an address are looked at again; 0 when they are.

        Args:
            address: an IP address; None for a peer on the Unix socket, who is never held up.
            now: the time.
        """
        guesser = self._guessers.get(_network(address)) if address is not None else None
        return 0.0 if guesser is None else max(0.0, guesser.until - now)

    def wrong(self, address: str | None, sha256: str, now: float) -> float:
        """A wrong token came.

        Args:
            address, now: as for :meth:`pause`.
            sha256: its hash.

        Returns:
            Seconds for which no further token from there is looked at.
        """
        if address is None:
            return 0.0
        key = _network(address)
        guesser = self._guessers.get(key)
        if guesser is None or now - guesser.last > FORGET:
            guesser = self._guessers[key] = _Guesser()
        self._guessers.move_to_end(key)
        if len(self._guessers) > MOST:
            self._guessers.popitem(last=False)
        guesser.last = now
        if sha256 not in guesser.recent:
            guesser.recent.append(sha256)
            guesser.wrong += 1
            if guesser.wrong >= FREE:
                guesser.until = now + min(LONGEST, FIRST * 2.0 ** min(guesser.wrong - FREE, 32))
        return max(0.0, guesser.until - now)


def _network(address: str) -> str:
    """What one owner has: an IPv4 address, or the /64 network of an IPv6 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((ip, 64), strict=False))
        ip = ip.ipv4_mapped
    return str(ip)
