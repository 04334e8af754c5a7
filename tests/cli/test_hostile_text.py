"""What callers wrote (types, errors, reasons) reaches a terminal as text: no markup, no control codes."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from kqs.cli import ask
from kqs.cli.text import harmless

NASTY = "[/x][red]\x1b]0;mine\x07\x9b31m\u202e\nnext"
SHOWN = "[/x][red]\\x1b]0;mine\\x07\\x9b31m\\u202e\\nnext"
ERROR = {"message": NASTY, "kind": NASTY, "at": "2026-01-01T00:00:00.000Z", "traceback": f"{NASTY}\nend"}
JOB = {
    "id": "0badcafe-1",
    "type": NASTY,
    "state": "buried",
    "prio": "normal",
    "attempt": 1,
    "inserted_at": "2026-01-01T00:00:00.000Z",
    "size": 4,
    "leased_by": NASTY,
    "last_error": ERROR,
}
COUNTS = dict.fromkeys(("delayed", "ready", "reserved", "buried", "done"), 1)
ANSWERS: dict[str, Any] = {
    "jobs": {"jobs": [JOB]},
    "job": JOB,
    "health": {"status": "ok", "checks": [{"name": "progress", "status": "ok", "text": NASTY}]},
    "stats": {
        "name": "kqs",
        "engine": "embedded",
        "process": {"pid": 1, "rss_bytes": 1, "uptime": 1.0},
        "journal": {"bytes": 1, "segments": 1, "synced_seq": 1, "last_seq": 1},
        "types": {NASTY: COUNTS},
        "jobs": COUNTS,
        "calls": {},
    },
}


class _Client:
    """Answers from the table above."""

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def call(self, name: str, _argument: Any = None, **_options: Any) -> Any:
        return ANSWERS[name]


@pytest.mark.parametrize("argv", [["jobs"], ["job", "0badcafe-1"], ["health"], ["stats"]])
def test_shown_as_text(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "connect", lambda _url: _Client())
    monkeypatch.setenv("COLUMNS", "400")
    result = CliRunner().invoke(getattr(ask, argv[0]), argv[1:], standalone_mode=False)
    assert result.exception is None
    assert SHOWN[:60] in result.output
    assert all(c.isprintable() or c == "\n" for c in result.output)


def test_plain_text_stays_as_it_is() -> None:
    assert harmless("naïve ☃ [ok] 'q' \\x1b") == "naïve ☃ [ok] 'q' \\x1b"
