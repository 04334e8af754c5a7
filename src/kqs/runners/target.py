"""Where the requests of an HTTP handler may go.

The URL comes from the config, but the addresses its name stands for come from whoever runs that name's DNS.
So that nobody there can point it at this machine, its neighbours or a cloud's metadata service (server-side
request forgery), a name is resolved here, and requests go to an address that was checked: there is no second
look-up that could answer something else (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

import httpx

from ..errors import ConfigError, KQSError

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: The only part of IPv6 that is routed publicly (RFC 4291, section 2.4, and IANA's registry).
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
#: IPv4 addresses inside IPv6 ones, as NAT64 translates them (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class NotAllowed(KQSError):
    """A name stands for no address that requests may go to."""


class Target:
    """One URL and the addresses behind it.

    Args:
        url: ``http`` or ``https``, without user and password.
        allow: host names, addresses and networks that may be called although they are not public. A name is
            trusted with every address it stands for.

    Raises:
        ConfigError: it is no such URL, or its address is not public and not in ``allow``.

    Attributes:
        netloc: host and port as they stand in the URL.
    """

    def __init__(self, url: str, allow: Iterable[str] = ()) -> None:
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{url!r} is no URL: {error}") from None
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ConfigError(f"{url!r} does not begin with https://HOST or http://HOST")
        if self._url.userinfo:
            raise ConfigError("user and password in the URL are not sent; use a secret, which signs requests")
        self.netloc = self._url.netloc.decode()
        self._host = self._url.raw_host.decode()
        self._port = (
            {"http": 80, "https": 443}[self._url.scheme] if self._url.port is None else self._url.port
        )
        if not 0 < self._port < 65536:
            raise ConfigError(f"{self._port} is no port")
        self._names, self._networks = _split(allow)
        self._literal = _address(self._host)
        if self._literal is not None and not self._may(self._literal):
            raise ConfigError(
                f"{self._host} is not a public address; if it is meant, add it to http.allow_private"
            )

    async def addresses(self) -> list[str]:
        """Addresses to try in this order, at least one; the name is resolved now.

        Raises:
            OSError, UnicodeError: it cannot be resolved.
            NotAllowed: none of its addresses may be called.
        """
        if self._literal is not None:
            return [self._host]
        found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        texts = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        good = [text for text in texts if (address := _address(text)) is not None and self._may(address)]
        if not good:
            raise NotAllowed(
                f"{self._host} stands for {', '.join(texts)}: no public address; "
                "if that is meant, add it to http.allow_private"
            )
        return good

    def request(self, address: str, headers: dict[str, str], body: bytes, connect: float) -> httpx.Request:
        """A POST that goes to this address; for the server, and for TLS, it is one to the name.

        Args:
            address: one of :meth:`addresses`.
            headers, body: what is sent.
            connect: most seconds until the connection stands.
        """
        extensions: dict[str, Any] = {"timeout": {"connect": connect}}
        if self._literal is None:
            extensions["sni_hostname"] = self._host
        return httpx.Request(
            "POST",
            self._url.copy_with(host=address),
            headers={**headers, "Host": self.netloc},
            content=body,
            extensions=extensions,
        )

    def _may(self, address: _Address) -> bool:
        if self._host in self._names or is_public(address):
            return True
        forms = (address, _inner(address))
        return any(form in network for form in forms if form is not None for network in self._networks)


def is_public(address: _Address) -> bool:
    """Whether an address is one of the public internet: not private, local, multicast or reserved."""
    inner = _inner(address)
    if inner is not None:
        return is_public(inner)
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_V6:
        return False
    return address.is_global and not address.is_multicast


def _inner(address: _Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that one of IPv6 leads to (mapped, 6to4, NAT64), or None."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _split(
    allow: Iterable[str],
) -> tuple[set[str], list[ipaddress.IPv4Network | ipaddress.IPv6Network]]:
    """Names, in lower case, and networks; an address is a network of one."""
    names: set[str] = set()
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for text in allow:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            names.add(text.lower())
    return names, networks
