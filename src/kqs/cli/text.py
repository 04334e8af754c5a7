"""What commands print; text that others wrote is made fit for a terminal."""

from __future__ import annotations

from typing import Any

import click
import msgspec

#: ``--json``, as all commands that print data have it.
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def harmless(text: str) -> str:
    """One line: control characters become ``\\x1b`` and the like, so that they cannot act on the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any, *, indent: bool = True) -> None:
    """Print a value for people and programs, on one line or many."""
    text = msgspec.json.encode(value).decode()
    if indent:
        text = msgspec.json.format(text, indent=2)
    # msgspec escapes only what JSON demands; the terminal obeys more (U+009B is a CSI).
    click.echo(
        "".join(c if c.isprintable() or c == "\n" or c > "\uffff" else f"\\u{ord(c):04x}" for c in text)
    )
