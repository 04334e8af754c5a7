"""The engine over beanstalkd does what the model does, as far as it can (T2); see docs/guarantees.md.

beanstalkd 1.12 itself crashes in some of the examples (a memory error when connections that hold jobs are
closed and its time goes on); such an example ends there.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from kqs.testing.beanstalkd import Beanstalkd, BeanstalkHarness
from kqs.testing.clock import VirtualClock
from kqs.testing.engine_machine import engine_machine

pytestmark = pytest.mark.service("beanstalkd", "faketime")


class _OwnServer(BeanstalkHarness):
    """Brings a beanstalkd of its own."""

    def __init__(self) -> None:
        clock = VirtualClock()
        self._own = Beanstalkd(["-z", "8000000"], clock=clock)
        self._own.start()
        super().__init__(self._own, clock)

    def is_gone(self) -> bool:
        return self._own.process is not None and self._own.process.poll() is not None

    async def close(self) -> None:
        await super().close()
        self._own.discard()


TestOnBeanstalkd = engine_machine(_OwnServer, examples=max(1, 3 * settings().max_examples // 10), steps=30)
