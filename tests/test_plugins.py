"""What other distributions add: found when they are installed, refused when they clash or are broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler.errors import PluginError

PLUGIN = Path(__file__).parent / "plugin"

_INFO = """Metadata-Version: 2.1
Name: {name}
Version: 1.0
"""

_USE = """
import torch
from torch import nn
import qcompiler
from qcompiler.pipeline import default_pipeline, known_passes, parse_pipeline, print_pipeline

assert "merge-relu" in known_passes()
assert "example_dsp" in qcompiler.targets()
text = print_pipeline(default_pipeline()).replace("fuse-activations", "merge-relu, fuse-activations", 1)
model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.ReLU()).eval()
compiled = qcompiler.compile(model, "example_dsp", example_inputs=torch.randn(2, 3, 4, 4), pipeline=text)
assert compiled.verification.passed
assert compiled.target.name == "example_dsp"
print(compiled.explain("3"))
"""


def installed(folder: Path, name: str, groups: dict[str, dict[str, str]]) -> None:
    """Make `folder` a place where a distribution with these entry points is installed."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(_INFO.format(name=name))
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in items.items())
        for group, items in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    bootstrap = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    return subprocess.run([sys.executable, "-c", bootstrap + code], capture_output=True, text=True, check=False)


def test_an_installed_plugin_adds_a_pass_and_a_target(tmp_path: Path) -> None:
    groups = {
        "qcompiler.passes": {"merge-relu": "qcompiler_example_plugin.merge_relu:MergeRelu"},
        "qcompiler.targets": {"example_dsp": "qcompiler_example_plugin"},
    }
    declared = (PLUGIN / "pyproject.toml").read_text()
    assert all(f'"{value}"' in declared for items in groups.values() for value in items.values())
    installed(tmp_path, "qcompiler-example-plugin", groups)
    result = run(_USE, tmp_path, PLUGIN)
    assert result.returncode == 0, result.stderr
    assert "merge-relu: " in result.stdout


CLASHES = {
    "a pass of ours": ({"qcompiler.passes": {"canonicalize": "a:B"}}, "known_passes()", "'canonicalize'", "qcompiler and one"),
    "a pass of another": (
        {"qcompiler.passes": {"mine": "qcompiler_example_plugin.merge_relu:MergeRelu"}},
        "known_passes()",
        "is a pass called 'merge-relu'",
        "mine",
    ),
    "something that is no pass": ({"qcompiler.passes": {"mine": "json:dumps"}}, "known_passes()", "a subclass of Pass", "mine"),
    "a module that is not there": ({"qcompiler.passes": {"mine": "no_such:B"}}, "known_passes()", "no_such", "uninstall one"),
    "a target of ours": ({"qcompiler.targets": {"int8_dsp": "json"}}, "qcompiler.targets()", "'int8_dsp'", "qcompiler and one"),
    "a back end without run": ({"qcompiler.backends": {"text": "json"}}, "plugins.load_backends()", "emit and run", "text"),
    "an operator that is none": ({"qcompiler.ops": {"sine": "math:sin"}}, "plugins.load_ops()", "an OpDef called 'sine'", "sine"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASHES)
def test_clashes_and_broken_plugins_name_their_owner(case: str, tmp_path: Path) -> None:
    groups, call, *words = CLASHES[case]
    installed(tmp_path, "one", groups)
    code = f"import qcompiler\nfrom qcompiler import plugins\nfrom qcompiler.pipeline import known_passes\n{call}\n"
    result = run(code, tmp_path, PLUGIN)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"qcompiler.errors.{PluginError.__name__}: ")
    assert all(word in last for word in words), last


def test_without_plugins_there_are_none() -> None:
    result = run("from qcompiler import plugins\nprint(plugins.load_ops(), list(plugins.load_backends()))")
    assert result.stdout.strip() == "[] ['integer', 'onnx_qdq']", result.stderr
