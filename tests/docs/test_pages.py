"""How the examples are found and compared, and that links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import Block, Known, blocks


def _page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_marked_blocks_are_found_and_others_are_not(tmp_path: Path) -> None:
    text = "# T\n\n```text\nno\n```\n\n<!-- file: a.py -->\n<!-- test: python -->\n```python\nx = 1\n```\n"
    assert blocks(_page(tmp_path, text)) == [Block(9, "python", "a.py", "x = 1\n")]


UNFINISHED = "<!-- test: wire -->\n```text\nno end\n"


@pytest.mark.parametrize("text", ["<!-- test: wire -->\nno block\n", UNFINISHED])
def test_a_marker_without_a_block_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:"):
        blocks(_page(tmp_path, text))


ID, OTHER = "71d96dc0-1", "0badcafe-77"


@pytest.mark.parametrize(
    ("expected", "real", "same"),
    [
        ("pong", "pong", True),
        ("pong", "ping", False),
        (f'{{"id":"{ID}"}}', f'{{"id":"{OTHER}"}}', True),
        (f'{{"id":"{ID}"}}', '{"id":"none"}', False),
        ("at 2026-11-24T21:46:14.232Z", "at 2027-01-01T00:00:00.000001Z", True),
        ("disk: ok: ...", "disk: ok: 32% is free", True),
        ("disk: ok: ...", "disk: degraded: 1% is free", False),
        ("receipt 5-1-13e0f2c5e91", "receipt 7-2-ffffffff", True),
        (f"{ID} and {ID}", f"{OTHER} and {OTHER}", True),
        (f"{ID} and {ID}", f"{OTHER} and 0badcafe-78", False),
    ],
)
def test_comparing_a_line(expected: str, real: str, same: bool) -> None:
    assert Known().matches(expected, real) is same


def test_a_value_seen_once_is_filled_in_later() -> None:
    known = Known()
    assert known.matches(f"id {ID}", f"id {OTHER}")
    assert known.fill(f"job {ID}, 2026-11-24T21:46:14.232Z") == f"job {OTHER}, 2026-11-24T21:46:14.232Z"
    assert not known.matches(f"id {ID}", "id 0badcafe-78")


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"```\{include\} (\S+)", text):
        text += (page.parent / name).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere(docs: Path) -> None:
    root = docs.parent
    pages = [page for page in docs.rglob("*.md") if "_build" not in page.parts] + sorted(root.glob("*.md"))
    broken, checked = [], 0
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"https?:|mailto:", link):
                continue
            checked += 1
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                broken.append(f"{page.relative_to(root)}: {link}")
    assert broken == []
    assert checked > 30
