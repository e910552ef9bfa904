"""A `.pt2` file that would run code runs none: each place in which torch finds some is tried."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import InputError
from qcompiler.frontends.pt2 import load_exported

Members = dict[str, bytes]
GRAPH, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


class Net(nn.Module):
    """With a weight, a buffer, a constant, and a symbolic size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.ones(4, 1, 1))
        self.shift = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.conv(x) * self.scale + self.shift).relu().flatten(1)
        return y


@pytest.fixture(scope="module")
def members() -> Members:
    torch.manual_seed(0)
    sizes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(Net().eval(), (torch.randn(2, 3, 6, 6),), dynamic_shapes=sizes)
    stream = io.BytesIO()
    torch.export.save(program, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: Mapping[str, bytes], root: str = "model/", kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in content.items():
            archive.writestr(root + name, data)
    return path


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


def evil_pickle(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save((Evil(marker),), stream)
    return stream.getvalue()


def changed(content: bytes, change: Callable[[Any], object]) -> bytes:
    tree = json.loads(content)
    change(tree)
    return json.dumps(tree).encode()


def everywhere(tree: Any, key: str, value: str) -> None:
    """Give every entry called `key` another value."""
    for name, item in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if name == key and isinstance(item, str):
            tree[name] = value
        else:
            everywhere(item, key, value)


def in_a_size(members: Members, marker: Path) -> Members:
    text = f"__import__('pathlib').Path({str(marker)!r}).touch() or 2"
    return {**members, GRAPH: changed(members[GRAPH], lambda tree: everywhere(tree, "expr_str", text))}


def in_a_range(members: Members, marker: Path) -> Members:
    text = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def change(tree: Any) -> None:
        tree["range_constraints"][text] = {"min_val": 0, "max_val": 9}

    return {**members, GRAPH: changed(members[GRAPH], change)}


def in_a_guard(members: Members, marker: Path) -> Members:
    def change(tree: Any) -> None:
        tree["guards_code"] = [f"__import__('pathlib').Path({str(marker)!r}).touch() is None"]

    return {**members, GRAPH: changed(members[GRAPH], change)}


def in_an_operator(target: str) -> Callable[[Members, Path], Members]:
    def craft(members: Members, marker: Path) -> Members:
        def change(tree: Any) -> None:
            node = tree["graph_module"]["graph"]["nodes"][0]
            node["target"] = target
            node["inputs"] = [{"name": "", "arg": {"as_string": str(marker)}, "kind": 1}]

        return {**members, GRAPH: changed(members[GRAPH], change)}

    return craft


def in_the_nesting(spec: Mapping[str, object]) -> Callable[[Members, Path], Members]:
    def craft(members: Members, marker: Path) -> Members:
        marker.with_suffix(".py").write_text(f"open({str(marker)!r}, 'w')")
        text = json.dumps([1, spec])
        return {**members, GRAPH: changed(members[GRAPH], lambda tree: everywhere(tree, "in_spec", text))}

    return craft


def in_a_table(
    table: str, path: str, *, pickled: bool, make: Callable[[Path], bytes]
) -> Callable[[Members, Path], Members]:
    def craft(members: Members, marker: Path) -> Members:
        def change(tree: Any) -> None:
            entry = {"path_name": path, "is_param": False, "use_pickle": pickled, "tensor_meta": None}
            tree["config"] = dict.fromkeys(tree["config"], entry)

        folder = table.rpartition("/")[0]
        return {**members, table: changed(members[table], change), f"{folder}/{path}": make(marker)}

    return craft


def in_a_member(name: str) -> Callable[[Members, Path], Members]:
    return lambda members, marker: {**members, name: evil_pickle(marker)}


def old_format(name: str) -> Callable[[Members, Path], Members]:
    """The archives of torch 2.6 and 2.7."""

    def craft(members: Members, marker: Path) -> Members:
        version = ".".join(str(json.loads(members[GRAPH])["schema_version"][key]) for key in ("major", "minor"))
        plain = io.BytesIO()
        torch.save({}, plain)
        kept = {f"serialized_{stem}.pt": plain.getvalue() for stem in ("state_dict", "constants", "example_inputs")}
        program = {"serialized_exported_program.json": members[GRAPH], "version": version.encode(), **kept}
        return {**program, name: evil_pickle(marker)}

    return craft


def plain_pickle(marker: Path) -> bytes:
    return pickle.dumps(Evil(marker))


ENUM = {"type": "builtins.dict", "context": json.dumps([{"__enum__": True, "fqn": "marker.X", "name": "x"}]), "children_spec": []}  # fmt: skip
DEFAULT = {"type": "collections.defaultdict", "context": json.dumps({"default_factory_module": "marker", "default_factory_name": "x", "dict_context": []}), "children_spec": []}  # fmt: skip

ATTACKS: dict[str, tuple[Callable[[Members, Path], Members], str]] = {
    "sample inputs": (in_a_member(SAMPLES), "may run code"),
    "weights as one pickle": (in_a_member("data/weights/model.pt"), "may run code"),
    "constants as one pickle": (in_a_member("data/constants/model.pt"), "may run code"),
    "a weight": (in_a_table(WEIGHTS, "weight_0", pickled=True, make=evil_pickle), "may run code"),
    "a constant": (in_a_table(CONSTANTS, "tensor_0", pickled=True, make=evil_pickle), "may run code"),
    "an opaque object": (in_a_table(CONSTANTS, "opaque_obj_0", pickled=True, make=plain_pickle), "is an object"),
    "a custom object": (in_a_table(CONSTANTS, "custom_obj_0", pickled=True, make=evil_pickle), "is an object"),
    "a symbolic size": (in_a_size, "a size is"),
    "the name of a range": (in_a_range, "a size is"),
    "a function of torch": (in_an_operator("torch.load"), "the program calls 'torch.load'"),
    "a library": (in_an_operator("torch.ops.load_library"), "the program calls"),
    "a namespace that is none": (in_an_operator("torch.ops.loaded_libraries.add"), "the program calls"),
    "an operator that opens files": (in_an_operator("torch.ops.aten.from_file.default"), "the program calls"),
    "a call of anything": (in_an_operator("_operator.call"), "the program calls"),
    "a module named by an enumeration": (in_the_nesting(ENUM), "would have to be imported"),
    "a module named by a default": (in_the_nesting(DEFAULT), "would have to be imported"),
    "a compiled library": (in_a_member("data/aotinductor/model/model.so"), "compiled library"),
    "old weights": (old_format("serialized_state_dict.pt"), "may run code"),
    "old weights in JSON": (old_format("serialized_state_dict.json"), "may run code"),
    "old constants": (old_format("serialized_constants.pt"), "may run code"),
    "old inputs": (old_format("serialized_example_inputs.pt"), "may run code"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_file_runs(attack: str, members: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    craft, words = ATTACKS[attack]
    monkeypatch.syspath_prepend(tmp_path)  # where a module called `marker` would be found
    marker = tmp_path / "marker"
    root = "" if attack.startswith("old") else "model/"
    path = write(tmp_path / "evil.pt2", craft(members, marker), root)
    with pytest.raises(InputError, match=words) as caught:
        load_exported(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_guards_are_left_out(members: Members, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = load_exported(write(tmp_path / "evil.pt2", in_a_guard(members, marker)))
    program.module()(torch.randn(3, 3, 6, 6))
    assert not marker.exists()


def test_the_attacks_are_real(members: Members, tmp_path: Path) -> None:
    """torch itself runs what is in the sample inputs: this file would test nothing otherwise."""
    marker = tmp_path / "marker"
    path = write(tmp_path / "evil.pt2", ATTACKS["sample inputs"][0](members, marker))
    with contextlib.suppress(Exception):  # which comes after the fact
        torch.export.load(path)
    assert marker.exists()


def test_a_file_as_torch_writes_it_compiles_to_the_same(members: Members, tmp_path: Path) -> None:
    path = write(tmp_path / "model.pt2", members)
    data = [torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))]
    compiled = qcompiler.compile(path, calibration_data=data, verify="off")
    direct = qcompiler.compile(torch.export.load(path), calibration_data=data, verify="off")
    assert compiled.artifact.files() == direct.artifact.files()


def sized(nbytes: bytes, sizes: list[int]) -> Callable[[Members, Path], Members]:
    def craft(members: Members, marker: Path) -> Members:
        def change(tree: Any) -> None:
            entry = next(iter(tree["config"].values()))
            entry["tensor_meta"]["sizes"] = [{"as_int": size} for size in sizes]
            entry["tensor_meta"]["strides"] = [{"as_int": 0} for _ in sizes]
            entry["path_name"] = "weight_x"

        return {**members, WEIGHTS: changed(members[WEIGHTS], change), "data/weights/weight_x": nbytes}

    return craft


@pytest.mark.parametrize("nbytes", [b"", b"abcd"])
def test_a_tensor_larger_than_memory_is_refused(nbytes: bytes, members: Members, tmp_path: Path) -> None:
    path = write(tmp_path / "huge.pt2", sized(nbytes, [10**8, 10**7])(members, tmp_path))
    with pytest.raises(InputError, match=f"1000000000000000 elements in {len(nbytes)} bytes"):
        load_exported(path)


def test_archives_that_are_none(members: Members, tmp_path: Path) -> None:
    zeros = {**members, "data/extra": bytes(10**6)}
    path = write(tmp_path / "bomb.pt2", zeros, kind=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"its members need \d+ bytes, but the file has \d+"):
        load_exported(path)
    data = write(tmp_path / "whole.pt2", members).read_bytes()
    for content in (b"", b"PK", data[: len(data) // 2], b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not an exported program"):
            load_exported(path)
    without = {name: content for name, content in members.items() if name != GRAPH}
    with pytest.raises(InputError, match=r"it has no models/model\.json"):
        load_exported(write(path, without))
