"""`python -m benchmarks.house`: how the source is arranged, in numbers that can be compared between two commits.

    files by change     source files that name a representative of each kind: an operator, a pass, a target, a
                        requantization mode, a kernel, a front end, an emitter; adding another one touches as many
    circles             groups of modules that import each other, imports inside functions and for types included
    arrows              pairs of rooms (folders of the package, or modules at its root) of which one imports the other
    op comparisons      places that compare the name of an operator with a literal
    casts               calls of `typing.cast`
    openings            docstrings, and descriptions in them, that begin with a word that no noun phrase begins with
    seconds             import of the package over torch's own, and `--help`, the least of several processes

`--root` measures another checkout with this script, so that both are counted in the same way.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx as nx

__all__ = ["OPENINGS", "forbidden_openings", "measure"]

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("qcompiler", "passes", "backends")

REPRESENTATIVES: Mapping[str, tuple[str, ...]] = {
    "operator": (r"[\"']maximum[\"']", r"/\* maximum\b"),
    "operator (sub)": (r"[\"']sub[\"']", r"\bint_sub\b", r"\bSUB\b"),
    "pass": (r"\bReplaceRelu6\b", r"replace-relu6"),
    "target": (r"\bpow2_mcu\b",),
    "requantization mode": (r"\bpow2_shift_rhaz\b", r"\bPOW2_SHIFT_RHAZ\b"),
    "kernel": (r"\bint_conv_transpose2d\b",),
    "front end": (r"\bExportedProgram\b",),
    "emitter": (r"\bonnx_qdq\b",),
}
"""Regular expressions that find the files that mention one representative of a kind."""

OWN_FOLDERS: Mapping[str, str] = {"emitter": "backends/onnx_qdq"}
"""The folder that a representative has to itself: however many files it is divided into, it counts as one."""

OPENINGS = ("Of", "What", "Where", "Whose", "Those", "Its")
"""Words with which no description begins."""

_COMPARED = re.compile(r"\bop(_name|_type)?$")
_DESCRIBED = re.compile(r"^\s+[*\w]+: (\w+)")
RUNS = 5


def sources(root: Path) -> Iterator[Path]:
    """The Python files that ship, none of them reached through a link."""
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*.py")):
            if folder == "qcompiler" and path.relative_to(root / folder).parts[0] in ("passes", "backends"):
                continue
            yield path


def module_name(root: Path, path: Path) -> str:
    """`passes/base.py` -> `qcompiler.passes.base`."""
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts if parts[0] == "qcompiler" else ("qcompiler", *parts))
    return name.removesuffix(".__init__")


def import_graph(root: Path) -> nx.DiGraph[str]:
    """Modules, and an edge from each one to every module of ours that it imports."""
    trees = {module_name(root, path): ast.parse(path.read_text(encoding="utf-8")) for path in sources(root)}
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(trees)
    for name, tree in trees.items():
        for node in ast.walk(tree):
            found: list[str] = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                found = [full if full in trees else node.module for full in inner]
            graph.add_edges_from((name, other) for other in found if other in trees and other != name)
    return graph


def room(module: str) -> str:
    """The folder of the package in which a module stands; the name of the module where it stands at the root."""
    return module.removeprefix("qcompiler").removeprefix(".").partition(".")[0] or "qcompiler"


def compared_names(tree: ast.AST) -> int:
    """Comparisons of the name of an operator with literals, and `startswith` on it."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            count += any(map(_names_an_op, sides)) and any(map(_is_literal, sides))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            count += _names_an_op(node.func.value)
    return count


def _names_an_op(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return bool(_COMPARED.search(name))


def _is_literal(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.Tuple | ast.Set | ast.List) and any(map(_is_literal, node.elts))


def casts(tree: ast.AST) -> int:
    """Calls of `typing.cast`."""
    return sum(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast"
        for node in ast.walk(tree)
    )


def forbidden_openings(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and first words of each docstring, attribute description or argument that opens with a forbidden word."""
    found = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for item in body if isinstance(body, list) else []:
            if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)):
                continue
            text = item.value.value
            if not isinstance(text, str):
                continue
            for offset, line in enumerate(text.splitlines()):
                described = _DESCRIBED.match(line)
                word = described[1] if described else line.strip().split(" ")[0] if offset == 0 else ""
                if word in OPENINGS:
                    found.append((item.lineno + offset, line.strip()[:60]))
    return found


def _seconds(root: Path, *arguments: str) -> float:
    """The least seconds of several processes."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], env=environment, cwd=root, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def _names(text: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, text) for pattern in patterns)


def _counted(root: Path, path: Path, kind: str) -> str:
    """The file, or the folder that the representative of `kind` has to itself."""
    place, own = path.relative_to(root).as_posix(), OWN_FOLDERS.get(kind, "")
    return own if own and place.startswith(f"{own}/") else place


def measure(root: Path = ROOT, *, timed: bool = True) -> dict[str, object]:
    """All measures of the checkout at `root`, by name.

    Args:
        root: Top folder of the checkout.
        timed: Whether to start processes for the seconds.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sources(root)}
    data = [path for folder in SOURCES for path in (root / folder).rglob("*") if path.suffix in (".toml", ".h", ".c")]
    named = {**texts, **{path: path.read_text(encoding="utf-8") for path in data if "__pycache__" not in path.parts}}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    graph = import_graph(root)
    circles = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    arrows = {(room(a), room(b)) for a, b in graph.edges if room(a) != room(b)}
    result: dict[str, object] = {
        "files by change": {
            kind: len({_counted(root, path, kind) for path, text in named.items() if _names(text, patterns)})
            for kind, patterns in REPRESENTATIVES.items()
        },
        "circles": len(circles),
        "modules in circles": sorted(map(", ".join, circles)),
        "modules": len(texts),
        "modules at the root": sum(path.parent == root / "qcompiler" for path in texts),
        "arrows": len(arrows),
        "op comparisons": sum(map(compared_names, trees.values())),
        "casts": sum(map(casts, trees.values())),
        "openings": sum(len(forbidden_openings(tree)) for tree in trees.values()),
    }
    if timed:
        torch = _seconds(root, "-c", "import torch")
        result["seconds"] = {
            "import torch": round(torch, 2),
            "import over torch": round(_seconds(root, "-c", "import torch, qcompiler") - torch, 2),
            "--help": round(_seconds(root, "-m", "qcompiler", "--help"), 2),
            "targets": round(_seconds(root, "-m", "qcompiler", "targets"), 2),
        }
    return result


def main() -> None:
    """Print the measures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="Checkout to measure.")
    parser.add_argument("--untimed", action="store_true", help="Leave the seconds out.")
    options = parser.parse_args()
    print(json.dumps(measure(options.root.resolve(), timed=not options.untimed), indent=1))


if __name__ == "__main__":
    main()
