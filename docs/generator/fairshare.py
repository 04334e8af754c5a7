"""The plot of docs/fair-share.md: who has the workers over time, from the simulation in kqs.testing.fairness.

Plain SVG: two panels, one for each order, with the tenants' parts of the worker time stacked.
"""

from __future__ import annotations

from functools import cache

from kqs.core.job import SECOND
from kqs.testing.fairness import MS, Order, Scenario, Tenant, always, simulate

#: Name, colour, and what the legend says.
TENANTS = [
    (Tenant("A", always(10 * MS), once=[(0, 1_000_000)]), "#8fb3e3", "A: 1,000,000 jobs of 10 ms"),
    (Tenant("B", always(200 * MS), once=[(10 * SECOND, 1_000)]), "#e8a33d", "B: 1,000 jobs of 200 ms"),
    (
        Tenant("C", always(SECOND), once=[(20 * SECOND, 10), (50 * SECOND, 10)]),
        "#3f8f5f",
        "C: twice 10 jobs of 1 s",
    ),
]
WORKERS = 8
SECONDS = 80

WIDTH, LEFT, PLOT, HIGH = 860, 70, 760, 150
TOPS: dict[Order, int] = {"fifo": 96, "fair": 316}
TITLES: dict[Order, str] = {
    "fifo": 'order = "fifo": the oldest first, so B and C wait until A\'s {minutes} minutes of work are done',
    "fair": 'order = "fair": each tenant that has jobs waiting gets the same',
}
HEIGHT = 520


@cache
def plot() -> str:
    """The plot as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="title desc" font-family="sans-serif" font-size="14" fill="#222">',
        '<title id="title">Worker time of three tenants over time, first in first out and fair</title>',
        f'<desc id="desc">{_words()}</desc>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>',
    ]
    for at, (_tenant, colour, text) in enumerate(TENANTS):
        x = LEFT + at * 262
        parts.append(f'<rect x="{x}" y="22" width="16" height="16" fill="{colour}"/>')
        parts.append(f'<text x="{x + 22}" y="35">{text}</text>')
    for order, top in TOPS.items():
        parts += _panel(order, top)
    middle = LEFT + PLOT / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 14}" text-anchor="middle">seconds</text>')
    for top in TOPS.values():
        turned = f'transform="translate(22 {top + HIGH / 2:.0f}) rotate(-90)"'
        parts.append(f'<text {turned} text-anchor="middle">worker time</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _words() -> str:
    return (
        f"{WORKERS} workers. First in first out: tenant A, which came first, with a million jobs, has all "
        "workers all the time. Fair: A has all while it is alone, half beside B, and a third beside B and C."
    )


def _panel(order: Order, top: int) -> list[str]:
    """The shares in one order, stacked, as steps of a second."""
    scenario = Scenario([tenant for tenant, _, _ in TENANTS], SECOND, SECONDS, WORKERS, order=order)
    shares = simulate(scenario).shares()
    minutes = round(1_000_000 * 10 * MS / WORKERS / SECOND / 60)
    title = TITLES[order].format(minutes=minutes)
    parts = [f'<text x="{LEFT}" y="{top - 12}" font-weight="bold">{title}</text>']
    below = [0.0] * SECONDS
    for number, (_tenant, colour, _text) in enumerate(TENANTS):
        above = [low + share[number] for low, share in zip(below, shares, strict=True)]
        if above != below:
            parts.append(f'<path d="{_area(below, above, top)}" fill="{colour}"/>')
        below = above
    for part in (0, 1 / 3, 1 / 2, 1):
        y = _y(part, top)
        label = {0: "0", 1 / 3: "1/3", 1 / 2: "1/2", 1: "all"}[part]
        parts.append(f'<path d="M{LEFT} {y}h{PLOT}" stroke="#222" stroke-width="0.5" stroke-opacity="0.5"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 5}" text-anchor="end">{label}</text>')
    for second in range(0, SECONDS + 1, 10):
        x = _x(second)
        parts.append(f'<path d="M{x} {top + HIGH}v5" stroke="#222"/>')
        parts.append(f'<text x="{x}" y="{top + HIGH + 20}" text-anchor="middle">{second}</text>')
    return parts


def _area(below: list[float], above: list[float], top: int) -> str:
    steps = [*enumerate(above), *((at + 1, part) for at, part in reversed(list(enumerate(below))))]
    path, last = f"M{LEFT} {_y(0, top)}", 0.0
    for at, part in steps:
        if (y := _y(part, top)) != last:
            path += f"H{_x(at)}V{y}"
        last = y
    return f"{path}H{LEFT}Z"


def _x(second: int) -> str:
    return f"{LEFT + PLOT * second / SECONDS:g}"


def _y(part: float, top: int) -> float:
    return round(top + HIGH * (1 - part), 1)
