"""Plugins of other distributions: found when they are installed, refused when they clash or are broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler.errors import PluginError
from qcompiler.plugins import find_entries

PLUGIN = Path(__file__).parents[1] / "plugin"

_INFO = """Metadata-Version: 2.1
Name: {name}
Version: 1.0
"""

_USE = """
import dataclasses
import torch
from torch import nn
import qcompiler
from qcompiler.backends.base import Emitted
from qcompiler.errors import QCompilerError
from qcompiler.session.pipeline import default_pipeline, known_passes, parse_pipeline, print_pipeline

assert "merge-relu" in known_passes()
assert "example_dsp" in qcompiler.targets()
text = print_pipeline(default_pipeline()).replace("fuse-activations", "merge-relu, fuse-activations", 1)
model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.ReLU()).eval()
compiled = qcompiler.compile(model, "example_dsp", example_inputs=torch.randn(2, 3, 4, 4), pipeline=text)
assert compiled.verification.passed
assert compiled.target.name == "example_dsp"
print(compiled.explain("3"))

assert compiled.verification.form("outline").status == "equal"
assert compiled.artifact.forms["outline"].files["outline/model.txt"].startswith(b"# Sequential for example_dsp")
assert "outline" in compiled.artifact.report()
loaded = qcompiler.load(compiled.save("out"))
assert loaded.files() == compiled.artifact.files()
assert loaded.verify().form("outline").status == "equal"
text = loaded.forms["outline"].files["outline/model.txt"].decode()
damaged = dataclasses.replace(
    loaded, forms={"outline": Emitted({"outline/model.txt": text.replace('int_conv2d', 'int_linear').encode()})}
)
try:
    damaged.verify()
except QCompilerError as error:
    print("damaged:", error)

island = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Threshold(0.1, 0.0), nn.Conv2d(4, 2, 1)).eval()
target = qcompiler.load_target("int8_dsp").override(fallback="float")
other = qcompiler.compile(island, target, calibration_data=[torch.randn(2, 3, 4, 4)])
print(other.verification.form("outline"))
assert other.verification.form("onnxruntime, layer by layer").status != "not run", "the other forms stand"
"""


_ASK = """
from qcompiler.ir.registry import op
from qcompiler.backends import known_backends

print(op("conv2d").name, list(known_backends()))

import qcompiler

loaded = qcompiler.load("out")
assert loaded.forms["outline"].files, "a form without its back end is kept"
print(loaded.verify().form("outline"))
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


_FORKED = """
import json, os, sys, traceback
import torch
import qcompiler.backends.integer.c.form, qcompiler.backends.onnx_qdq.form, qcompiler.session.compile
for name, (code, paths) in json.load(sys.stdin).items():
    child = os.fork()
    if not child:
        with open(f"{name}.out", "w") as out, open(f"{name}.err", "w") as err:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            sys.path[:0] = paths
            status = 0
            try:
                exec(compile(code, name, "exec"), {"__name__": "__main__"})
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Output and errors of processes, by what is installed for them: none has looked for plugins before."""
    folder = tmp_path_factory.mktemp("plugins")
    calls: dict[str, tuple[str, list[str]]] = {}
    for number, (case, (groups, call, *_)) in enumerate(CLASHES.items()):
        place = folder / f"installed {number}"
        place.mkdir()
        installed(place, "one", groups)
        imports = "import qcompiler\nfrom qcompiler.ir.registry import known_ops\nfrom qcompiler.backends import known_backends\nfrom qcompiler.session.pipeline import known_passes\n"
        calls[case] = (f"{imports}{call}\n", [str(place), str(PLUGIN)])
    example = folder / "example"
    example.mkdir()
    installed(example, "qcompiler-example-plugin", EXAMPLE)
    calls["the example"] = (_USE, [str(example), str(PLUGIN)])
    calls["nothing"] = (_ASK, [])
    path = {**os.environ, "PYTHONPATH": str(PLUGIN.parents[1])}
    subprocess.run(
        [sys.executable, "-c", _FORKED], cwd=folder, env=path, input=json.dumps(calls), text=True, check=True
    )
    return {case: tuple((folder / f"{case}.{end}").read_text() for end in ("out", "err")) for case in calls}  # type: ignore[misc]  # two


def test_what_is_installed_or_removed_in_a_running_process_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not find_entries("qcompiler.test", {})
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("one", "two"):
        installed(tmp_path, name, {"qcompiler.test": {name: "json:dumps"}})
        assert list(find_entries("qcompiler.test", {}))[-1] == name
    shutil.rmtree(tmp_path / "one-1.0.dist-info")
    assert list(find_entries("qcompiler.test", {})) == ["two"]
    monkeypatch.undo()
    assert not find_entries("qcompiler.test", {})


EXAMPLE = {
    "qcompiler.passes": {"merge-relu": "qcompiler_example_plugin.merge_relu:MergeRelu"},
    "qcompiler.targets": {"example_dsp": "qcompiler_example_plugin"},
    "qcompiler.backends": {"outline": "qcompiler_example_plugin.outline:Outline"},
}


def test_an_installed_plugin_adds_a_pass_and_a_target(ran: dict[str, tuple[str, str]]) -> None:
    declared = (PLUGIN / "pyproject.toml").read_text()
    assert all(f'"{value}"' in declared for items in EXAMPLE.values() for value in items.values())
    out, err = ran["the example"]
    assert "merge-relu: " in out, err


def test_the_back_end_of_a_plugin_is_emitted_verified_saved_and_loaded(ran: dict[str, tuple[str, str]]) -> None:
    out, err = ran["the example"]
    assert "damaged: " in out, err
    assert "outline: not run (an outline has no float islands, at " in out, err
    assert "outline: not run (no back end called 'outline' is installed)" in ran["nothing"][0], ran["nothing"][1]


CLASHES = {
    "a pass of ours": ({"qcompiler.passes": {"canonicalize": "a:B"}}, "known_passes()", "'canonicalize'", "qcompiler and one"),
    "a pass of another": (
        {"qcompiler.passes": {"mine": "qcompiler_example_plugin.merge_relu:MergeRelu"}},
        "known_passes()",
        "is a pass with the name 'merge-relu'",
        "mine",
    ),
    "something that is no pass": ({"qcompiler.passes": {"mine": "json:dumps"}}, "known_passes()", "a subclass of Pass", "mine"),
    "a module that is not there": ({"qcompiler.passes": {"mine": "no_such:B"}}, "known_passes()", "no_such", "uninstall one"),
    "a target of ours": ({"qcompiler.targets": {"int8_dsp": "json"}}, "qcompiler.targets()", "'int8_dsp'", "qcompiler and one"),
    "something that is no back end": ({"qcompiler.backends": {"text": "json"}}, "known_backends()", "a subclass of Backend", "text"),
    "a back end of another name": (
        {"qcompiler.backends": {"text": "qcompiler_example_plugin.outline:Outline"}},
        "known_backends()",
        "is a back end with the name 'outline'",
        "text",
    ),
    "a back end of ours": ({"qcompiler.backends": {"C": "json"}}, "known_backends()", "'C'", "qcompiler and one"),
    "an operator that is none": ({"qcompiler.ops": {"sine": "math:sin"}}, "known_ops()", "an OpDef with the name 'sine'", "sine"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASHES)
def test_clashes_and_broken_plugins_name_their_owner(case: str, ran: dict[str, tuple[str, str]]) -> None:
    _, _, *words = CLASHES[case]
    last = ran[case][1].strip().splitlines()[-1]
    assert last.startswith(f"qcompiler.errors.{PluginError.__name__}: ")
    assert all(word in last for word in words), last


def test_without_plugins_there_are_operators_and_back_ends_of_ours(ran: dict[str, tuple[str, str]]) -> None:
    out, err = ran["nothing"]
    assert out.startswith("conv2d ['C', 'ONNX', 'TFLite']\n"), err
