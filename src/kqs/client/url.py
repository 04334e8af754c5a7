"""Server addresses: ``kqs://host:port``, ``kqss://host:port`` (TLS) and ``kqs+unix:PATH``."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import parse_qsl

from ..errors import ConfigError

DEFAULT_PORT = 14151
DEFAULT_URL = f"kqs://127.0.0.1:{DEFAULT_PORT}"


class Tls(NamedTuple):
    """Files a TLS connection needs, PEM.

    Attributes:
        ca: roots the server's certificate is checked against; empty for the system's.
        cert: this client's certificate; empty for none.
        key: its private key; empty when it is in the file of ``cert``.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""


class Address(NamedTuple):
    """Where a server listens: a path of a Unix socket, or host and port.

    Attributes:
        path: of a Unix socket, or None.
        host, port: when there is no path.
        tls: how to check and show certificates; None for a connection without TLS.
    """

    path: str | None
    host: str
    port: int
    tls: Tls | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"kqs+unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'kqs' if self.tls is None else 'kqss'}://{host}:{self.port}"


def parse(url: str | None = None) -> list[Address]:
    """The addresses of a URL list.

    ``kqss://HOST:PORT?ca=FILE&cert=FILE&key=FILE`` is TLS; what is left out comes from ``KQS_CA``,
    ``KQS_CERT`` and ``KQS_KEY``.

    Args:
        url: as above; None for the environment's ``KQS_URL``, or ``kqs://127.0.0.1:14151``.

    Raises:
        ConfigError: it can't be read; says which part and why.
    """
    return [_parse_one(part) for part in split(url)]


def split(url: str | None = None) -> list[str]:
    """The URLs of a list, one for each server.

    Args:
        url: as for :func:`parse`.
    """
    text = url or os.environ.get("KQS_URL") or DEFAULT_URL
    return [part.strip() for part in text.split(",") if part.strip()] or [DEFAULT_URL]


def _parse_one(url: str) -> Address:
    if url.startswith("kqs+unix:"):
        path = url.removeprefix("kqs+unix:").removeprefix("//")
        if not path:
            raise ConfigError(f"{url!r}: kqs+unix: needs a path")
        return Address(path, "", 0)
    if url.startswith("kqss://"):
        where, _, options = url.removeprefix("kqss://").partition("?")
        return Address(None, *_host_and_port(where, url), _tls(options, url))
    if url.startswith("kqs://"):
        return Address(None, *_host_and_port(url.removeprefix("kqs://"), url))
    raise ConfigError(f"{url!r} is not kqs://HOST:PORT, kqss://HOST:PORT or kqs+unix:PATH")


def _host_and_port(where: str, url: str) -> tuple[str, int]:
    scheme = url.partition("://")[0]
    where = where.rstrip("/")
    if where.startswith("["):
        host, bracket, port = where[1:].partition("]")
        if not bracket:
            raise ConfigError(f"{url!r}: the IPv6 address is not closed with ]")
        if port and not port.startswith(":"):
            raise ConfigError(f"{url!r} is not {scheme}://[ADDRESS]:PORT")
        port = port.removeprefix(":")
    else:
        host, _, port = where.partition(":")
    if (
        not host
        or "?" in host
        or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536))
    ):
        raise ConfigError(f"{url!r} is not {scheme}://HOST:PORT")
    return host, int(port or DEFAULT_PORT)


def _tls(options: str, url: str) -> Tls:
    files = {name: os.environ.get(f"KQS_{name.upper()}", "") for name in Tls._fields}
    for name, value in parse_qsl(options, keep_blank_values=True):
        if name not in files:
            raise ConfigError(f"{url!r}: there is no option {name!r}, only {', '.join(Tls._fields)}")
        files[name] = value
    if files["key"] and not files["cert"]:
        raise ConfigError(
            f"{url!r}: there is a key (KQS_KEY) without its certificate; give cert, or KQS_CERT"
        )
    return Tls(**files)
