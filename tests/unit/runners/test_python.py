"""What a handler does, as a value the server takes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kqs import Again
from kqs.core.outcome import Settlement
from kqs.core.retry import MAX_SECONDS
from kqs.runners.python import PythonRunner


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (None, None),
        (0, 0),
        (1.5, 1.5),
        (-1, 0),
        (float("inf"), MAX_SECONDS),
        (float("nan"), None),
        (True, None),
        ("soon", None),
    ],
)
def test_a_delay_the_server_would_refuse_is_mended(given: Any, taken: float | None) -> None:
    def handler(_job: Any) -> None:
        raise Again("later", delay=given)

    attempted = PythonRunner(handler).run(None, b"")  # type: ignore[arg-type]
    assert (attempted.outcome, attempted.delay) == ("again", taken)
    text = msgspec.json.encode([attempted.settlement("receipt", 0.5)])
    assert msgspec.json.decode(text, type=list[Settlement])[0].delay == taken
