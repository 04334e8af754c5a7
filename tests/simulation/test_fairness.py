"""Fair share, measured: the real scheduler under a virtual clock, with the figures of docs/fair-share.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from kqs.core.job import SECOND
from kqs.core.shares import Share
from kqs.testing.fairness import (
    CASES,
    MS,
    SCENARIOS,
    Order,
    Scenario,
    Tenant,
    always,
    heavy_tailed,
    jain,
    row,
    simulate,
)

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("order", "workers", "batch"), CASES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_worker_time_is_shared(name: str, order: Order, workers: int, batch: int) -> None:
    """Windows of at least 100 of the longest jobs in each lane, the very first one too."""
    scenario = SCENARIOS[name](workers, batch, order)
    report = simulate(scenario)
    assert sum(map(sum, report.windows)) == scenario.window * scenario.windows * workers
    line = row(name, report)
    text = (DOCS / "_fair-share.md").read_text(encoding="utf-8")
    assert line in text, "run: python -m kqs.testing.fairness > docs/_fair-share.md"
    if order == "fair":
        assert report.index() >= 0.99
        assert report.off() <= 0.02


def test_the_index() -> None:
    assert jain([5, 5, 5]) == 1
    assert jain([5, 0, 0, 0]) == 0.25


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_a_tenant_that_comes_back_gets_its_part_and_no_more(workers: int) -> None:
    """Ten seconds of work, a minute of nothing, and again as much."""
    jobs = 1000 * workers
    tenants = [
        Tenant("always", always(10 * MS), 100),
        Tenant("sometimes", always(10 * MS), once=[(0, jobs), (60 * SECOND, jobs)]),
    ]
    report = simulate(Scenario(tenants, 10 * SECOND, 9, workers))
    parts = [shares[1] for shares in report.shares()]
    assert parts == pytest.approx([0.5, 0.5, 0, 0, 0, 0, 0.5, 0.5, 0], abs=0.002)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_tenant_at_its_limit_keeps_no_worker_from_the_others(batch: int) -> None:
    tenants = [
        Tenant("limited", always(SECOND), 100, share=Share(concurrency=1)),
        Tenant("rare", always(20 * MS), 100, share=Share(rate=5.0)),
        Tenant("a", heavy_tailed(MS, 100 * MS), 100),
        Tenant("b", always(10 * MS), 100),
    ]
    report = simulate(Scenario(tenants, 50 * SECOND, 2, workers=8, batch=batch))
    for limited, rare, a, b in report.shares():
        assert limited + rare + a + b == pytest.approx(1)  # nobody was idle
        assert 0.9 / 8 <= limited <= 1 / 8
        assert rare == pytest.approx(5 * 0.02 / 8, rel=0.05)
        assert a == pytest.approx(b, rel=0.02)


def test_a_client_with_a_key_for_each_job_does_not_starve_the_others() -> None:
    """As many come as can be run; whoever waits besides makes their line longer, and its own part less."""
    once = [Tenant(str(number), always(10 * MS), once=[(number * 10 * MS, 1)]) for number in range(2000)]
    report = simulate(Scenario([Tenant("waits", always(10 * MS), 100), *once], 10 * SECOND, 2))
    assert all(times[0] >= 10 * 10 * MS for times in report.windows)


def test_the_same_each_time() -> None:
    scenario = Scenario([Tenant(name, heavy_tailed(MS, SECOND), 10) for name in "ab"], 100 * SECOND)
    first = simulate(scenario)
    assert first.windows == simulate(scenario).windows
    assert first.windows != simulate(Scenario(scenario.tenants, scenario.window, seed=2)).windows
