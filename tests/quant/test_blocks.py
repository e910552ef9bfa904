"""Integer factors of a channel's scale per block of inputs: one sum, finer grids, the same integers in all forms."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompiler import frontends
from qcompiler.backends import onnx_qdq
from qcompiler.backends.integer import Executor, emit
from qcompiler.ir.graph import Module
from qcompiler.ops.layers import Layer
from qcompiler.ops.quantizers import weight_steps
from qcompiler.passes.adaptive_rounding import moments
from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.manager import PassManager
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.program.files import ProgramFiles
from qcompiler.quant.affine import fake_quantize, quantize
from qcompiler.quant.blocks import block_factors, block_view, expand_factors
from qcompiler.quant.spec import QuantSpec
from qcompiler.session.pipeline import default_pipeline, structural_passes
from qcompiler.targets import load_target
from tests.support.running import outputs_of

SPEC = QuantSpec(4, symmetric=True, narrow=True, axis=0, block=3)


@given(
    axis=st.sampled_from([0, 1]), channels=st.integers(1, 4), size=st.integers(1, 9), block=st.integers(1, 5),
    taps=st.lists(st.integers(1, 2), max_size=2), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80)
def test_a_row_for_each_block_and_a_factor_for_each_input(
    axis: int, channels: int, size: int, block: int, taps: list[int], seed: int
) -> None:
    shape = (channels, size, *taps) if axis == 0 else (size, channels, *taps)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    view = block_view(weight, axis, block)
    count = -(-size // block)
    assert view.shape == (channels * count, block * int(np.prod(taps)))
    factors = torch.arange(channels * count).reshape(channels, count)
    spread = expand_factors(factors, weight.shape, axis, block).expand(weight.shape)
    for channel in range(channels):
        for position in range(size):
            index = (channel, position) if axis == 0 else (position, channel)
            assert bool((spread[index] == factors[channel, position // block]).all())
            row = view[channel * count + position // block].reshape(block, -1)
            assert torch.equal(row[position % block], weight[index].reshape(-1))
    assert float(view.abs().sum()) == pytest.approx(float(weight.abs().sum()), rel=1e-5), (
        "the view has no other nonzero elements"
    )


@given(bits=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_factors_cover_every_block_and_no_more(bits: int, seed: int) -> None:
    spec = dataclasses.replace(SPEC, factor_bits=bits)
    reach = torch.rand(3 * 5, generator=torch.Generator().manual_seed(seed)) ** 3
    reach[4] = 0.0
    scale, factors = block_factors(-reach, reach / 2, spec, 3)
    assert factors.shape == (3, 5) and factors.dtype == torch.uint8
    most = 2**bits - 1
    assert int(factors.min()) >= 1 and int(factors.max()) == most, (
        "the widest block of a channel has the largest factor"
    )
    covered = factors.double() * scale.double().unsqueeze(1) * spec.qmax
    wanted = reach.double().reshape(3, 5)
    assert bool((covered >= wanted * (1 - 1e-5)).all())
    finer = (factors.double() - 1) * scale.double().unsqueeze(1) * spec.qmax
    assert bool(((finer < wanted) | (factors == 1)).all())
    assert factors[0, 4] == 1, "the factor of a block of zeros"


def test_fake_quantization_is_codes_times_factors_with_gradients() -> None:
    weight = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rows = block_view(weight.detach(), 0, 3)
    scale, factors = block_factors(rows.amin(1), rows.amax(1), SPEC, 4)
    scale.requires_grad_(True)
    zeros = torch.zeros(4, dtype=torch.int32)
    spread = expand_factors(factors.to(torch.int32), weight.shape, 0, 3)
    fake = fake_quantize(weight, scale, zeros, SPEC, factors=spread)
    codes = quantize(weight, scale, zeros, SPEC, factors=spread)
    assert int(codes.abs().max()) == 7
    assert torch.equal(fake, (codes * spread).to(torch.float32) * scale.unsqueeze(1))
    with torch.no_grad():
        assert torch.equal(fake_quantize(weight, scale, zeros, SPEC, factors=spread), fake)
    fake.sum().backward()
    assert weight.grad is not None and bool((weight.grad == 1).all()), "nothing is clipped"
    lost = (codes - weight.detach() / (scale.detach().unsqueeze(1) * spread)) * spread
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, lost.sum(1), rtol=1e-4, atol=1e-4)


class Layers(nn.Module):
    """A convolution, one in groups, a transposed one and a linear layer, with inputs of very different weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(10, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=2)
        self.t, self.c = nn.ConvTranspose2d(8, 6, 2, 2), nn.Linear(6 * 12 * 12, 5)
        with torch.no_grad():
            for layer in (self.a, self.c):
                layer.weight *= torch.logspace(0, -2, layer.weight.shape[1]).reshape(
                    1, -1, *[1] * (layer.weight.dim() - 2)
                )

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.t(torch.relu(self.b(torch.relu(self.a(x))))).flatten(1))  # type: ignore[no-any-return]


def lowered(block: int | None, **changes: object) -> tuple[Module, Tensor, Tensor]:
    """The integer graph, its input and the float result."""
    torch.manual_seed(0)
    model, x = Layers().eval(), torch.randn(4, 10, 8, 8)
    target = load_target("w4a8_npu").override(block=block, activation_bits=8, **changes)
    module = frontends.capture(model, (x,)).module
    PassManager(default_pipeline("fast", per_channel=True)).run(module, PassContext(target, calibration_data=[[x]]))
    with torch.no_grad():
        return module, x, model(x)


@pytest.mark.parametrize(("block", "mode"), [(4, "single"), (3, "f32_rne"), (1, "double"), (100, "tosa16")])
def test_the_program_has_the_integers_of_the_graph(block: int, mode: str) -> None:
    module, x, expected = lowered(block, requantize=mode)
    found = outputs_of(module.main, [x])[0]
    programs = emit(module.main, "NCHW", "OIHW"), emit(module.main, "NHWC", "OHWI", packing="low_nibble_first")
    for files in programs:
        again = ProgramFiles.parse(files.program_json(), files.weights())
        assert np.array_equal(Executor(again).run([x.numpy()])[0], found.numpy())
    files = programs[1]
    layers = [item for item in files.program.instructions if "block" in item.attributes]
    assert [item.op for item in layers] == ["int_conv2d", "int_conv2d", "int_conv_transpose2d", "int_linear"]
    for item in layers:
        weight, factors = (files.program.tensors[item.inputs[place]] for place in (1, -1))
        assert (weight.dtype, factors.dtype) == ("i4", "u8")
        assert len(weight.scale) == factors.shape[0]
    assert float((found - expected).norm() / expected.norm()) < 0.3


def test_blocks_lose_less_than_channels() -> None:
    errors = []
    for block in (None, 16, 2):
        module, x, expected = lowered(block)
        errors.append(float((outputs_of(module.main, [x])[0] - expected).norm() / expected.norm()))
    assert errors[0] > 3 * max(errors[1:]), "0.20 against 0.026 and 0.024"


def test_the_file_has_a_scale_for_each_block() -> None:
    module, x, _ = lowered(4)
    content = onnx_qdq.emit(module.main)
    model = onnx.load_from_string(content)
    assert model.opset_import[0].version == 21
    blocked = [node for node in model.graph.node if any(a.name == "block_size" for a in node.attribute)]
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    assert [shapes[node.input[1]] for node in blocked] == [(8, 3, 3, 3), (8, 1, 3, 3), (2, 6, 2, 2), (5, 216)]
    found = outputs_of(module.main, [x])[0]
    step = float(module.main.outputs[0].producer.inputs[0].type.quant.scale[0])  # type: ignore[union-attr]
    assert float(np.abs(onnx_qdq.run(content, [x.numpy()])[0] - found.numpy()).max()) <= 3.01 * step


def block_noise(net: nn.Module, x: Tensor, unseen: Tensor, *passes: Pass) -> tuple[float, Module]:
    """Relative error on unseen inputs of a network with three-bit weights in blocks of three, activations in float."""
    target = load_target("w4a8_npu_blocks").override(block=3, weight_bits=3)
    module = frontends.capture(net, (x,)).module
    front, placement = structural_passes()
    ranges = [FixRanges(), UnifyScales(), CalibrateWeights(method="mse"), *passes]
    PassManager([*front, *placement, *ranges]).run(module, PassContext(target, [[x[:4]]], [[x[:32]], [x[32:]]]))
    with torch.no_grad():
        expected = net(unseen)
        return float((outputs_of(module.main, [unseen])[0] - expected).norm() / expected.norm()), module


@pytest.mark.parametrize("method", ["gram", "sgd"])
def test_weights_with_blocks_are_rounded_to_data(method: str) -> None:
    torch.manual_seed(0)
    net, mixing = Layers().eval(), torch.randn(10, 10) / 3
    x, unseen = (torch.einsum("nchw,cd->ndhw", torch.randn(64, 10, 8, 8), mixing) for _ in range(2))
    rounding = AdaRound(method=method, iterations=200, learning_rate=1e-2)
    plain, _ = block_noise(net, x, unseen)
    ours, module = block_noise(net, x, unseen, rounding)
    assert ours < 0.9 * plain
    for node in module.main.nodes:
        layer = Layer.of(node)
        if layer is None:
            continue
        quantizer, weight = node.inputs[1].producer, layer.weight_tensor()
        assert quantizer is not None
        assert quantizer.attributes["spec"].block == 3  # type: ignore[union-attr]
        codes = weight / weight_steps(quantizer, weight)
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
        assert float(codes.abs().max()) < 3.001, "no code is outside of the grid"


def test_rows_with_blocks_that_are_too_long_for_their_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, mixing = nn.Sequential(nn.Linear(60, 8)).eval(), torch.randn(60, 60) / 8
    x, unseen = torch.randn(64, 60) @ mixing, torch.randn(64, 60) @ mixing
    plain, _ = block_noise(net, x, unseen)
    monkeypatch.setattr(moments, "LARGEST", 20)
    monkeypatch.setattr(moments, "COLUMNS", 16)  # no multiple of the block
    ours, _ = block_noise(net, x, unseen, AdaRound())
    assert ours < 0.95 * plain


def test_the_analytic_correction_of_biases_knows_blocks() -> None:
    """The correction removes the mean error of the codes of the blocks, not that of the codes of the channel."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(10, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1)]
    net, x = nn.Sequential(*layers).eval(), torch.randn(64, 10, 8, 8)
    with torch.no_grad():
        net.train()(x)
        net.eval()
    _, before = block_noise(net, x, x)
    _, after = block_noise(net, x, x, CorrectBias(method="analytic"))
    outputs = [outputs_of(module.main, [x])[0].mean((0, 2, 3)) for module in (before, after)]
    with torch.no_grad():
        wanted = net(x).mean((0, 2, 3))
    # Batch norms give only the means of a normal distribution: 0.65 of the error was left.
    assert float((outputs[1] - wanted).norm()) < 0.8 * float((outputs[0] - wanted).norm())
