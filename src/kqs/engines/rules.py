"""What the engines agree on: states that verbs are for, when a job is poison, how errors and reasons read."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from ..core.lifecycle import State
from ..core.outcome import Reason

_BURIED, _DELAYED, _READY, _RESERVED = State.BURIED, State.DELAYED, State.READY, State.RESERVED
#: verb -> (states it is for when none is named, states it may be for).
VERBS: Final[dict[str, tuple[frozenset[State], frozenset[State]]]] = {
    "kick": (frozenset({_BURIED}), frozenset({_BURIED, _DELAYED})),
    "bury": (frozenset({_DELAYED, _READY}), frozenset({_DELAYED, _READY, _RESERVED})),
    "delete": (frozenset({_DELAYED, _READY, _BURIED}), frozenset({_DELAYED, _READY, _RESERVED, _BURIED})),
    "cancel": (frozenset({_DELAYED, _READY, _RESERVED}), frozenset({_DELAYED, _READY, _RESERVED, _BURIED})),
}
#: A job that killed its worker this often is buried.
POISON_DEATHS: Final = 3
#: A result above this many bytes lies in the bulk store.
RESULT_INLINE: Final = 64 * 1024


#: The years 1 to 9999, microseconds since 1970.
_FIRST: Final = -62_135_596_800_000_000
_LAST: Final = 253_402_300_799_000_000


def iso(microseconds: int) -> str:
    """Microseconds since 1970 as ISO 8601 UTC; what no calendar has is shown as its first or last moment."""
    microseconds = max(_FIRST, min(microseconds, _LAST))
    moment = dt.datetime.fromtimestamp(microseconds / 1_000_000, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error_of(reason: str | Reason | None, now: int, kind: str) -> dict[str, Any]:
    """A job's last error as shown.

    Ensures: it can be written as JSON and fits an entry's options (65,535 bytes) even if JSON escapes every
    character, which takes 6 bytes each.
    """
    if not isinstance(reason, Reason):
        reason = Reason(reason or kind, kind)
    error: dict[str, Any] = {
        "message": _unicode(reason.message[:4000]),
        "kind": _unicode((reason.kind or kind)[:200]),
        "at": iso(now),
    }
    if reason.traceback:
        error["traceback"] = _unicode(reason.traceback[-6000:])
    return error


def _unicode(text: str) -> str:
    """The text without lone surrogates, which file names in exceptions may have."""
    return text.encode("utf-8", "replace").decode()


def reason(code: str, text: str, **figures: Any) -> dict[str, Any]:
    """A reason why a job does not run, as shown; figures that are None are left out."""
    return {
        "code": code,
        "text": text,
        **{name: value for name, value in figures.items() if value is not None},
    }


def limit_text(limit: dict[str, Any]) -> str:
    """What a closed limit says, from how it is shown."""
    of = {"type": "job type", "class": "class", "key": "fairness key"}[limit["kind"]]
    if limit["running"] >= limit.get("concurrency", limit["running"] + 1):
        return f"{limit['running']} of at most {limit['concurrency']} jobs of {of} {limit['name']} run"
    return (
        f"{of} {limit['name']} may begin {limit['rate']:g} jobs a second; the next in {limit['next_in']:g} s"
    )
