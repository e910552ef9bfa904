"""A builder appends one node per operand and names what it cannot append."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.builder import Builder, Observed
from qcompiler.frontends.rules import RULES
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.dims import symbol
from qcompiler.ir.graph import Graph, Location, Module, Value
from qcompiler.ir.types import DType, Stage, TensorType

N = symbol("N")
PLACE = Location("block.act", "net:Net.forward:7")
SEEN = Observed((N, 4), torch.float32)


def begun(path: str = "block.act") -> tuple[Builder, Value]:
    """A builder whose next call stands at `path`, and an input."""
    graph = Module().add(Graph("main", Stage.FLOAT))
    builder = Builder(graph, frozenset({"", "block"}), torch.device("cpu"))
    builder.location, builder.function, builder.observed = Location(path, PLACE.source), "relu", SEEN
    return builder, graph.add_input("x", TensorType(DType.F32, (N, 4)))


@pytest.mark.parametrize(("path", "name"), [("block.act", "block.act"), ("block", "block.relu"), ("", "relu")])
def test_a_node_is_named_after_its_module_or_its_operator(path: str, name: str) -> None:
    builder, x = begun(path)
    value = builder.node("relu", [x])
    assert (value.name, value.producer.location.path if value.producer else None) == (name, path)


def test_a_leaf_is_appended_once_and_does_not_share_memory_layout() -> None:
    builder, _ = begun()
    weight = Leaf("parameter", "block.weight", nn.Parameter(torch.arange(8.0).reshape(2, 4).t()))
    first, second = builder.value(weight), builder.value(weight)
    assert first is second
    assert first.name == "block.weight"
    held = builder.graph.module.tensors["block.weight"]
    assert held.is_contiguous()
    assert not held.requires_grad
    assert torch.equal(held, weight.tensor)
    assert len(builder.graph) == 1


def test_numbers_become_constants_of_the_type_of_the_operand() -> None:
    builder, x = begun()
    builder.node("add", [x, 2])
    constant = builder.graph.module.tensors["block.act.constant"]
    assert (constant.dtype, constant.item()) == (torch.float32, 2.0)
    same = builder.value(1, torch.int64)
    assert same.type == TensorType(DType.I64, ())


@pytest.mark.parametrize(
    ("item", "dtype", "message"),
    [
        (0.5, torch.int64, r"relu mixes torch.int64 with the number 0.5 .*Convert to float first"),
        (N, torch.float32, r"relu computes with the number N, which depends on the batch size N"),
        ("x", torch.float32, r"relu has a str in place of a tensor \(at block.act, net:Net.forward:7\)"),
    ],
)
def test_what_is_no_operand_is_named(item: object, dtype: torch.dtype, message: str) -> None:
    builder, _ = begun()
    with pytest.raises(UnsupportedError, match=message):
        builder.value(item, dtype)


def test_numpys_names_of_arguments_are_torchs() -> None:
    builder, x = begun()
    seen = Observed((N, 1), torch.float32)
    value = builder.call(RULES["mean"], "mean", (x,), {"axis": 1, "keepdims": True}, PLACE, seen)
    assert isinstance(value, Value)
    assert value.type.shape == (N, 1)


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "seen", "message"),
    [
        ("relu", (1, 2, 3, 4), {}, SEEN, "relu has arguments that no operator accepts: too many positional arguments"),
        ("sigmoid", (), {"out": None}, SEEN, "sigmoid has arguments that no operator accepts: out=None"),
        ("permute", ((0, 5),), {}, SEEN, "permute has arguments that no operator accepts: axis 5 of 2"),
        ("permute", ((0, 0),), {}, SEEN, r"permute: .*\(at .*block.act"),
        ("relu", (), {}, Observed((N, 5), torch.float32), r"relu gives f32\[N, 5\] in torch and f32\[N, 4\] as an operator"),
        ("relu", (), {}, Observed((N, 4), torch.int64), r"relu gives i64\[N, 4\] in torch and f32\[N, 4\] as an operator"),
        ("reshape", (), {}, [SEEN], "reshape does not return a single tensor"),
        ("unbind", (), {}, SEEN, "unbind does not return several tensors"),
    ],
)  # fmt: skip
def test_a_call_that_no_rule_accepts_is_refused(
    function: str, arguments: tuple[object, ...], keywords: dict[str, object], seen: object, message: str
) -> None:
    builder, x = begun()
    with pytest.raises(UnsupportedError, match=message):
        builder.call(RULES[function], function, (x, *arguments), keywords, PLACE, seen)


def test_each_of_several_results_is_checked() -> None:
    builder, x = begun()
    parts = [Observed((N,), torch.float32), Observed((N, 3), torch.float32), *[Observed((N,), torch.float32)] * 2]
    with pytest.raises(UnsupportedError, match=r"unbind gives f32\[N, 3\] in torch and f32\[N\] as an operator"):
        builder.call(RULES["unbind"], "unbind", (x, 1), {}, PLACE, parts)


def test_a_refusal_is_raised_by_whoever_reads_it() -> None:
    builder, _ = begun()
    refusal = builder.refusal("the indices are read", "Pool without the indices.")
    assert isinstance(refusal.error, UnsupportedError)
    assert str(refusal.error).startswith("the indices are read (at block.act, net:Net.forward:7)")
