"""What the suite needs from who tests an engine, and the hands it tests with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, ClassVar

import msgspec
import pytest
import pytest_asyncio

from kqs.core.job import DEFAULT_TTR, NO_OPTIONS, PRIO_NUMBER, SECOND, JobOptions, NewJob, Unique
from kqs.core.outcome import Settlement
from kqs.core.retry import RetryPolicy
from kqs.ports import Engine, Expired, Lease


class EngineHarness(ABC):
    """Makes and restarts an engine on data of its own, and lets time pass for it.

    Attributes:
        slack: seconds the engine may be late with what time brings about. It may never be early.
        max_type_bytes: the longest job type it takes.
    """

    slack: float = 0.05
    max_type_bytes: int = 197

    @abstractmethod
    async def make_engine(self) -> Engine:
        """Open the engine on this harness's data: no jobs at first, later what was there when it closed."""

    @abstractmethod
    async def restart(self) -> Engine:
        """Close the engine as a server does that stops, and open it again on the same data."""

    @abstractmethod
    async def advance(self, seconds: float) -> None:
        """Let this much time pass for the engine."""

    @abstractmethod
    def now(self) -> int:
        """The engine's time, microseconds since 1970."""

    async def state(self, id: str) -> str:
        """A job's state, for an engine that cannot tell it."""
        pytest.skip("the engine has no inspect, and this harness cannot look either")

    async def crash(self) -> Engine:
        """Let what is being written come to rest, then kill the engine and open it again on the same data."""
        pytest.skip("this harness cannot kill its engine")

    def is_gone(self) -> bool:
        """Whether the server behind the engine has crashed: nothing can be tested with it any more."""
        return False

    @abstractmethod
    async def close(self) -> None:
        """Close the engine and remove its data. The engine may be closed already."""


def new_job(
    type: str = "t",
    data: bytes = b"null",
    *,
    binary: bool = False,
    prio: str = "normal",
    delay: float = 0,
    ttr: float = DEFAULT_TTR,
    max_attempts: int = 0,
    retry: RetryPolicy | None = None,
    expires: float = 0,
    result_ttl: float = 0,
    fair: str | None = None,
    key: str | None = None,
    unique: Unique | None = None,
) -> NewJob:
    """A valid job, with the defaults a caller gets."""
    options = JobOptions(
        max_attempts,
        retry,
        key=key,
        expires=round(expires * SECOND),
        result_ttl=round(result_ttl * SECOND),
        fair=fair,
        unique=unique,
    )
    if options == NO_OPTIONS:
        options = NO_OPTIONS
    return NewJob(type, data, binary, PRIO_NUMBER[prio], round(delay * SECOND), round(ttr * 1000), options)


class Queue:
    """Short forms of what the cases do all the time.

    Attributes:
        harness: the engine's.
        engine: the engine as it runs now; another one after a restart.
    """

    def __init__(self, harness: EngineHarness, engine: Engine) -> None:
        self.harness = harness
        self.engine = engine

    def require(self, capability: str) -> None:
        """Skip the case unless the engine has a capability."""
        if capability not in self.engine.capabilities:
            pytest.skip(f"the engine {self.engine.name} has no {capability}")

    async def put(self, *jobs: NewJob) -> list[str]:
        """Accept jobs in one batch; returns their ids."""
        inserted = await self.engine.put(jobs)
        assert len(inserted.ids) == len(jobs)
        assert inserted.duplicates == ()
        return inserted.ids

    async def put_one(self, *args: Any, **settings: Any) -> str:
        """Accept the job :func:`new_job` makes of the arguments; returns its id."""
        [id] = await self.put(new_job(*args, **settings))
        return id

    async def take(
        self, limit: int = 1, types: Collection[str] = (), *, holder: str = "worker", local: bool = False
    ) -> list[Lease]:
        """Lease up to ``limit`` jobs."""
        leases = await self.engine.reserve(types, limit, holder=holder, local=local)
        assert len(leases) <= limit
        return leases

    async def take_one(self, types: Collection[str] = (), **settings: Any) -> Lease:
        """Lease one job, which must be there."""
        leases = await self.take(1, types, **settings)
        assert len(leases) == 1, "no job is ready"
        return leases[0]

    async def take_ids(self, limit: int = 1000, types: Collection[str] = ()) -> list[str]:
        """Ids of all jobs that are ready, in the order they are given out."""
        return [lease.id for lease in await self.take(limit, types)]

    async def settle(self, lease: Lease | str, outcome: Any = "ok", **rest: Any) -> str | None:
        """Settle one lease; returns the code of the refusal, or None."""
        receipt = lease if isinstance(lease, str) else lease.receipt
        refused = await self.engine.settle([Settlement(receipt, outcome, **rest)])
        assert [refusal.index for refusal in refused] in ([], [0])
        return refused[0].code if refused else None

    async def advance(self, seconds: float) -> list[Expired]:
        """Let time pass and give the engine the turn it has then; returns the leases that are over."""
        await self.harness.advance(seconds)
        return await self.engine.tick()

    async def run_out(self, ttr: float) -> list[Expired]:
        """Let a whole ttr pass, and as much more as the engine may be late."""
        return await self.advance(ttr + self.harness.slack)

    async def restart(self, way: str = "restart") -> None:
        """Stop (``restart``) or kill (``crash``) the engine and start it again."""
        self.engine = await (self.harness.crash() if way == "crash" else self.harness.restart())

    async def reopen(self) -> None:
        """Start the engine again after the case closed it."""
        self.engine = await self.harness.make_engine()

    async def view(self, id: str, *, data: bool = False) -> dict[str, Any]:
        """A job as shown, as plain JSON values."""
        self.require("inspect")
        shown = await self.engine.job(id, data=data)
        decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(shown))
        return decoded

    async def state(self, id: str) -> str:
        """A job's state."""
        if "inspect" not in self.engine.capabilities:
            return await self.harness.state(id)
        state: str = (await self.engine.job(id))["state"]
        return state

    async def states(self, ids: Sequence[str]) -> list[str]:
        return [await self.state(id) for id in ids]

    async def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        counts: dict[str, int] = (await self.engine.stats())["jobs"]
        return counts

    async def everything(self) -> list[dict[str, Any]]:
        """All jobs that are not done, as shown, in id order."""
        self.require("inspect")
        found: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page, after = await self.engine.jobs(state=None, type=None, limit=100, after=after)
            found += page
            if after is None:
                return found


@pytest.mark.asyncio
class Cases:
    """Base of all cases.

    Attributes:
        needs: the capability that all cases of a class are about.
    """

    needs: ClassVar[str] = ""

    @pytest_asyncio.fixture
    async def queue(self, harness: EngineHarness, request: pytest.FixtureRequest) -> AsyncIterator[Queue]:
        """The engine under test, empty."""
        queue = Queue(harness, await harness.make_engine())
        [owner] = [cls for cls in type(self).__mro__ if request.function.__name__ in vars(cls)]
        if needs := vars(owner).get("needs"):
            queue.require(needs)
        yield queue
