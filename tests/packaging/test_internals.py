"""The page about the internals names what is in the source: every room, and no path that is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.packaging.test_import_rules import ALLOWED

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "internals.md").read_text(encoding="utf-8")
PATHS = sorted({name for name in re.findall(r"`([\w./]+)`", TEXT) if "/" in name or name.endswith(".py")})


def rows(title: str) -> list[list[str]]:
    """The cells of each row of the table in the section `title`, without its head."""
    section = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_each_room_has_a_row_in_the_order_of_the_imports() -> None:
    """A room at the root without a folder, such as `__main__`, is no room for a reader."""
    named = [cells[0].strip("`") for cells in rows("Rooms")]
    assert named == [room for room in ALLOWED if not room.startswith("__")]


def test_each_row_says_something() -> None:
    for title in ("Rooms", "How a weight becomes an integer", "Where to add what"):
        assert len(rows(title)) > 5
        assert all(all(cells) for cells in rows(title))


@pytest.mark.parametrize("name", PATHS)
def test_each_path_is_in_the_source(name: str) -> None:
    """From the root of the repository or of the package."""
    found = [folder / name for folder in (ROOT, ROOT / "qcompiler") if (folder / name).exists()]
    assert found
    assert not name.endswith("/") or found[0].is_dir()


def test_paths_are_found() -> None:
    assert {"ops/layers.py", "passes/fold_batch_norm.py", "backends/__init__.py"} <= {*PATHS}
