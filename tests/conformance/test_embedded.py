"""The embedded engine passes the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kqs.testing.embedded import RealHarness, SimulatedHarness
from kqs.testing.engines import EngineSuite


class TestOnASimulatedDisk(EngineSuite):
    """Without threads, with a virtual clock; a killed engine loses what the disk may lose."""

    @pytest.fixture
    async def harness(self) -> AsyncIterator[SimulatedHarness]:
        harness = SimulatedHarness(seed=1)
        yield harness
        await harness.close()


class TestOnARealDisk(EngineSuite):
    """With the thread and the file system the server uses."""

    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[RealHarness]:
        harness = RealHarness(str(tmp_path))
        yield harness
        await harness.close()
