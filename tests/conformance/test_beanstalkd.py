"""The engine over beanstalkd passes the cases it can; docs/guarantees.md says which it cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kqs.testing.beanstalkd import Beanstalkd, BeanstalkHarness
from kqs.testing.clock import VirtualClock
from kqs.testing.engines import EngineSuite, Queue


@pytest.mark.service("beanstalkd", "faketime")
class TestOnBeanstalkd(EngineSuite):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[BeanstalkHarness]:
        clock = VirtualClock()
        server = Beanstalkd(["-z", "8000000"], clock=clock)
        server.start()
        harness = BeanstalkHarness(server, clock)
        yield harness
        await harness.close()
        server.discard()

    async def test_a_lease_that_beanstalkd_ended_is_stale(self, queue: Queue) -> None:
        """Nobody rescued it in time: beanstalkd's own ttr is over, and the job is ready there."""
        id = await queue.put_one(ttr=10)
        late = await queue.take_one()
        assert [expired.receipt for expired in await queue.advance(20)] == [late.receipt]
        assert await queue.settle(late, "release") == "stale_receipt"
        second = await queue.take_one()
        assert (second.id, second.attempt) == (id, 2)
        await queue.advance(20)
        third = await queue.take_one(holder="another")
        assert await queue.settle(second) == "stale_receipt"
        assert await queue.engine.renew([second.receipt, third.receipt]) == ["lost", "renewed"]
        assert queue.engine.held_by("worker") == []
        assert await queue.settle(third) is None
        assert await queue.state(id) == "done"
