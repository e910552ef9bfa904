"""A section is written between its comments, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages import write_section


def test_begins_a_page_and_replaces_its_section(tmp_path: Path) -> None:
    page = tmp_path / "folder" / "page.md"
    write_section(page, "one", "first\n")
    write_section(page, "two", "second")
    text = page.read_text()
    assert text.index("<!-- begin one -->\nfirst\n<!-- end one -->") < text.index("<!-- begin two -->\nsecond\n")
    page.write_text(text.replace("<!-- begin two -->", "by hand\n\n<!-- begin two -->"))
    before = page.read_text()
    write_section(page, "one", "third")
    assert page.read_text() == before.replace("first", "third")
    write_section(page, "one", "third")
    assert page.read_text() == before.replace("first", "third")


@pytest.mark.parametrize(
    "text",
    [
        "<!-- begin one -->",
        "<!-- end one -->",
        "<!-- end one --><!-- begin one -->",
        "<!-- begin one --><!-- begin one --><!-- end one -->",
    ],
)
def test_refuses_a_page_whose_comments_do_not_match(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="mend the page by hand"):
        write_section(page, "one", "new")
    assert page.read_text() == text
