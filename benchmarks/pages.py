"""Sections of pages that programs write: what stands between two comments is replaced, the rest is left alone."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PERFORMANCE", "write_section"]

PERFORMANCE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
TITLE = "# Performance\n\nFigures that programs made; the text around each says which, and how.\n"


def write_section(path: Path, name: str, text: str) -> None:
    """Replace the section `name` of a page; a page or a section that is not there yet is begun.

    Args:
        path: Path of the page, Markdown.
        name: Name of the section between `<!-- begin name -->` and `<!-- end name -->`.
        text: Without the comments.

    Raises:
        ValueError: The page holds one of the comments without the other, or one of them twice.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    page = path.read_text(encoding="utf-8") if path.exists() else TITLE
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin not in page and end not in page:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{page.rstrip()}\n\n{section}\n", encoding="utf-8")
        return
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        raise ValueError(f"{path} does not hold {begin} and behind it {end}, each once: mend the page by hand")
    before, after = page[: page.index(begin)], page[page.index(end) + len(end) :]
    path.write_text(before + section + after, encoding="utf-8")
