"""The conformance suite every engine passes: what :class:`kqs.ports.Engine` means, as tests.

To test an engine, write an :class:`EngineHarness` for it and, in a test module::

    from kqs.testing.engines import EngineSuite

    class TestMyEngine(EngineSuite):
        @pytest_asyncio.fixture
        async def harness(self):
            harness = MyHarness()
            yield harness
            await harness.close()

The cases are split by verb: ``put reserve settle renew rescue control cancel pause
expiry results unique cron watch fair why inspect time restart``. A case that
needs a capability the engine does not declare is skipped. ``kqs.testing.engine_machine`` goes further, with
random operations against a model.
"""

import pytest

_PARTS = (
    *("harness", "cancel", "control", "cron", "expiry", "fair", "inspect", "pause", "put", "renew"),
    *("rescue", "reserve", "restart", "results", "settle", "time", "unique", "watch", "why"),
)
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from .cancel import CancelCases  # noqa: E402
from .control import ControlCases  # noqa: E402
from .cron import CronCases  # noqa: E402
from .expiry import ExpiryCases  # noqa: E402
from .fair import FairCases  # noqa: E402
from .harness import EngineHarness, Queue, new_job  # noqa: E402
from .inspect import InspectCases  # noqa: E402
from .pause import PauseCases  # noqa: E402
from .put import PutCases  # noqa: E402
from .renew import RenewCases  # noqa: E402
from .rescue import RescueCases  # noqa: E402
from .reserve import ReserveCases  # noqa: E402
from .restart import RestartCases  # noqa: E402
from .results import ResultCases  # noqa: E402
from .settle import SettleCases  # noqa: E402
from .time import TimeCases  # noqa: E402
from .unique import UniqueCases  # noqa: E402
from .watch import WatchCases  # noqa: E402
from .why import WhyCases  # noqa: E402


class EngineSuite(
    PutCases,
    ReserveCases,
    SettleCases,
    RenewCases,
    RescueCases,
    ControlCases,
    CancelCases,
    PauseCases,
    ExpiryCases,
    ResultCases,
    UniqueCases,
    CronCases,
    WatchCases,
    FairCases,
    WhyCases,
    InspectCases,
    TimeCases,
    RestartCases,
):
    """All cases. A subclass named ``Test..`` gives the fixture ``harness``."""


__all__ = ["EngineHarness", "EngineSuite", "Queue", "new_job"]
