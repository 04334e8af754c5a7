"""The parts of a docstring the generated pages are made of."""

from __future__ import annotations

import inspect
import re

_ATTRIBUTE = re.compile(r"    (\w+(?:, \w+)*): (.*)")


def summary(thing: object) -> str:
    """What stands before the first section of a docstring, as one paragraph."""
    text = inspect.getdoc(thing) or ""
    return " ".join(re.split(r"\n(?:Attributes|Args|Returns|Raises):\n", text)[0].split())


def attributes(thing: object) -> dict[str, str]:
    """The sentences of the ``Attributes:`` section, by attribute; of a class, those of its bases too."""
    sentences: dict[str, str] = {}
    for base in thing.__bases__ if isinstance(thing, type) else ():
        sentences |= attributes(base)
    _, found, section = (inspect.cleandoc(thing.__doc__ or "")).partition("Attributes:\n")
    names: list[str] = []
    for line in section.splitlines() if found else ():
        if match := _ATTRIBUTE.fullmatch(line):
            names = match[1].split(", ")
            sentences |= dict.fromkeys(names, match[2])
        elif line.startswith("     ") and names:
            sentences |= {name: f"{sentences[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return sentences


def markdown(text: str) -> str:
    """Docstring text for a Markdown table cell: ``code`` becomes `code`, bars are escaped."""
    return text.replace("``", "`").replace("|", "\\|")


def sentence(text: str) -> str:
    """With a capital at the start and a full stop at the end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
