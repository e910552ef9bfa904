"""One view of all weighted layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler.frontends import capture
from qcompiler.ir.dims import symbol
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.types import DType, Stage, TensorType
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantizers import (
    activation_bounds,
    channel_bounds,
    clamps_channels,
    is_quantizer,
    quantizers_reading,
    quantizes_parameter,
)
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.quant.spec import QuantSpec
from tests.support.equalized import Net, image, run_alike

CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(4, 6, 3, groups=2, padding=1), (2, 4, 8)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), dilation=(2, 1)), (2, 4, 8, 8)),
    "conv3d": (nn.Conv3d(4, 4, 2, groups=4, bias=False), (2, 4, 3, 4, 5)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 8)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 8, 2, groups=4), (2, 4, 3, 4, 5)),
    "linear of 2 axes": (nn.Linear(4, 6), (2, 4)),
    "linear of 4 axes": (nn.Linear(4, 6), (2, 3, 5, 4)),
}


def _layer(name: str) -> tuple[Layer, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, shape = CASES[name]
    x = torch.randn(shape)
    graph = capture(nn.Sequential(model).eval(), (x,)).module.main
    layers = [layer for node in graph.nodes if (layer := Layer.of(node)) is not None]
    assert len(layers) == 1
    return layers[0], model, x


@pytest.mark.parametrize("name", CASES)
def test_output_axis_is_where_a_bias_shows(name: str) -> None:
    layer, model, x = _layer(name)
    assert layer.node.op == name.partition(" ")[0]
    with torch.no_grad():
        before = model(x)
        bias = layer.bias_tensor()
        state = model.state_dict()
        assert (bias is None) == ("bias" not in state)
        if bias is None:
            return
        for channel in range(layer.outputs):
            moved = bias.clone()
            moved[channel] += 1.0
            changed = (torch.func.functional_call(model, {**state, "bias": moved}, (x,)) - before).abs() > 0.5
            rows = changed.movedim(layer.output_axis, 0).flatten(1)
            assert rows[channel].all()
            assert not rows[torch.arange(len(rows)) != channel].any()


@pytest.mark.parametrize("name", CASES)
def test_rows_say_which_input_reaches_which_output(name: str) -> None:
    layer, model, x = _layer(name)
    rows = layer.rows()
    assert rows.shape[:3] == (layer.groups, layer.outputs // layer.groups, layer.inputs // layer.groups)
    assert rows[0, 0].numel() == layer.terms
    assert torch.equal(layer.from_rows(rows), layer.weight_tensor())
    keep = torch.zeros_like(rows)
    group, output, source = layer.groups - 1, rows.shape[1] - 1, rows.shape[2] - 1
    keep[group, output, source] = 1.0
    only = layer.from_rows(keep)
    assert torch.equal(layer.rows(only), keep)
    with torch.no_grad():
        state = {key: only if key == "weight" else torch.zeros_like(item) for key, item in model.state_dict().items()}
        result = torch.func.functional_call(model, state, (torch.ones_like(x),))
        silent = torch.ones_like(x)
        silent.select(layer.input_axis, group * rows.shape[2] + source).zero_()
        nothing = torch.func.functional_call(model, state, (silent,))
    alive = result.movedim(layer.output_axis, 0).flatten(1).abs().amax(1) > 0
    assert alive.nonzero().flatten().tolist() == [group * rows.shape[1] + output]
    assert not nothing.any()


def test_a_product_of_two_activations_is_no_layer() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.transpose(1, 2)

    graph = capture(Product().eval(), (torch.randn(2, 4, 4),)).module.main
    assert [Layer.of(node) for node in graph.nodes if node.op == "matmul"] == [None]
    assert Layer.of(None) is None


def quantized_layer(*, quantized: bool) -> Node:
    """A convolution whose weight has a quantizer, or none, before a clamp of each channel."""
    graph = Module().add(Graph(stage=Stage.QUANTIZED))
    module = graph.module
    x = graph.add_input("x", TensorType(DType.F32, (symbol("N"), 3, 6, 6)))
    tensors = {
        "w": ("parameter", torch.ones(4, 3, 3, 3)),
        "s": ("parameter", torch.tensor(1.0)),
        "z": ("state", torch.tensor(0, dtype=torch.int32)),
        "low": ("constant", torch.zeros(4)),
        "high": ("constant", torch.arange(1.0, 5.0)),
    }
    values = {}
    for name, (op, tensor) in tensors.items():
        module.tensors[name] = tensor
        attributes = {"ref": name, "dtype": str(DType.of(tensor.dtype)), "shape": tuple(tensor.shape)}
        values[name] = graph.append(op, [], attributes, name=name).output
    weight = values["w"]
    if quantized:
        spec = {"spec": QuantSpec(bits=8)}
        weight = graph.append("fake_quantize", [weight, values["s"], values["z"]], spec).output
    layer = graph.append("conv2d", [x, weight])
    clamp = graph.append("clamp_channels", [layer.output, values["low"], values["high"]], {"axis": 1})
    graph.set_outputs([graph.append("relu", [clamp.output]).output])
    return layer


def test_the_quantizer_of_a_layer_stands_before_its_weight() -> None:
    layer = Layer.of(quantized_layer(quantized=True))
    assert layer is not None
    assert layer.quantizer is not None
    assert quantizes_parameter(layer.quantizer)
    assert is_quantizer(layer.quantizer)
    assert quantizers_reading(layer.weight) == [layer.quantizer]
    assert torch.equal(layer.weight_tensor(), torch.ones(4, 3, 3, 3))
    plain = Layer.of(quantized_layer(quantized=False))
    assert plain is not None
    assert plain.quantizer is None
    assert not quantizers_reading(plain.weight)


def test_a_clamp_per_channel_is_told_from_one_for_all() -> None:
    _, *after = (node for node in quantized_layer(quantized=False).graph.nodes if node.inputs)
    assert [clamps_channels(node) for node in after] == [True, False]
    assert torch.equal(channel_bounds(after[0])[1], torch.arange(1.0, 5.0))
    assert activation_bounds(after[1]) == (0.0, float("inf"))


def test_the_parameter_behind_a_quantizer_is_found() -> None:
    net = Net(lambda m, x: m.a(x), a=nn.Conv2d(3, 4, 1))
    module, _ = run_alike(net, [Partition(), InsertQuantizers()], image())
    layer = next(node for node in module.main.nodes if node.op == "conv2d")
    assert [leaf_of(value).name for value in layer.inputs[1:]] == ["a.weight", "a.bias"]
    quantizer = layer.inputs[1].producer
    assert quantizer is not None
    assert isinstance(quantizer.attributes["spec"], QuantSpec)
