"""Every pass has a test file at the same place under tests/passes, and the file tests that pass."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from qcompiler.passes import Pass, PassManager
from qcompiler.session.pipeline import PASSES

ROOT = Path(__file__).parents[2]
SUBJECTS: dict[str, type] = {**PASSES, "the base class": Pass, "the manager": PassManager}


def file_of_tests(subject: type) -> Path:
    """The test file of a class: passes/folder/name.py is tested in tests/passes/folder/test_name.py."""
    source = Path(inspect.getfile(subject)).resolve().relative_to(ROOT / "passes")
    return ROOT / "tests" / "passes" / source.parent / f"test_{source.name}"


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_pass_has_its_file_of_tests(name: str) -> None:
    subject = SUBJECTS[name]
    path = file_of_tests(subject)
    assert path.is_file(), f"{path.relative_to(ROOT)} is missing, where {subject.__name__} is tested"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in tree.body), path
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert subject.__name__ in used, f"{path.relative_to(ROOT)} does not use {subject.__name__}"
