"""Running seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from structlog.testing import capture_logs

from .simulation import Simulation


@dataclass
class Report:
    """What a seed came to.

    Attributes:
        seed: it.
        wrong: promises that were broken, in words; empty when all is well.
        trace: hash over everything that happened, in order.
        counts: figures, by name: lives, ends of lives and faults by kind, calls, jobs accepted, jobs lost.
        story: what happened, a line each, when it was asked for.
    """

    seed: int
    wrong: list[str]
    trace: str
    counts: Counter[str]
    story: list[str] = field(default_factory=list)


def run(seed: int, *, story: bool = False) -> Report:
    """Simulate one seed.

    Args:
        seed: an integer; the same one always gives the same run.
        story: keep what happened, a line each.
    """
    simulation = Simulation(seed, story=story)
    with capture_logs() as logs:
        simulation.logs = logs
        simulation.run()
    return Report(
        seed, simulation.book.wrong, simulation.trace.hexdigest(), simulation.counts, simulation.story
    )
