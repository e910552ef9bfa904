"""Front ends and validation have a test file for each of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("frontends", "validation")
FILES = [
    path.relative_to(ROOT / "qcompiler")
    for room in ROOMS
    for path in sorted((ROOT / "qcompiler" / room).rglob("*.py"))
    if path.name != "__init__.py"
]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_has_its_tests(file: Path) -> None:
    tests = ROOT / "tests" / file.parent / f"test_{file.name}"
    assert tests.is_file()
    assert "def test_" in tests.read_text(encoding="utf-8")


@pytest.mark.parametrize("room", ROOMS)
def test_a_package_holds_no_code_of_its_own(room: str) -> None:
    """So that no code goes untested in the `__init__` of a package."""
    for package in (ROOT / "qcompiler" / room).rglob("__init__.py"):
        words = package.read_text(encoding="utf-8")
        assert "\ndef " not in words
        assert "\nclass " not in words
