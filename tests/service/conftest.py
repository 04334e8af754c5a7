"""Servers for tests, real processes: one of your own (``start``), one for a whole module (``shared``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import ServerProcess


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers (one at a time on the same data) in the test's folder; stops what is left of them."""
    made: list[ServerProcess] = []

    def make(config: str | None = "", *args: str, **env: str) -> ServerProcess:
        new = ServerProcess(tmp_path, config, args, env)
        made.append(new)
        return new.start()

    try:
        yield make
        for one in made:
            one.stop()
    finally:
        for one in made:
            one.discard()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for a module: no handlers of its own, so that types other than ping stay queued."""
    made = ServerProcess(tmp_path_factory.mktemp("shared"))
    try:
        yield made.start().wait_for_workers()
        made.stop()
    finally:
        made.discard()
