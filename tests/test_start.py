"""The modules imported at the start of the package: a bound on modules, not on time."""

from __future__ import annotations

import subprocess
import sys

import pytest

import qcompiler

HEAVY = {"onnx", "onnxruntime", "onnx_graphsurgeon", "networkx", "rich.console", "typer", "matplotlib", "scipy"}
"""Packages that take longer to import than the compiler, and that few calls need."""
COMPILERS = {"torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "sympy"}
"""Parts of torch that take seconds; torch alone does not import them."""


def _imported(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after `code`, less those that it held at the word `before`."""
    program = f"import sys\n{code}\nprint(*(set(sys.modules) - before), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stderr.splitlines()[-1].split())


def test_importing_the_package_needs_no_torch() -> None:
    loaded = _imported("before = set()\nimport qcompiler")
    assert "qcompiler.targets" in loaded
    assert not loaded & ({"torch", "numpy"} | HEAVY | COMPILERS)


def test_compiling_imports_no_compiler_of_torch() -> None:
    loaded = _imported(
        "import torch\nbefore = set(sys.modules)\n"
        "import qcompiler\nqcompiler.compile, qcompiler.load, qcompiler.check, qcompiler.Compiled"
    )
    assert "qcompiler.session.compile" in loaded
    assert not loaded & (HEAVY | COMPILERS), "a decorator or an annotation is enough to import them"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compile", "--help"], ["targets"], ["targets", "int8_dsp"], ["--version"]]
)
def test_commands_about_the_program_need_no_torch(arguments: list[str]) -> None:
    loaded = _imported(f"before = set()\nfrom qcompiler.cli import main\nassert main({arguments!r}) == 0")
    assert "qcompiler.cli" in loaded
    assert not loaded & ({"torch", "numpy"} | COMPILERS)


def test_every_public_name_is_there() -> None:
    """In an interpreter of its own: here, other tests have imported what belongs to the names."""
    code = (
        "import qcompiler\n"
        "for name in qcompiler.__all__: getattr(qcompiler, name)\n"
        "assert callable(qcompiler.targets) and 'int8_dsp' in qcompiler.targets()\n"
        "assert set(qcompiler.__all__) <= set(dir(qcompiler))\n"
        "qcompiler.training.freezing, qcompiler.passes.Pass"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compiler'"):
        qcompiler.compiler  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute '__wrapped__'"):
        qcompiler.__wrapped__  # noqa: B018
