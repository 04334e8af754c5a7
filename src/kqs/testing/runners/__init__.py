"""The conformance suite every runner passes: what the runner ports of :mod:`kqs.ports` mean, as tests.

To test a runner, write a :class:`RunnerHarness` for it and, in a test module::

    from kqs.testing.runners import RunnerSuite

    class TestMyRunner(RunnerSuite):
        @pytest.fixture
        def harness(self, tmp_path):
            harness = MyHarness(tmp_path)
            yield harness
            harness.close()

The harness makes runners of handlers that behave in one way each, see :data:`Behaviour`. Runners of both
ports take the same cases.
"""

import pytest

_PARTS = ("harness", "ending", "outcomes", "payloads", "results")
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from .ending import EndingCases  # noqa: E402
from .harness import AnyRunner, Behaviour, EventLoop, RunnerHarness, Running, new_job, runs_async  # noqa: E402
from .outcomes import OutcomeCases  # noqa: E402
from .payloads import PayloadCases  # noqa: E402
from .results import ResultCases  # noqa: E402


class RunnerSuite(OutcomeCases, PayloadCases, ResultCases, EndingCases):
    """All cases. A subclass named ``Test..`` gives the fixture ``harness``."""


__all__ = [
    "AnyRunner",
    "Behaviour",
    "EventLoop",
    "RunnerHarness",
    "RunnerSuite",
    "Running",
    "new_job",
    "runs_async",
]
