"""Markup: text is escaped, columns of numbers are aligned, a page needs no other file, and its script sorts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.pages.markup import anchor, decibels, details, document, items, number, paragraph, section, table

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_text_is_escaped() -> None:
    for found in (paragraph("<&>"), items(["<&>"]), details("<&>", ""), section("<&>"), document("<&>", "<&>", [])):
        assert "&lt;&amp;&gt;" in found


def test_columns_of_numbers_are_aligned() -> None:
    found = table(["name", "count", "mixed"], [["a", number("1 dB"), 1], ["b", 2, "x"]])
    assert found.count('<th class="number">') == 1
    assert found.count('<td class="number">') == 2


def test_ratios() -> None:
    assert (decibels(float("inf")), decibels(12.345)) == ("exact", "12.3 dB")


@given(st.text(min_size=1), st.text(min_size=1))
def test_places_are_distinct_and_have_no_blanks(one: str, other: str) -> None:
    places = anchor("tensor", one), anchor("tensor", other)
    assert (places[0] == places[1]) == (one == other)
    assert not any(char.isspace() or char in "\"'<>&#" for place in places for char in place)


def test_only_a_page_that_sorts_has_a_script() -> None:
    assert "<script" not in document("t", "All is well.", ["<p>x</p>"])
    assert document("t", "All is well.", ["<p>x</p>"], sorts=True).count("<script>") == 1


def test_a_click_sorts(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no browser is installed: apt install chromium")
    rows = [["b", number("10.5 dB")], ["a", number("exact")], ["c", number("-3 dB")]]
    click = "<script>const t = document.querySelectorAll('th'); t[1].click(); t[1].click();</script>"
    page = tmp_path / "page.html"
    page.write_text(
        document("t", "All is well.", [table(["name", "ratio"], rows)], sorts=True).replace(
            "</body>", f"{click}</body>"
        )
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    body = found.partition("<tbody>")[2]
    assert body.index("exact") < body.index("10.5 dB") < body.index("-3 dB")
    assert 'aria-sort="descending"' in found
