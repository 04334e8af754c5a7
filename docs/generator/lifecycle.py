"""The table and the diagram of docs/explanation/lifecycle.md, from core/lifecycle.py's TABLE.

The diagram is plain SVG: five boxes at fixed places and a quadratic curve for each pair of states that an
event connects. A state or a pair that has no place below raises, so that the picture can't leave one out.
"""

from __future__ import annotations

from typing import NamedTuple

from kqs.core.lifecycle import TABLE, Event, State, step


class Point(NamedTuple):
    x: float
    y: float


WIDTH, HEIGHT = 860, 510
BOX = Point(120, 44)
CENTRES = {
    State.DELAYED: Point(110, 140),
    State.READY: Point(430, 140),
    State.RESERVED: Point(750, 140),
    State.BURIED: Point(430, 320),
    State.DONE: Point(430, 475),
}
#: Where the curve between two states bends to, and where along it its label stands (0..1).
BENDS = {
    (State.DELAYED, State.READY): (Point(270, 140), 0.5),
    (State.DELAYED, State.BURIED): (Point(270, 230), 0.5),
    (State.DELAYED, State.DONE): (Point(60, 450), 0.5),
    (State.READY, State.RESERVED): (Point(590, 80), 0.5),
    (State.READY, State.BURIED): (Point(385, 230), 0.5),
    (State.READY, State.DONE): (Point(620, 305), 0.76),
    (State.RESERVED, State.READY): (Point(590, 200), 0.5),
    (State.RESERVED, State.DELAYED): (Point(430, -70), 0.5),
    (State.RESERVED, State.BURIED): (Point(600, 230), 0.3),
    (State.RESERVED, State.DONE): (Point(800, 450), 0.5),
    (State.BURIED, State.READY): (Point(475, 230), 0.5),
    (State.BURIED, State.DONE): (Point(430, 400), 0.5),
}
#: How a job comes into being: into which state, and what the arrow says.
ENTRIES = {State.READY: "insert", State.DELAYED: "insert with a delay"}

_NOTE = "<!-- Made by docs/generate.py from src/kqs/core/lifecycle.py. Do not edit. -->\n"


def edges() -> dict[tuple[State, State], list[str]]:
    """The names of the events between two states, in table order."""
    found: dict[tuple[State, State], list[str]] = {}
    for (state, event), after in TABLE.items():
        name = event.name.lower()
        found.setdefault((state, after), []).append(name)
        later = step(state, event, delayed=True)
        if later is not after:
            found.setdefault((state, later), []).append(name)
    return found


def table() -> str:
    """States down, events across: the state that follows."""
    events = list(dict.fromkeys(event for _, event in TABLE))
    lines = [
        _NOTE,
        f"| state | {' | '.join(f'`{event.name.lower()}`' for event in events)} |",
        f"| --- |{' --- |' * len(events)}",
    ]
    for state in State:
        cells = (_cell(state, event) for event in events)
        lines.append(f"| **{state.name.lower()}** | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(state: State, event: Event) -> str:
    after = TABLE.get((state, event))
    if after is None:
        return ""
    later = step(state, event, delayed=True)
    text = after.name.lower()
    return text if later is after else f"{text}, {later.name.lower()} if due later"


def diagram() -> str:
    """The diagram as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="15">',
        "<title>States of a job and the events between them</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 10 5 0 10z" fill="#555"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>',
    ]
    found = {pair: names for pair, names in edges().items() if pair[0] is not pair[1]}  # cancel: no arrow
    parts += [_curve(pair) for pair in found]
    parts += [_label(pair, ", ".join(names)) for pair, names in found.items()]
    parts += [_entry(state, text) for state, text in ENTRIES.items()]
    parts += [_box(state) for state in State]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _curve(pair: tuple[State, State]) -> str:
    """The visible part of the curve between two boxes, with an arrow's tip at its end."""
    start, end = CENTRES[pair[0]], CENTRES[pair[1]]
    bend, _ = BENDS[pair]
    steps = [number / 400 for number in range(401)]
    first = next(t for t in steps if not _inside(_at(start, bend, end, t), start))
    last = next(t for t in reversed(steps) if not _inside(_at(start, bend, end, t), end))
    # The part between two parameters of a quadratic curve is one again, with this control point.
    control = _mix(_mix(start, bend, first), _mix(bend, end, first), last)
    a, b = _at(start, bend, end, first), _at(start, bend, end, last)
    path = f"M{a.x:.0f} {a.y:.0f}Q{control.x:.0f} {control.y:.0f} {b.x:.0f} {b.y:.0f}"
    return f'<path d="{path}" fill="none" stroke="#555" stroke-width="1.5" marker-end="url(#tip)"/>'


def _label(pair: tuple[State, State], text: str) -> str:
    bend, place = BENDS[pair]
    at = _at(CENTRES[pair[0]], bend, CENTRES[pair[1]], place)
    if pair == (State.RESERVED, State.DELAYED):
        text += " (due later)"
    halo = 'stroke="#fff" stroke-width="6" stroke-linejoin="round" paint-order="stroke"'
    return f'<text x="{at.x:.0f}" y="{at.y + 5:.0f}" text-anchor="middle" fill="#222" {halo}>{text}</text>'


def _entry(state: State, text: str) -> str:
    x, end = CENTRES[state].x - 20, CENTRES[state].y - BOX.y / 2 - 3
    return (
        f'<path d="M{x:.0f} {end - 34:.0f}V{end:.0f}" fill="none" stroke="#2a5db0" stroke-width="1.5" '
        f'marker-end="url(#tip)"/>'
        f'<text x="{x:.0f}" y="{end - 40:.0f}" text-anchor="middle" fill="#1b3d75">{text}</text>'
    )


def _box(state: State) -> str:
    x, y = CENTRES[state].x - BOX.x / 2, CENTRES[state].y - BOX.y / 2
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX.x}" height="{BOX.y}" rx="6" '
        f'fill="#eef3fb" stroke="#2a5db0"/>'
        f'<text x="{CENTRES[state].x:.0f}" y="{CENTRES[state].y + 5:.0f}" text-anchor="middle" '
        f'font-weight="bold" fill="#1b3d75">{state.name.lower()}</text>'
    )


def _mix(a: Point, b: Point, t: float) -> Point:
    return Point(a.x + (b.x - a.x) * t, a.y + (b.y - a.y) * t)


def _at(start: Point, bend: Point, end: Point, t: float) -> Point:
    """A point of a quadratic curve."""
    return _mix(_mix(start, bend, t), _mix(bend, end, t), t)


def _inside(point: Point, centre: Point) -> bool:
    """Whether a point lies in the box around a centre, or close to it."""
    return abs(point.x - centre.x) < BOX.x / 2 + 3 and abs(point.y - centre.y) < BOX.y / 2 + 3
