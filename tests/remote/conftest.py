"""Servers without handlers for the remote tests, and the workers that come to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.remote.support import Notes, Proxy, WorkerProcess
from tests.support import ServerProcess


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers, one at a time on the same data; stops what is left of them."""
    made: list[ServerProcess] = []

    def make(*args: str) -> ServerProcess:
        made.append(ServerProcess(tmp_path, args=args))
        return made[-1].start()

    try:
        yield make
        for one in made:
            one.stop()
    finally:
        for one in made:
            one.discard()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers in the test's folder; none is left behind."""
    made: list[WorkerProcess] = []

    def make(urls: str, *args: str, **more: object) -> WorkerProcess:
        new = WorkerProcess(tmp_path, urls, *args, **more)  # type: ignore[arg-type]
        made.append(new)
        return new

    try:
        yield make
    finally:
        for one in made:
            one.discard()


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


@pytest.fixture
def server(start: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of the test's own."""
    return start()


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Proxy]:
    """A relay before it."""
    made = Proxy(server.port)
    try:
        yield made
    finally:
        made.close()
