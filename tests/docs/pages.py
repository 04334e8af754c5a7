"""Cuts a page into the examples that are marked to be run.

A marker is an HTML comment on the line before a fenced block:

``<!-- test: KIND -->``   run it; the kinds are the methods ``run_KIND`` of test_examples.Page
``<!-- file: NAME -->``   save it under this name for the blocks that follow

Both may stand before one block. An output line that ends with ``...`` matches any ending.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_MARK = re.compile(r"<!-- (test|file): (\S+) -->")
_FENCE = re.compile(r"(`{3,})(\S*)")

#: Values that are different in every run: ids, receipts, times, SHA-256 sums.
_CHANGING = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"
    r"|\b[0-9a-f]{64}\b"
    r"|\b[0-9a-f]{8}-\d+\b"
    r"|\b\d+-\d+-[0-9a-f]{4,}\b"
)


class Block(NamedTuple):
    """A marked block: its line on the page, what it is for, and its text."""

    line: int
    kind: str | None
    file: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """The marked blocks of a page, in order.

    Raises:
        ValueError: a marker is not followed by a block, or a block does not end.
    """
    found: list[Block] = []
    marks: dict[str, str] = {}
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if mark := _MARK.fullmatch(line):
            marks[mark[1]] = mark[2]
            continue
        fence = _FENCE.match(line)
        if fence is None:
            if marks:
                raise ValueError(f"{page.name}:{number}: no block follows the marker")
            continue
        body: list[str] = []
        for _, inner in lines:
            if inner == fence[1]:
                break
            body.append(inner)
        else:
            raise ValueError(f"{page.name}:{number}: the block does not end")
        if marks:
            text = "\n".join(body) + "\n"
            found.append(Block(number, marks.get("test"), marks.get("file"), text))
            marks = {}
    return found


class Known:
    """The changing values of a page, and what they are in this run."""

    def __init__(self) -> None:
        self._real: dict[str, str] = {}

    def fill(self, text: str) -> str:
        """The page's text with the real values where they are known."""
        return _CHANGING.sub(lambda match: self._real.get(match[0], match[0]), text)

    def matches(self, expected: str, real: str) -> bool:
        """Whether a real line is the page's, changing values aside; learns those."""
        told, seen = _CHANGING.findall(expected), _CHANGING.findall(real)
        open_end = expected.endswith("...")
        shape, real_shape = _CHANGING.sub("*", expected), _CHANGING.sub("*", real)
        if not (real_shape.startswith(shape[:-3]) if open_end else real_shape == shape):
            return False
        for name, value in zip(told, seen, strict=False):
            if self._real.setdefault(name, value) != value and not name.endswith("Z"):
                return False
        return True
