"""A peer, a client of it, and no settings from the environment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from kqs import App, AsyncClient, Client

from .peer import PATIENCE, Peer


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KQS_URL", raising=False)
    monkeypatch.delenv("KQS_TOKEN", raising=False)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


@pytest.fixture
def client(peer: Peer) -> Iterator[Client]:
    with Client(peer.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
async def aio(peer: Peer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(peer.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def app() -> App:
    """Declares jobs; nobody listens at its server."""
    return App("kqs://127.0.0.1:1")
