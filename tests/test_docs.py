"""Every Python block of the documentation runs, in order, page by page; links lead somewhere."""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def blocks(page: Path) -> list[str]:
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Registrations by a page are removed after the page."""
    from qcompiler.backends.onnx_qdq import FUNCTIONS
    from qcompiler.frontends.rules import RULES
    from qcompiler.ir import registry
    from qcompiler.ops import UNARY

    tables: list[dict[str, Any]] = [FUNCTIONS, RULES, registry._OPS, UNARY]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p) and p.name != "README.md"], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # outputs of an earlier run, with what was built in them, are refused
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), vars(module))  # noqa: S102  # what the page shows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_the_pass_of_the_guide_is_short() -> None:
    page = ROOT / "docs" / "howto" / "write_a_pass.md"
    tree = ast.parse(blocks(page)[0])
    (definition,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert definition.end_lineno is not None
    assert definition.end_lineno - definition.lineno + 2 < 20, "the class with its decorator"


def test_the_readme_shows_names_that_are_there() -> None:
    import qcompiler

    code = "\n".join(blocks(ROOT / "README.md"))
    names = set(re.findall(r"qcompiler\.(\w+)", code))
    assert names
    assert all(hasattr(qcompiler, name) for name in names)
    methods = set(re.findall(r"compiled\.(\w+)\(", code))
    assert all(hasattr(qcompiler.Compiled, name) for name in methods)
