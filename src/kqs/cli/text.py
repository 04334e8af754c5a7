"""Text that others wrote, made fit for a terminal."""

from __future__ import annotations


def harmless(text: str) -> str:
    """One line: control characters become ``\\x1b`` and the like, so that they cannot act on the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
