"""Modules on disk, and what makes two of them the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qcompiler.errors import ArtifactError
from qcompiler.ir.events import Event, Message, Record, Sentence
from qcompiler.ir.graph import Location, Module
from qcompiler.ir.hashing import module_hash, tensor_digest
from qcompiler.ir.serialize import TENSORS, TEXT, load_module, save_module
from qcompiler.ir.text import parse_module, print_module
from tests.backends.integer.test_executor import build

TEXT_OF_ONE = """graph @main stage=float {
  input %x : f32[2, 4]
  %w = parameter() {ref = "w", dtype = "f32", shape = (2, 4)} : f32[2, 4]
  %y = linear(%x, %w) : f32[2, 2] loc("fc", "net:forward:1")
  return %y
}
"""


def one() -> Module:
    return parse_module(TEXT_OF_ONE, {"w": torch.arange(8.0).reshape(2, 4)})


def test_a_compiled_network_comes_back(tmp_path: Path) -> None:
    module = build("mixed", "int8_dsp")
    read = Sentence("read", "{readers} read {share:.1f} of it")(readers=("c", "d"), share=1 / 3)
    events = [Event("rewrite", "a", ("a", "b"), "", message) for message in (Message.of("done"), read)]
    records = [Record("fold", events, {"max_difference": 0.5})]
    save_module(module, tmp_path / "m.qir", records)
    loaded, provenance = load_module(tmp_path / "m.qir")
    assert print_module(loaded) == print_module(module)
    assert provenance == records
    assert [event.detail for event in provenance[0].events] == ["done", "c, d read 0.3 of it"]
    for name, tensor in module.tensors.items():
        assert torch.equal(tensor, loaded.tensors[name]) or torch.isnan(tensor).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.qir"]


def test_the_same_module_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.qir", "b.qir"):
        save_module(one(), tmp_path / name)
    for path in (tmp_path / "a.qir").iterdir():
        assert path.read_bytes() == (tmp_path / "b.qir" / path.name).read_bytes()


def test_tensors_that_share_memory_and_bf16_are_kept(tmp_path: Path) -> None:
    module = one()
    module.tensors["view"] = module.tensors["w"][0]
    module.tensors["b"] = torch.ones(3, dtype=torch.bfloat16)
    save_module(module, tmp_path / "m.qir")
    loaded, _ = load_module(tmp_path / "m.qir")
    assert torch.equal(loaded.tensors["view"], module.tensors["view"])
    assert loaded.tensors["b"].dtype is torch.bfloat16


@pytest.mark.parametrize("name", [TEXT, TENSORS])
def test_what_is_missing_or_damaged_is_named(name: str, tmp_path: Path) -> None:
    folder = save_module(one(), tmp_path / "m.qir")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data.replace(b"float", b"canonical") if name == TEXT else data[:-1] + b"\x01")
    with pytest.raises(ArtifactError):
        load_module(folder)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        load_module(folder)


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.qir").mkdir()
    (tmp_path / "mine.qir" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"is not a module: it contains thesis\.txt"):
        save_module(one(), tmp_path / "mine.qir")
    with pytest.raises(ArtifactError, match=r"\.qir"):
        save_module(one(), tmp_path / "mine")
    assert (tmp_path / "mine.qir" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["notes.txt", TEXT, "provenance.json"])
def test_what_the_user_put_into_a_module_is_named(name: str, tmp_path: Path) -> None:
    folder = save_module(one(), tmp_path / "m.qir")
    with (folder / name).open("a") as file:
        file.write("# mine\n")
    with pytest.raises(ArtifactError, match=f"a module that also contains your files: {name}"):
        save_module(one(), folder)
    assert "# mine" in (folder / name).read_text()


def test_a_module_is_replaced(tmp_path: Path) -> None:
    save_module(build("mixed", "int8_dsp"), tmp_path / "m.qir")
    save_module(one(), tmp_path / "m.qir")
    assert module_hash(load_module(tmp_path / "m.qir")[0]) == module_hash(one())
    assert [path.name for path in tmp_path.iterdir()] == ["m.qir"]


def test_the_hash_is_that_of_what_is_computed() -> None:
    reference = module_hash(one())
    renamed = parse_module(TEXT_OF_ONE.replace("%y", "%z").replace('"w"', '"v"'), {"v": one().tensors["w"]})
    assert module_hash(renamed) == reference
    moved = one()
    next(moved.main.reversed_nodes).location = Location("elsewhere")
    moved.tensors["unused"] = torch.zeros(1)
    assert module_hash(moved) == reference
    changed = one()
    changed.tensors["w"] = changed.tensors["w"] + torch.eye(2, 4) * 1e-7
    assert module_hash(changed) != reference
    assert module_hash(parse_module(TEXT_OF_ONE.replace("float", "canonical"), one().tensors)) != reference


def test_a_tensor_digest_covers_type_shape_and_content() -> None:
    x = torch.zeros(4)
    variants = [x, x.reshape(2, 2), x.to(torch.int32), torch.tensor([0.0, 0.0, 0.0, -0.0])]
    assert len({tensor_digest(tensor) for tensor in variants}) == len(variants)
    assert tensor_digest(torch.arange(6.0).reshape(2, 3).t()) == tensor_digest(
        torch.arange(6.0).reshape(2, 3).t().contiguous()
    )
