"""A real PostgreSQL for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kqs.testing.postgres import PostgresServer, binaries
from tests.conftest import unavailable


def postgres_server(*settings: str, address: str = "", within: str | None = None) -> PostgresServer:
    """One that is not started yet; the test is skipped where the programs are missing, and fails in CI.

    Args: see :class:`PostgresServer`.
    """
    if binaries() is None:
        unavailable("needs PostgreSQL's server programs (Debian package postgresql)")
    return PostgresServer(settings, address=address, within=within)


@contextmanager
def started(*settings: str, address: str = "") -> Iterator[PostgresServer]:
    """One that runs, for the length of a block."""
    server = postgres_server(*settings, address=address)
    try:
        server.start()
        yield server
    finally:
        server.close()
