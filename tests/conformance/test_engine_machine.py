"""The embedded engine does what the model does, whatever the operations (T2)."""

from __future__ import annotations

import tempfile

from hypothesis import settings

from kqs.testing.embedded import RealHarness, SimulatedHarness
from kqs.testing.engine_machine import engine_machine

#: 300 examples in the default profile, ten times as many in a longer one.
EXAMPLES = min(3 * settings().max_examples, 3000)


class _TemporaryHarness(RealHarness):
    """Brings its own directory."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kqs-machine-")
        super().__init__(self._folder.name)

    async def close(self) -> None:
        await super().close()
        self._folder.cleanup()


TestOnASimulatedDisk = engine_machine(SimulatedHarness, examples=EXAMPLES)
TestOnARealDisk = engine_machine(_TemporaryHarness, examples=max(1, EXAMPLES // 20))
