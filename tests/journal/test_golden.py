"""Every golden journal reads as it did when it was written (T11, promise G10)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kqs.core.record import FORMAT

from .golden import Golden, contents, golden_journals, recovered

GOLDEN = golden_journals()


def test_the_journals_are_there() -> None:
    formats = Counter(golden.name.partition("/")[0] for golden in GOLDEN)
    assert formats == {"format-1": 12, "format-2": 5, "format-3": 3}
    assert set(formats) == {f"format-{number}" for number in range(1, FORMAT + 1)}
    assert sum(len(golden.expected["jobs"]) for golden in GOLDEN) > 100


@pytest.mark.parametrize("golden", GOLDEN, ids=[golden.name for golden in GOLDEN])
async def test_it_reads_as_it_was_written(golden: Golden, tmp_path: Path) -> None:
    before = contents(golden.data)
    expected = {name: value for name, value in golden.expected.items() if name != "about"}
    assert await recovered(golden, tmp_path) == expected
    assert contents(golden.data) == before
