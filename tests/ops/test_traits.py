"""Traits: that the facts of the operators hold when the operators are evaluated, and how they go together."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.interpret import evaluate_node
from qcompiler.ir.registry import Trait, known_ops, op
from qcompiler.ir.types import DType, Stage, TensorType
from qcompiler.ops.kinds import integer_kinds
from qcompiler.ops.quantizers import activation_bounds
from qcompiler.ops.work import layer_products

SHAPE = (2, 4, 6, 6)
ATTRIBUTES: Mapping[str, Mapping[str, Attribute]] = {
    "clamp": {"min": -0.5, "max": 0.5},
    "max_pool2d": {"kernel": (2, 2), "stride": (2, 2)},
    "avg_pool2d": {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)},
    "adaptive_avg_pool2d": {"output_size": (4, 4)},
    "resize": {"size": (9, 9), "mode": "bilinear"},
    "mean": {"axes": (2, 3)},
    "reshape": {"shape": (2, 144)},
    "permute": {"axes": (0, 2, 3, 1)},
    "concat": {"axis": 1},
    "slice": {"axis": 1, "start": 1, "stop": 3},
    "gather": {"axis": 1, "indices": (3, 0, 0)},
    "pad": {"pad": (0, 0, 1, 1, 0, 0, 1, 1)},
    "expand": {"shape": SHAPE},
    "take_along": {"axis": 1},
}
PARAMETERS: Mapping[str, tuple[Tensor, ...]] = {
    "prelu": (torch.tensor([0.25]),),
    "embedding": (torch.tensor([3, 0, 9]),),
    "masked": (torch.tensor([True, False, True, False, True, True]),),
    "expand": (torch.zeros(1),),
    "take_along": (torch.tensor([3, 0]).reshape(1, 2, 1, 1).expand(2, 2, 6, 6),),
}


def ops_with(trait: Trait) -> list[str]:
    """Names of the operators on real numbers that have `trait`, except those of tests."""
    known = known_ops().items()
    return [n for n, item in known if item.has(trait) and Stage.CANONICAL in item.stages and not n.startswith("test_")]


def node_of(name: str, *tensors: Tensor) -> Node:
    """A node on operands of the shapes of `tensors`."""
    graph = Module().add(Graph())
    inputs = [
        graph.add_input(f"x{i}", TensorType(DType.of(item.dtype), tuple(item.shape))) for i, item in enumerate(tensors)
    ]
    return graph.append(name, inputs, ATTRIBUTES.get(name))


def computed(name: str, x: Tensor) -> Tensor:
    """The result of an operator for the operand `x`, given for each activation that the operator reads."""
    definition = op(name)
    x = x.reshape(-1, SHAPE[-1]) if name == "embedding" else x
    own = PARAMETERS.get(name, ())
    count = 2 if definition.has(Trait.ELEMENTWISE) else 1
    operands = [x] * count + list(own)
    return evaluate_node(node_of(name, *operands), operands)[0]


@pytest.fixture
def x() -> Tensor:
    """Random numbers of both signs, beyond the limits of the functions."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 3.0


@pytest.mark.parametrize("name", ops_with(Trait.NOT_NEGATIVE))
def test_results_are_never_negative(name: str, x: Tensor) -> None:
    found = computed(name, x if name not in ("sqrt", "rsqrt") else x.abs())
    assert bool((found >= 0.0).all())


@pytest.mark.parametrize("name", ops_with(Trait.KEEPS_SIGN))
def test_operands_without_negative_elements_give_a_result_without(name: str, x: Tensor) -> None:
    assert bool((computed(name, x.abs()) >= 0.0).all())


@pytest.mark.parametrize("name", ops_with(Trait.COMMUTES_WITH_SCALE))
def test_a_positive_scale_passes_through(name: str, x: Tensor) -> None:
    assert torch.equal(computed(name, x * 4.0), computed(name, x) * 4.0)  # a power of two rounds nothing


@pytest.mark.parametrize("name", ops_with(Trait.RECTIFIER))
def test_a_rectifier_keeps_positive_elements_and_scales_the_others(name: str, x: Tensor) -> None:
    found = computed(name, x)
    slope = (found / x)[x < 0.0]
    assert torch.equal(found[x > 0.0], x[x > 0.0])
    assert torch.allclose(slope, slope[0].expand_as(slope))


@pytest.mark.parametrize("name", ops_with(Trait.AVERAGE))
def test_an_average_stays_within_the_range_of_its_operand(name: str, x: Tensor) -> None:
    found = computed(name, x)
    assert float(x.min()) <= float(found.min()) <= float(found.max()) <= float(x.max())


@pytest.mark.parametrize("name", ops_with(Trait.SPATIAL))
def test_spatial_ops_keep_channels_apart(name: str, x: Tensor) -> None:
    changed = x.clone()
    changed[:, 1] += 1.0
    before, after = computed(name, x), computed(name, changed)
    assert torch.equal(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
    assert not torch.equal(before[:, 1], after[:, 1])


@pytest.mark.parametrize("name", ops_with(Trait.VIEW))
def test_a_view_has_elements_of_its_operand_only(name: str, x: Tensor) -> None:
    assert op(name).has(Trait.MOVEMENT)
    assert set(computed(name, x).flatten().tolist()) <= set(x.flatten().tolist())


@pytest.mark.parametrize("name", ops_with(Trait.ACTIVATION))
def test_an_activation_clamps_to_its_bounds(name: str, x: Tensor) -> None:
    low, high = activation_bounds(node_of(name, x))
    assert op(name).has(Trait.CLAMP)
    assert torch.equal(computed(name, x), x.clamp(low, high))


def test_a_sum_of_products_is_a_layer_or_a_contraction() -> None:
    layers, contractions = set(ops_with(Trait.WEIGHTED)), set(ops_with(Trait.CONTRACTION))
    assert set(ops_with(Trait.MAC)) == layers | contractions
    assert not layers & contractions
    assert contractions == {"matmul"}
    assert set(ops_with(Trait.TRANSPOSED)) < set(ops_with(Trait.CONVOLUTION)) < layers
    for name in layers:
        integer = op(f"int_{name}")
        for trait in (Trait.WEIGHTED, Trait.CONVOLUTION, Trait.TRANSPOSED):
            assert integer.has(trait) == op(name).has(trait)


def test_a_definition_has_one_of_several_traits() -> None:
    assert op("relu").has(Trait.MAC, Trait.CLAMP)
    assert not op("relu").has(Trait.MAC, Trait.UNARY)
    assert not op("relu").has()


def test_kinds_of_integer_forms_come_from_the_definitions() -> None:
    kinds = integer_kinds()
    assert (kinds["conv2d"], kinds["matmul"], kinds["add"], kinds["mean"], kinds["prelu"]) == (
        "mac",
        "product",
        "elementwise",
        "average",
        "table",
    )
    assert {"div", "batch_norm", "identity", "custom"}.isdisjoint(kinds)


@pytest.mark.parametrize(
    ("name", "x", "weight", "y", "products"),
    [
        ("conv2d", (1, 4, 6, 6), (8, 2, 3, 3), (1, 8, 4, 4), 8 * 2 * 9 * 16),
        ("int_conv_transpose2d", (1, 4, 6, 6), (4, 8, 3, 3), (1, 8, 8, 8), 4 * 8 * 9 * 36),
        ("linear", (2, 5, 4), (8, 4), (2, 5, 8), 8 * 4 * 10),
    ],
)
def test_products_of_a_layer(
    name: str, x: tuple[int, ...], weight: tuple[int, ...], y: tuple[int, ...], products: int
) -> None:
    assert layer_products(op(name), x, weight, y) == products
