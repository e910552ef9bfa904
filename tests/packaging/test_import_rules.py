"""Who may import whom inside the compiler, and what no module may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

from benchmarks.house import import_graph

ROOT = Path(__file__).parents[2]
SOURCES = {
    "qcompiler": ROOT / "qcompiler",
    "qcompiler.passes": ROOT / "passes",
    "qcompiler.backends": ROOT / "backends",
}

# Room -> the rooms that it may import, in addition to `errors` and itself. A row names only rows above it, so that no two
# rooms import each other; a folder or a module at the root without a row is an error: add a row.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "plugins": (),
    "storage": (),
    "pages": (),
    "quant": (),
    "ir": ("plugins", "quant.spec", "storage"),
    "ops": ("ir", "quant"),
    "targets": ("ir.onnx_types", "ir.types", "plugins", "quant", "storage"),
    "frontends": ("ir", "ops", "quant", "storage"),
    "calibration": ("ir", "ops", "quant", "storage"),
    "validation": ("ir", "ops", "quant"),
    "training": ("calibration", "ir", "ops", "pages", "quant", "targets", "validation"),
    "program": ("ir", "ops", "quant", "storage", "targets"),
    "passes": ("calibration", "ir", "ops", "quant", "targets", "training", "validation"),
    "backends": ("ir", "ops", "plugins", "program", "quant", "storage", "targets", "validation"),
}
# From here on each room may import all of those above it.
for _room in ("verification", "artifact", "session", "analysis", "__init__", "cli", "__main__"):
    ALLOWED[_room] = tuple(ALLOWED)
# Passes and back ends do not import one another: of their own room they may import themselves and these.
SHARED = {"passes": ("base", "common"), "backends": ("base",)}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module that ships, none of them reached through a link."""
    found: dict[str, Path] = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder)
            if package == "qcompiler" and inner.parts[0] in ("passes", "backends"):
                continue
            parts = [*package.split("."), *inner.with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(tree: ast.AST, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each module of ours that `tree` imports, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "qcompiler":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "qcompiler":
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield node.lineno, submodule if submodule in known else node.module


def is_allowed(importer: str, imported: str) -> bool:
    """Whether `importer` may import `imported`; both are modules' names without the leading `qcompiler.`."""
    area, _, inside = importer.partition(".")
    target_area, _, target_inside = imported.partition(".")
    if imported == "errors":
        return True
    if area == target_area:
        own, target_own = inside.partition(".")[0], target_inside.partition(".")[0]
        return area not in SHARED or own == "" or target_own in (own, *SHARED[area])
    return any(imported == name or imported.startswith(f"{name}.") for name in ALLOWED[area])


def short(module: str) -> str:
    """`qcompiler.ir.graph` -> `ir.graph`; the package itself is `__init__`."""
    return module.removeprefix("qcompiler").removeprefix(".") or "__init__"


def test_every_room_has_a_row_in_the_table_and_nothing_else_stands_at_the_root() -> None:
    folders = {path.name for path in (ROOT / "qcompiler").iterdir() if path.is_dir()} - {"__pycache__"}
    assert {*folders, *(path.stem for path in (ROOT / "qcompiler").glob("*.py"))} == {*ALLOWED}


def test_a_row_names_only_rows_above_it() -> None:
    rooms = list(ALLOWED)
    below = [
        f"{room} names {name}"
        for place, room in enumerate(rooms)
        for name in ALLOWED[room]
        if name.partition(".")[0] not in rooms[:place]
    ]
    assert not below, "\n".join(below)


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_the_table_allows(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    forbidden = [
        f"line {line}: {short(module)} must not import {imported}"
        for line, imported in imports(tree, frozenset(MODULES))
        if not is_allowed(short(module), short(imported))
    ]
    assert not forbidden, "\n".join(forbidden)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("quant.affine", "errors", True),
        ("quant.affine", "quant.spec", True),
        ("quant.affine", "ir.types", False),
        ("errors", "quant", False),
        ("ir.types", "quant.spec", True),
        ("ir.types", "quant", False),
        ("ir.types", "quant.specification", False),
        ("targets.schema", "ir.types", True),
        ("targets.schema", "ir.graph", False),
        ("passes.fold", "passes.base", True),
        ("passes.fold", "passes.common.proofs", True),
        ("passes.common.proofs", "passes.fold", False),
        ("passes.adaptive_rounding.adaround", "passes.adaptive_rounding.moments", True),
        ("passes.fold", "passes.fuse", False),
        ("passes.fold", "frontends.fx", False),
        ("passes", "passes.fold", True),
        ("backends.integer.emit", "backends.integer.memory", True),
        ("backends.integer.emit", "backends.onnx_qdq", False),
        ("backends.integer.emit", "program.program", True),
        ("backends.onnx_qdq.form", "backends.base", True),
        ("backends.integer", "passes.base", False),
        ("program.program", "backends.integer", False),
        ("verification.forms", "backends.integer", True),
        ("verification.forms", "artifact.artifact", False),
        ("session.compile", "artifact.artifact", True),
        ("artifact.artifact", "session.compile", False),
        ("analysis.search", "passes.base", True),
        ("__init__", "session.compile", True),
        ("__init__", "cli", False),
        ("session.compile", "__init__", False),
        ("cli.commands", "__init__", True),
        ("__main__", "cli", True),
        ("ops.conv", "session.compile", False),
    ],
)
def test_the_table_is_read_as_it_is_meant(importer: str, imported: str, allowed: bool) -> None:
    assert is_allowed(importer, imported) is allowed


def test_finds_imports_in_functions_and_of_submodules() -> None:
    source = "def f():\n    from qcompiler import quant, __version__\n    import qcompiler.ir.graph, numpy\n"
    found = list(imports(ast.parse(source), frozenset({"qcompiler", "qcompiler.quant"})))
    assert found == [(2, "qcompiler.quant"), (2, "qcompiler"), (3, "qcompiler.ir.graph")]


@pytest.mark.parametrize("module", MODULES)
def test_never_rounds_without_naming_the_mode(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "round"
    ]
    assert not lines, f"lines {lines}: round() hides its tie rule: use a Rounding of qcompiler.quant.rounding"


def test_no_modules_import_each_other() -> None:
    graph = import_graph(ROOT)
    circles = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    assert not circles, "imports inside functions and for types count as well: move what both need into one of them"
