"""Exact facts about quantization that hold for every input; those of equalization and rounding stand with their passes.

Source: Nagel et al. 2021, arXiv:2106.08295, sections 2.2, 3.2, 3.3 and 3.4.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompiler import frontends
from qcompiler.ir.graph import Module
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.quant.affine import dequantize, fake_quantize, qparams_from_range, quantize, quantize_bias
from qcompiler.quant.rounding import Rounding
from qcompiler.quant.rounding_search import Moments, round_to_data
from qcompiler.quant.spec import QuantSpec
from qcompiler.session.pipeline import structural_passes
from qcompiler.targets import load_target
from tests.support.running import outputs_of

FRONT = structural_passes()[0]
SEEDS = st.integers(0, 10**6)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    seed=SEEDS,
    bits=st.integers(2, 16),
    signed=st.booleans(),
    symmetric=st.booleans(),
    pow2=st.booleans(),
    axis=st.booleans(),
)
@settings(max_examples=60)
def test_zero_has_a_code_steps_are_the_error_and_a_second_time_changes_nothing(
    seed: int, bits: int, signed: bool, symmetric: bool, pow2: bool, axis: bool
) -> None:
    spec = QuantSpec(bits, signed, symmetric, axis=0 if axis else None, scale_kind="pow2" if pow2 else "float")  # type: ignore[arg-type]
    x = draw(seed, 3, 40) * 5 + seed % 7 - 3
    x = x.abs() if symmetric and not signed else x
    low, high = (x.amin(1), x.amax(1)) if axis else (x.amin(), x.amax())
    scale, zero_point = qparams_from_range(low, high, spec)
    once = fake_quantize(x, scale, zero_point, spec)
    assert torch.equal(fake_quantize(torch.zeros(3, 1), scale, zero_point, spec), torch.zeros(3, 1))
    assert torch.equal(fake_quantize(once, scale, zero_point, spec), once)
    column = scale.reshape(-1, 1)
    ends = (torch.tensor([spec.qmin, spec.qmax]) - zero_point.reshape(-1, 1)) * column
    inside = (x >= ends[:, :1]) & (x <= ends[:, 1:])
    # Half a step, and the float32 rounding of the quotient and of the product.
    assert bool(((once - x).abs() <= 0.5 * column + 1e-6 * x.abs())[inside].all())


@given(seed=SEEDS, channels=st.integers(1, 9), groups=st.booleans(), bias=st.booleans())
@settings(max_examples=20)
def test_a_folded_batch_norm_leaves_the_function(seed: int, channels: int, groups: bool, bias: bool) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, channels * 2, 3, padding=1, groups=channels if groups else 1, bias=bias)
    norm = nn.BatchNorm2d(channels * 2)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.2, 3.0)
    model, x = nn.Sequential(conv, norm).eval(), torch.randn(2, channels, 5, 5)
    module = frontends.capture(model, x).module
    PassManager([*FRONT]).run(module, PassContext(samples=[[x]]))
    assert any(isinstance(item, FoldBatchNorm) for item in FRONT)
    assert all(node.op != "batch_norm" for node in module.main.nodes)
    torch.testing.assert_close(outputs_of(module.main, [x])[0], model(x).detach(), rtol=1e-4, atol=1e-4)


@given(seed=SEEDS, channels=st.integers(1, 8))
@settings(max_examples=15)
def test_absorbing_the_smallest_values_of_the_data_leaves_the_function_on_them(seed: int, channels: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, 2, 3)).eval()
    with torch.no_grad():
        model[0].bias.add_(torch.linspace(0, 9, channels))  # type: ignore[operator]
    x = torch.randn(4, 3, 6, 6)
    module = frontends.capture(model, x).module
    PassManager([*FRONT, AbsorbBias()]).run(module, PassContext(samples=[[x]], calibration_data=[[x]]))
    torch.testing.assert_close(outputs_of(module.main, [x])[0], model(x).detach(), rtol=1e-4, atol=1e-4)


@given(seed=SEEDS, bits=st.integers(2, 6))
@settings(max_examples=15)
def test_means_of_a_corrected_layer_are_those_of_the_float_one(seed: int, bits: int) -> None:
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)).eval(), torch.rand(6, 3, 6, 6)
    module: Module = frontends.capture(model, x).module
    passes: list[Pass] = [Partition(), InsertQuantizers(), FixRanges(), UnifyScales(), CalibrateWeights()]
    context = PassContext(load_target("int8_dsp").override(weight_bits=bits), [[x]], [[x]])
    PassManager([*FRONT, *passes, CorrectBias(method="empirical")]).run(module, context)
    found, expected = outputs_of(module.main, [x])[0].mean((0, 2, 3)), model(x).detach().mean((0, 2, 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@given(seed=SEEDS, count=st.integers(1, 40), bits=st.integers(2, 8))
@settings(max_examples=25)
def test_adaptive_rounding_with_orthonormal_inputs_is_nearest_rounding(seed: int, count: int, bits: int) -> None:
    weight, limit = draw(seed, 1, 3, count), 2 ** (bits - 1) - 1
    scale = weight.abs().amax(2, keepdim=True) * 0.9 / limit
    moments = Moments.of(torch.eye(count, dtype=torch.float64).unsqueeze(0))
    found = round_to_data(weight, scale, -limit, limit, moments, torch.zeros_like(weight))
    low = torch.floor(weight / scale)
    assert torch.equal(found, torch.floor(weight / scale + 0.5).clamp(-limit, limit))
    assert bool(((found == low.clamp(-limit, limit)) | (found == (low + 1).clamp(-limit, limit))).all())


@given(seed=SEEDS, inputs=st.integers(1, 40), bits=st.integers(2, 8), per_channel=st.booleans())
@settings(max_examples=40)
def test_sums_of_codes_are_those_of_fake_quantized_numbers(
    seed: int, inputs: int, bits: int, per_channel: bool
) -> None:
    """s_x s_w (sum q_w (q_x - z) + b) = W^ x^ + b^, but for the rounding of float sums."""
    x, weight, bias = draw(seed, 4, inputs), draw(seed + 1, 3, inputs), draw(seed + 2, 3)
    x_spec, w_spec = QuantSpec(bits), QuantSpec(bits, symmetric=True, narrow=True, axis=0 if per_channel else None)
    x_scale, zero = qparams_from_range(x.min(), x.max(), x_spec)
    ends = (weight.amin(1), weight.amax(1)) if per_channel else (weight.amin(), weight.amax())
    w_scale, none = qparams_from_range(*ends, w_spec)
    steps = quantize(x, x_scale, zero, x_spec).long() - zero
    codes = quantize(weight, w_scale, none, w_spec).long()
    b = quantize_bias(bias, x_scale * w_scale, Rounding.NEAREST_EVEN)
    product = x_scale.double() * w_scale.double()
    integer = (steps @ codes.T + b).double() * product
    fake = [
        fake_quantize(item, *rest).double()
        for item, rest in ((x, (x_scale, zero, x_spec)), (weight, (w_scale, none, w_spec)))
    ]
    expected = fake[0] @ fake[1].T + dequantize(b, x_scale * w_scale, torch.zeros_like(none), None).double()
    torch.testing.assert_close(integer, expected, rtol=1e-5, atol=1e-5)
