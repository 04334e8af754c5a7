"""Who is told of what happens to jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...ports import JobEvent

Listener = Callable[[JobEvent], None]


class Watchers:
    """Listeners by job, by type, and to everything. Costs nothing while there are none."""

    def __init__(self) -> None:
        self._of: dict[tuple[int | None, str | None], dict[object, Listener]] = {}

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, listener: Listener, number: int | None, type: str | None) -> Callable[[], None]:
        """Tell a listener of a job's events, of a type's, or of all; returns what ends it."""
        key, token = (number, type), object()
        self._of.setdefault(key, {})[token] = listener

        def end() -> None:
            listeners = self._of.get(key, {})
            listeners.pop(token, None)
            if not listeners:
                self._of.pop(key, None)

        return end

    def of(self, number: int, type: str) -> list[Listener]:
        """Who wants to hear of a job."""
        return [
            listener
            for key in ((number, None), (None, type), (None, None))
            for listener in self._of.get(key, {}).values()
        ]


def deliver(events: Iterable[tuple[list[Listener], JobEvent]]) -> None:
    """Tell what was gathered."""
    for listeners, event in events:
        for listener in listeners:
            listener(event)
