"""Writes the pages that follow from the code, so that they cannot drift from it.

``python docs/generate.py`` writes them; with ``--check`` it only says which are out of date (exit status 1).
tests/docs/test_generated.py does the same check.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / "src")]

from generator import calls, cli, config, fairshare, lifecycle  # noqa: E402


def pages() -> dict[str, str]:
    """Every generated file: its path below docs/, and what it must hold."""
    return {
        "reference/config.md": config.page(),
        "reference/cli.md": cli.page(),
        "reference/_codes.md": calls.codes(),
        "reference/_roles.md": calls.roles(),
        "explanation/_lifecycle.md": lifecycle.table(),
        "explanation/lifecycle.svg": lifecycle.diagram(),
        "fair-share.svg": fairshare.plot(),
    }


def outdated() -> list[str]:
    """Paths of the generated files that are not what the code says."""
    found = []
    for name, text in pages().items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            found.append(name)
    return found


def main(argv: list[str]) -> int:
    old = outdated()
    if "--check" in argv:
        for name in old:
            print(f"docs/{name} is out of date; run: python docs/generate.py", file=sys.stderr)
        return 1 if old else 0
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
    print(f"{len(old)} files changed" if old else "nothing changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
