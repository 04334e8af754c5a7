"""Server addresses: ``kqs://host:port``, ``kqs+unix:PATH``, several separated by commas."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import ConfigError

DEFAULT_PORT = 14151
DEFAULT_URL = f"kqs://127.0.0.1:{DEFAULT_PORT}"


class Address(NamedTuple):
    """Where a server listens: a path of a Unix socket, or host and port."""

    path: str | None
    host: str
    port: int

    def __str__(self) -> str:
        if self.path is not None:
            return f"kqs+unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"kqs://{host}:{self.port}"


def parse(url: str | None = None) -> list[Address]:
    """The addresses of a URL list.

    Args:
        url: as above; None for the environment's ``KQS_URL``, or ``kqs://127.0.0.1:14151``.

    Raises:
        ConfigError: it can't be read; says which part and why.
    """
    text = url or os.environ.get("KQS_URL") or DEFAULT_URL
    return [_parse_one(part.strip()) for part in text.split(",") if part.strip()] or [_parse_one(DEFAULT_URL)]


def _parse_one(url: str) -> Address:
    if url.startswith("kqs+unix:"):
        path = url.removeprefix("kqs+unix:").removeprefix("//")
        if not path:
            raise ConfigError(f"{url!r}: kqs+unix: needs a path")
        return Address(path, "", 0)
    if url.startswith("kqss://"):
        raise ConfigError(
            f"{url!r}: this version has no TLS; use kqs:// on this machine or a trusted network"
        )
    if not url.startswith("kqs://"):
        raise ConfigError(f"{url!r} is not kqs://HOST:PORT or kqs+unix:PATH")
    rest = url.removeprefix("kqs://").rstrip("/")
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket:
            raise ConfigError(f"{url!r}: the IPv6 address is not closed with ]")
        if port and not port.startswith(":"):
            raise ConfigError(f"{url!r} is not kqs://[ADDRESS]:PORT")
        port = port.removeprefix(":")
    else:
        host, _, port = rest.partition(":")
    if not host or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)):
        raise ConfigError(f"{url!r} is not kqs://HOST:PORT")
    return Address(None, host, int(port or DEFAULT_PORT))
