"""Each float operator against the torch function that it stands for: values bit for bit, shapes as inferred."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.dims import evaluate_dim, symbol
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.interpret import evaluate_node
from qcompiler.ir.registry import Trait, known_ops
from qcompiler.ir.types import DType, Stage, TensorType
from qcompiler.ops import UNARY
from qcompiler.quant.spec import QuantSpec

Attributes = dict[str, Attribute]


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def node(
    op: str, tensors: list[Tensor], attributes: Attributes, *, symbolic: bool = False, stage: Stage = Stage.FLOAT
) -> Node:
    """A graph of one node; `symbolic`: the first size of each operand of the first one's batch is N."""
    graph = Module().add(Graph(stage=stage))
    batch = tensors[0].shape[0] if tensors[0].dim() else None
    values = []
    for item in tensors:
        shape = tuple(item.shape)
        if symbolic and shape and shape[0] == batch:
            shape = (symbol("N"), *shape[1:])
        values.append(graph.add_input("x", TensorType(DType.of(item.dtype), shape)))
    return graph.append(op, values, attributes)


def check(op: str, tensors: list[Tensor], attributes: Attributes, expected: Tensor) -> None:
    found = node(op, tensors, attributes)
    (result,) = evaluate_node(found, tensors)
    assert torch.equal(result, expected)
    assert found.output.type.shape == tuple(expected.shape)
    assert found.output.type.dtype.torch == expected.dtype


X = tensor(2, 4, 6, 7)
OF_POSITIVES = ("log", "sqrt", "rsqrt")
"""Functions without a value for negative numbers; `log1p` has none below -1."""
ONE = tensor(4, seed=3)
IDS = torch.arange(6).reshape(2, 3)
CASES: dict[str, tuple[str, list[Tensor], Attributes, Callable[..., Tensor]]] = {
    "relu": ("relu", [X], {}, torch.relu),
    "clamp": ("clamp", [X], {"min": -0.5, "max": 0.5}, lambda x: x.clamp(-0.5, 0.5)),
    "clamp_channels": (
        "clamp_channels",
        [X, torch.tensor([-0.5, 0.0, -torch.inf, -0.1]), torch.tensor([0.5, torch.inf, 0.3, -0.1])],
        {"axis": 1},
        lambda x, low, high: torch.maximum(torch.minimum(x, high.reshape(4, 1, 1)), low.reshape(4, 1, 1)),
    ),
    "clamp_channels of the last axis": (
        "clamp_channels",
        [X, tensor(7) - 3, tensor(7) + 3],
        {"axis": 3},
        lambda x, low, high: torch.maximum(torch.minimum(x, high), low),
    ),
    "add": ("add", [X, tensor(4, 1, 7)], {}, torch.add),
    "sub": ("sub", [X, tensor(7)], {}, torch.sub),
    "mul": ("mul", [X, tensor(2, 1, 6, 1)], {}, torch.mul),
    "maximum": ("maximum", [X, tensor(2, 1, 6, 1)], {}, torch.maximum),
    "minimum": ("minimum", [X, tensor(7)], {}, torch.minimum),
    "div": ("div", [X, tensor()], {}, torch.div),
    "identity": ("identity", [X], {}, lambda x: x),
    "dropout at inference": ("dropout", [X], {"p": 0.9}, lambda x: x),
    "batch norm at inference": (
        "batch_norm",
        [X, ONE, ONE + 1, ONE - 1, ONE.abs() + 0.1],
        {"eps": 1e-3},
        lambda x, w, b, m, v: functional.batch_norm(x, m, v, w, b, False, 0.1, 1e-3),
    ),
    "a slope": ("prelu", [X, tensor(1)], {}, functional.prelu),
    "a slope per channel": ("prelu", [X, tensor(4)], {}, functional.prelu),
    "a function between scales": (
        "scaled_unary",
        [X, ONE.abs() + 0.1],
        {"function": "gelu", "parameters": ("tanh",), "axis": 1},
        lambda x, s: functional.gelu(x * s.reshape(4, 1, 1), approximate="tanh") / s.reshape(4, 1, 1),
    ),
    "a function between scales of the last axis": (
        "scaled_unary",
        [X, tensor(7).abs() + 0.1],
        {"function": "silu", "axis": 3},
        lambda x, s: functional.silu(x * s) / s,
    ),
    "layer norm": ("layer_norm", [X, tensor(7), tensor(7)], {"eps": 1e-3}, lambda x, w, b: functional.layer_norm(x, (7,), w, b, 1e-3)),
    "layer norm over two axes": ("layer_norm", [X, tensor(6, 7), tensor(6, 7)], {}, lambda x, w, b: functional.layer_norm(x, (6, 7), w, b)),
    "linear": ("linear", [tensor(3, 5, 4), tensor(6, 4), tensor(6)], {}, functional.linear),
    "linear without bias": ("linear", [tensor(3, 4), tensor(6, 4)], {}, functional.linear),
    "softmax": ("softmax", [tensor(2, 3, 4)], {"axis": 2}, lambda x: torch.softmax(x, 2)),
    "log_softmax": ("log_softmax", [tensor(2, 3, 4)], {"axis": 2}, lambda x: torch.log_softmax(x, 2)),
    "matmul": ("matmul", [tensor(2, 3, 4), tensor(4, 5)], {}, torch.matmul),
    "mean": ("mean", [X], {"axes": (2, 3)}, lambda x: x.mean((2, 3))),
    "mean that keeps": ("mean", [X], {"axes": (1,), "keepdim": True}, lambda x: x.mean(1, keepdim=True)),
    "adaptive pooling": ("adaptive_avg_pool2d", [X], {"output_size": (4, 3)}, lambda x: functional.adaptive_avg_pool2d(x, (4, 3))),
    "nearest": ("resize", [X], {"size": (9, 5), "mode": "nearest"}, lambda x: functional.interpolate(x, (9, 5))),
    "bilinear": ("resize", [X], {"size": (9, 5), "mode": "bilinear"}, lambda x: functional.interpolate(x, (9, 5), mode="bilinear")),
    "bilinear by corners": (
        "resize",
        [X],
        {"size": (3, 20), "mode": "bilinear", "align_corners": True},
        lambda x: functional.interpolate(x, (3, 20), mode="bilinear", align_corners=True),
    ),
    "reshape": ("reshape", [X], {"shape": (8, 42)}, lambda x: x.reshape(8, 42)),
    "embedding": ("embedding", [tensor(5, 3), torch.tensor([[0, 4], [2, 2]])], {}, lambda x, ids: x[ids]),
    "embedding outside": ("embedding", [tensor(5, 3), torch.tensor([-3, 9])], {}, lambda x, ids: x[[0, 4]]),
    "masked": ("masked", [X, X[:1, :, :1] > 0], {}, lambda x, m: torch.where(m, x, 0.0)),
    "expand": ("expand", [X[:1, :, :, :1], X], {"shape": (2, 4, 6, 5)}, lambda x, like: x.expand(2, 4, 6, 5)),
    "top places": ("top_places", [X], {"axis": 1, "count": 2}, lambda x: x.topk(2, 1).indices),
    "place of the smallest": ("top_places", [X], {"axis": 3, "largest": False}, lambda x: x.argmin(3, True)),
    "take along": ("take_along", [X, torch.tensor([[-1], [9]]).reshape(2, 1, 1, 1).expand(2, 1, *X.shape[2:])], {"axis": 1}, lambda x, p: torch.stack([x[0, :1], x[1, -1:]])),
    "exact": ("exact", [IDS, IDS[:1]], {"compute": "subtract"}, torch.sub),
    "exact comparison": ("exact", [IDS, IDS[:, :1]], {"compute": "less"}, torch.lt),
    "not": ("not", [IDS > 3], {}, torch.logical_not),
    "cast": ("cast", [IDS], {"dtype": "bool"}, lambda x: x.bool()),
    "cumsum": ("cumsum", [IDS], {"axis": 1}, lambda x: x.cumsum(1)),
    "convert": ("convert", [IDS], {"dtype": "f32"}, lambda x: x.float()),
    "compare": ("compare", [X, X[:1]], {"compute": "greater_equal"}, torch.ge),
    "select": ("select", [X > 0, X, X[:, :1]], {}, torch.where),
    "layer norm of other axes": ("layer_norm", [X, tensor(4, 1, 1), tensor(4, 1, 1)], {"dims": 2}, lambda x, w, b: functional.layer_norm(x, (6, 7)) * w + b),
    "root mean square norm": ("layer_norm", [X, tensor(7), tensor(7)], {"centered": False}, lambda x, w, b: x * torch.rsqrt(x.square().mean((3,), keepdim=True) + 1e-5) * w + b),
    "permute": ("permute", [X], {"axes": (2, 0, 3, 1)}, lambda x: x.permute(2, 0, 3, 1)),
    "concat": ("concat", [X, X * 2, X[:, :1]], {"axis": 1}, lambda *xs: torch.cat(xs, 1)),
    "gather": ("gather", [X], {"axis": 1, "indices": (3, 0, 0)}, lambda x: x[:, [3, 0, 0]]),
    "slice": ("slice", [X], {"axis": 2, "start": 1, "stop": 6, "step": 2}, lambda x: x[:, :, 1:6:2]),
    "pad": ("pad", [X], {"pad": (0, 0, 1, 2, 0, 0, 3, 4), "value": 0.5}, lambda x: functional.pad(x, (2, 4, 1, 3), value=0.5)),
    "conv1d": (
        "conv1d",
        [tensor(2, 4, 9), tensor(6, 2, 3), tensor(6)],
        {"stride": (2,), "padding": (2, 0), "dilation": (2,), "groups": 2},
        lambda x, w, b: functional.conv1d(functional.pad(x, (2, 0)), w, b, 2, 0, 2, 2),
    ),
    "conv3d": (
        "conv3d",
        [tensor(1, 2, 5, 5, 5), tensor(3, 2, 2, 3, 1)],
        {"stride": (1, 2, 1), "padding": (1, 1, 0, 1, 1, 0), "dilation": (1, 1, 1)},
        lambda x, w: functional.conv3d(x, w, None, (1, 2, 1), (1, 1, 0)),
    ),
    "conv_transpose1d": (
        "conv_transpose1d",
        [tensor(2, 4, 5), tensor(4, 3, 3)],
        {"stride": (2,), "padding": (1,), "output_padding": (1,)},
        lambda x, w: functional.conv_transpose1d(x, w, None, 2, 1, 1),
    ),
    "conv_transpose2d": (
        "conv_transpose2d",
        [tensor(2, 4, 5, 5), tensor(4, 3, 3, 3), tensor(6)],
        {"stride": (2, 1), "padding": (1, 0), "output_padding": (1, 0), "groups": 2, "dilation": (1, 2)},
        lambda x, w, b: functional.conv_transpose2d(x, w, b, (2, 1), (1, 0), (1, 0), 2, (1, 2)),
    ),
    "conv_transpose3d": (
        "conv_transpose3d",
        [tensor(1, 2, 3, 3, 3), tensor(2, 2, 2, 2, 2)],
        {"stride": (2, 2, 2)},
        lambda x, w: functional.conv_transpose3d(x, w, None, 2),
    ),
    **{
        name: (name, [(X * 4).abs() + 0.1 if name in (*OF_POSITIVES, "log1p") else X * 4], dict(item.attributes), lambda x, name=name: UNARY[name].torch(x, **UNARY[name].attributes))
        for name, item in UNARY.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_values_and_shapes_are_those_of_torch(case: str) -> None:
    op, tensors, attributes, function = CASES[case]
    check(op, tensors, attributes, function(*tensors))


def test_every_float_operator_has_a_case() -> None:
    elsewhere = {
        "fake_quantize",
        "fake_quantize_bias",
        "scale_product",
        "quantize_gradient",
        "conv2d",
        "max_pool2d",
        "avg_pool2d",
        "call",
        "custom",
    }
    floats = {Stage.FLOAT, Stage.QUANTIZED}
    ours = {name for name, item in known_ops().items() if item.stages & floats and not item.has(Trait.LEAF)}
    assert {name for name in ours if not name.startswith("test_")} - elsewhere <= {case[0] for case in CASES.values()}


@given(data=st.data())
@settings(max_examples=80)
def test_convolutions_of_any_geometry(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 4]))
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    top, left, bottom, right = data.draw(st.tuples(*[st.integers(0, 2)] * 4))
    x = tensor(data.draw(st.integers(1, 3)), 4, data.draw(st.integers(5, 9)), data.draw(st.integers(5, 9)))
    weight = tensor(8, 4 // groups, *kernel, seed=1)
    expected = functional.conv2d(
        functional.pad(x, (left, right, top, bottom)), weight, None, stride, 0, dilation, groups
    )
    attributes: Attributes = {
        "stride": stride,
        "padding": (top, left, bottom, right),
        "dilation": dilation,
        "groups": groups,
    }
    found = node("conv2d", [x, weight], attributes)
    assert found.output.type.shape == tuple(expected.shape)
    # torch may choose another algorithm for padding of its own.
    torch.testing.assert_close(evaluate_node(found, [x, weight])[0], expected, rtol=1e-5, atol=1e-5)


@given(data=st.data())
@settings(max_examples=80)
def test_poolings_of_any_geometry(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = (data.draw(st.integers(0, kernel[0] // 2)), data.draw(st.integers(0, kernel[1] // 2)))
    ceil, count = data.draw(st.booleans()), data.draw(st.booleans())
    divisor = data.draw(st.sampled_from([None, 3]))
    x = tensor(2, 3, data.draw(st.integers(4, 9)), data.draw(st.integers(4, 9)))
    geometry: Attributes = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
    check("max_pool2d", [x], geometry, functional.max_pool2d(x, kernel, stride, padding, 1, ceil))
    averaged = functional.avg_pool2d(x, kernel, stride, padding, ceil, count, divisor)
    check("avg_pool2d", [x], {**geometry, "count_include_pad": count, "divisor_override": divisor}, averaged)


@pytest.mark.parametrize(
    "case", ["relu", "batch norm at inference", "linear", "mean", "concat", "slice", "pad", "conv_transpose2d"]
)
def test_a_symbolic_batch_is_carried_through(case: str) -> None:
    op, tensors, attributes, function = CASES[case]
    shape = node(op, tensors, attributes, symbolic=True).output.type.shape
    size = tensors[0].shape[0]
    assert tuple(evaluate_dim(dim, {"N": size}) for dim in shape) == tuple(function(*tensors).shape)
    assert not isinstance(shape[0], int)


@pytest.mark.parametrize("name", UNARY)
def test_float64_forms_of_functions_are_those_of_torch(name: str) -> None:
    """Tables are built from the second form; the two are written apart."""
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    x = x.abs() if name in (*OF_POSITIVES, "log1p") else x
    item = UNARY[name]
    expected = item.torch(x, **item.attributes).numpy()
    np.testing.assert_allclose(item.numpy(x.numpy(), **item.attributes), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*OF_POSITIVES, "log1p"])
def test_where_a_function_has_no_value_its_table_holds_that_of_the_border(name: str) -> None:
    border = -1.0 if name == "log1p" else 0.0
    found = UNARY[name].numpy(np.array([border - 5.0, border - 1e-9, border]))
    assert not np.isnan(found).any()
    assert (found == found[2]).all()


WRONG: dict[str, tuple[str, list[Tensor], Attributes, str]] = {
    "sizes that do not broadcast": ("add", [X, tensor(3)], {}, "broadcast"),
    "channels that do not fit": ("conv2d", [X, tensor(8, 3, 3, 3)], {}, "channels"),
    "groups that do not divide": ("conv2d", [X, tensor(8, 4, 3, 3)], {"groups": 3}, "group"),
    "a kernel larger than the image": ("conv2d", [X, tensor(8, 4, 9, 9)], {}, "kernel"),
    "a bias of another length": ("linear", [tensor(2, 4), tensor(6, 4), tensor(5)], {}, "bias"),
    "features that do not fit": ("linear", [tensor(2, 3), tensor(6, 4)], {}, "features"),
    "another number of elements": ("reshape", [X], {"shape": (5, 5)}, "elements"),
    "axes that are no permutation": ("permute", [X], {"axes": (0, 1, 1, 3)}, "permutation"),
    "parts that do not fit": ("concat", [X, tensor(2, 4, 5, 7)], {"axis": 1}, "concat"),
    "integers where reals are needed": ("sigmoid", [X.to(torch.int32)], {}, "real"),
}


@pytest.mark.parametrize("case", WRONG)
def test_operands_that_do_not_fit_are_refused(case: str) -> None:
    op, tensors, attributes, _ = WRONG[case]
    with pytest.raises(GraphError) as caught:
        node(op, tensors, attributes)
    assert f"%{op}" in str(caught.value)
    assert len(str(caught.value)) > 30


@pytest.mark.parametrize("text", ["s8", "u8", "s4 symmetric narrow", "s8 symmetric axis=0"])
def test_fake_quantize_divides_and_passes_gradients_straight_through(text: str) -> None:
    spec = QuantSpec.parse(text)
    size = () if spec.axis is None else (3,)
    scale = (torch.rand(size, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.05).requires_grad_()
    zero = torch.zeros(size, dtype=torch.int32) if spec.symmetric else torch.full(size, 3, dtype=torch.int32)
    x = torch.cat([tensor(3, 40) * 8, (torch.arange(-20, 21) + 0.5).repeat(3, 1) * 0.1], 1).requires_grad_()
    found = node("fake_quantize", [x, scale, zero], {"spec": spec}, stage=Stage.QUANTIZED)
    (result,) = evaluate_node(found, [x, scale, zero])
    s = scale.detach().reshape(-1, 1).numpy() if size else np.float32(scale.item())
    z = int(zero.reshape(-1)[0])
    codes = np.clip(np.rint(x.detach().numpy() / s).astype(np.int64) + z, spec.qmin, spec.qmax)
    assert np.array_equal(result.detach().numpy(), ((codes - z) * s).astype(np.float32))
    result.sum().backward()
    unclipped = np.rint(x.detach().numpy() / s) + z
    inside = (unclipped >= spec.qmin) & (unclipped <= spec.qmax)
    assert x.grad is not None
    assert np.array_equal(x.grad.numpy(), inside.astype(np.float32))
    assert scale.grad is not None
    assert bool(scale.grad.isfinite().all())


def test_a_quantizer_without_a_range_lets_values_pass() -> None:
    scale, zero = torch.tensor(float("nan")), torch.zeros((), dtype=torch.int32)
    found = node("fake_quantize", [X, scale, zero], {"spec": QuantSpec.parse("s8")}, stage=Stage.QUANTIZED)
    assert torch.equal(evaluate_node(found, [X, scale, zero])[0], X)


def test_dropout_and_batch_norm_learn_in_train_mode() -> None:
    torch.manual_seed(0)
    dropped = evaluate_node(node("dropout", [X], {"p": 0.5, "training": True}), [X])[0]
    assert 0.3 < float((dropped == 0).float().mean()) < 0.7
    tensors = [X, ONE, ONE, torch.zeros(4), torch.ones(4)]
    found = evaluate_node(node("batch_norm", tensors, {"training": True}), tensors)[0]
    expected = functional.batch_norm(X, None, None, ONE, ONE, True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
