"""Tables of the reference of calls: error codes, and which role may make which call."""

from __future__ import annotations

import re

from kqs import errors
from kqs.core.calls import ALLOWED, ROLES

from .docstrings import markdown, sentence

_NOTE = "<!-- Made by docs/generate.py from src/kqs/{}. Do not edit. -->\n"
_LINE = re.compile(r"[| ]*\+-- (\w+) +(\w+) {2,}(.*)")


def codes() -> str:
    """Error codes with their meaning, from the class tree in the docstring of kqs.errors.

    Raises:
        ValueError: the docstring and the classes differ.
    """
    lines = [
        _NOTE.format("errors.py"),
        "| code | exception in `kqs.errors` | meaning |",
        "| --- | --- | --- |",
    ]
    told = set()
    for line in (errors.__doc__ or "").splitlines():
        match = _LINE.fullmatch(line)
        made = getattr(errors, match[1], None) if match else None
        if match is None or made is None or not issubclass(made, errors.CallError):
            continue
        if made.code != match[2]:
            raise ValueError(f"kqs.errors: {match[1]} is {made.code}, not {match[2]}")
        told.add(made)
        lines.append(f"| `{made.code}` | `{match[1]}` | {markdown(sentence(match[3]))} |")
    if missing := set(errors._BY_CODE.values()) - told:
        raise ValueError(f"kqs.errors: not in the docstring: {missing}")
    return "\n".join(lines) + "\n"


def roles() -> str:
    """Every call and the roles that may make it."""
    lines = [
        _NOTE.format("core/calls.py"),
        f"| call | {' | '.join(ROLES)} |",
        f"| --- |{' :-: |' * len(ROLES)}",
    ]
    for name, allowed in ALLOWED.items():
        marks = ("yes" if role == "admin" or role in allowed else "" for role in ROLES)
        lines.append(f"| `{name}` | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"
