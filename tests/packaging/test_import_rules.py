"""Who may import whom inside the compiler, and what no module may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    "qcompiler": ROOT / "qcompiler",
    "qcompiler.passes": ROOT / "passes",
    "qcompiler.backends": ROOT / "backends",
}

# Area -> what it may import of ours, beside `errors`, `files` and itself. A module directly in qcompiler/ (api, cli, ...) may
# import everything; a folder without a row here is an error: give it one.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "storage": (),
    "quant": (),
    "ir": ("quant.spec", "storage"),
    "ops": ("ir", "quant"),
    "targets": ("ir.types", "quant"),
    "frontends": ("ir", "ops", "storage"),
    "calibration": ("ir", "ops", "quant", "storage"),
    "validation": ("ir", "ops", "quant"),
    "training": ("calibration", "ir", "ops", "quant", "validation"),
    "passes": ("calibration", "ir", "ops", "quant", "targets", "training", "validation"),
    "backends": ("ir", "ops", "quant", "targets", "validation"),
}
UNRESTRICTED_FOLDERS = ("analysis",)
# Passes and back ends do not know one another: of their own area they may import themselves and these.
SHARED = {
    "passes": (
        "adaround_activation",
        "adaround_moments",
        "adaround_sgd",
        "base",
        "channel_limits",
        "channel_tables",
        "encoding_names",
        "exact_values",
        "equalization",
        "fixed_grids",
        "manager",
        "geometry",
        "overrides",
        "own_grids",
        "patches",
        "proofs",
        "two_models",
    ),
    "backends": (),
}


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
    if imported in ("errors", "files") or (area not in ALLOWED and (not inside or area in UNRESTRICTED_FOLDERS)):
        return True
    if area == target_area:
        own, target_own = inside.partition(".")[0], target_inside.partition(".")[0]
        return area not in SHARED or own == "" or target_own in (own, *SHARED[area])
    return any(imported == name or imported.startswith(f"{name}.") for name in ALLOWED[area])


def short(module: str) -> str:
    """`qcompiler.ir.graph` -> `ir.graph`; the package itself is `__init__`."""
    return module.removeprefix("qcompiler").removeprefix(".") or "__init__"


def test_every_folder_has_a_row_in_the_table() -> None:
    folders = {path.name for path in (ROOT / "qcompiler").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= {*ALLOWED, *UNRESTRICTED_FOLDERS}


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
        ("passes.fold", "passes.fuse", False),
        ("passes.fold", "frontends.fx", False),
        ("passes", "passes.fold", True),
        ("backends.integer.program", "backends.integer.memory", True),
        ("backends.integer.program", "backends.onnx_qdq", False),
        ("backends.integer", "passes.base", False),
        ("verify", "backends.integer", True),
        ("__init__", "api", True),
        ("ops.conv", "api", False),
        ("analysis.search", "passes.base", True),
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
