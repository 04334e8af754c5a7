"""Ids of jobs, as callers see them."""

from __future__ import annotations


class Ids:
    """Ids as callers see them.

    Args:
        prefix: of this database.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}-"

    def of(self, number: int) -> str:
        return f"{self.prefix}{number}"

    def number(self, id: str) -> int | None:
        """The number in an id of this database, or None."""
        text = id.removeprefix(self.prefix)
        if text.isascii() and text.isdigit() and len(text) < 20 and id == self.of(number := int(text)):
            return number if number < 1 << 63 else None
        return None
