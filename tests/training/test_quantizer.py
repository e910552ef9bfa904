"""The quantizer of training against plain formulas: ties, clipped values, borders, every estimator."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.quant.affine import dequantize, quantize
from qcompiler.quant.rounding import Rounding
from qcompiler.quant.spec import QuantSpec
from qcompiler.training import quantizer
from qcompiler.training.estimators import (
    EWGS,
    PSG,
    DifferentiableSoftQuantization,
    Estimator,
    StackedSigmoid,
    StochasticRounding,
    StraightThrough,
)
from qcompiler.training.quantizer import Clamp, Plan, Quantizer, fake_quantize
from qcompiler.training.ranges import FixedRange, LearnedScale

SCALE = 0.25
QMIN, QMAX = -4, 3
# In steps: inside, ties of both parities, the ends of the grid and their neighbours, far outside.
STEPS = [0.0, 0.3, -0.3, 0.5, 1.5, 2.5, -0.5, -1.5, 2.99, 3.0, 3.01, 3.4, 3.5, 3.6, -3.9, -4.0, -4.01, -4.5, -4.6, 50.0]
ESTIMATORS: list[Estimator] = [
    StraightThrough(),
    EWGS(0.3),
    PSG(1e-2),
    DifferentiableSoftQuantization(0.2),
    StackedSigmoid(3.0),
]


def rounded(v: float) -> int:
    """To the nearest, ties to even, without a float rounding on the way."""
    low = math.floor(v)
    rest = Fraction(v) - low
    return low + int(rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1))


def factor(estimator: Estimator, g: float, v: float, k: int) -> float:
    """The formulas of the papers, one number at a time."""
    r = v - math.floor(v) - 0.5
    match estimator:
        case EWGS():
            return 1 + estimator.delta * float(np.sign(g)) * (v - k)
        case PSG():
            return abs(v - k) + estimator.eps
        case DifferentiableSoftQuantization():
            steepness = math.log(2 / estimator.alpha - 1)
            return steepness * (1 - math.tanh(steepness * r) ** 2) / (2 * math.tanh(steepness / 2))
        case StackedSigmoid():
            t = estimator.temperature
            up = 1 / (1 + math.exp(-t * r))
            return t * up * (1 - up) / (2 / (1 + math.exp(-t / 2)) - 1)
    return 1.0


def reference(x: list[float], g: list[float], z: int, estimator: Estimator) -> tuple[list[float], list[float], float]:
    """Results, input gradients and the scale's gradient."""
    results, gradients, scale_gradient = [], [], 0.0
    for value, upstream in zip(x, g, strict=True):
        v = value / SCALE
        code = min(max(rounded(v) + z, QMIN), QMAX) - z
        inside = QMIN <= v + z <= QMAX
        phi = factor(estimator, upstream, v, rounded(v)) if inside else 0.0
        results.append(code * SCALE)
        gradients.append(upstream * phi)
        scale_gradient += upstream * (code - phi * v)
    return results, gradients, scale_gradient


@pytest.mark.parametrize("zero_point", [0, -1, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda item: type(item).__name__)
def test_results_and_gradients_are_those_of_the_formulas(estimator: Estimator, zero_point: int) -> None:
    values = [(step - zero_point) * SCALE for step in STEPS]
    upstream = [(-1.0) ** i * (1.0 + i / 8) for i in range(len(values))]
    x = torch.tensor(values, requires_grad=True)
    scale = torch.tensor(SCALE, requires_grad=True)
    plan = Plan(QMIN, QMAX, estimator, zero_point)
    y = fake_quantize(x, scale, None, plan)
    y.backward(torch.tensor(upstream))
    # float32 holds the values themselves, so that both sides start from the same numbers.
    results, gradients, scale_gradient = reference(x.tolist(), upstream, zero_point, estimator)
    assert y.tolist() == results
    assert x.grad is not None
    assert scale.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor(gradients), rtol=1e-5, atol=1e-6)
    assert float(scale.grad) == pytest.approx(scale_gradient, rel=1e-5)


def test_clipped_values_pass_no_gradient_and_borders_do() -> None:
    x = (torch.tensor([-4.0, -4.0001, 3.0, 3.0001]) * SCALE).requires_grad_()
    fake_quantize(x, torch.tensor(SCALE), None, Plan(QMIN, QMAX, StraightThrough())).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("estimator", [StraightThrough(), DifferentiableSoftQuantization(0.1), StackedSigmoid(5.0)])
def test_factors_are_derivatives_of_the_soft_functions(estimator: Estimator) -> None:
    steps = torch.linspace(-3.9, 2.9, 173, dtype=torch.float64)
    steps = steps[(steps - steps.floor()).sub(0.5).abs() < 0.49]  # the pieces meet at the codes, where the slope jumps
    width = 1e-6
    ahead, behind = estimator.soft_round(steps + width), estimator.soft_round(steps - width)
    assert ahead is not None
    assert behind is not None
    slope = (ahead - behind) / (2 * width)
    found = estimator.factor(torch.ones_like(steps), steps, steps.round())
    # Central differences of float64 are good to about width^2 and 1e-16 / width.
    torch.testing.assert_close(torch.ones_like(steps) if found is None else found, slope, rtol=1e-7, atol=1e-7)
    whole = torch.arange(-4.0, 3.0, dtype=torch.float64)
    values = estimator.soft_round(whole)
    assert values is not None
    torch.testing.assert_close(values, whole, rtol=0.0, atol=1e-12)


def test_tanh_and_sigmoid_are_one_family() -> None:
    soft = DifferentiableSoftQuantization(0.3)
    steps = torch.linspace(-2, 2, 41)
    one, other = (item.factor(steps, steps, steps.round()) for item in (soft, StackedSigmoid(2.0 * soft.steepness)))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    scale=st.floats(0.0078125, 10.0, width=32),
    zero=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_forward_is_dequantized_codes_bit_for_bit(bits: int, signed: bool, scale: float, zero: int, seed: int) -> None:
    spec = QuantSpec(bits, signed=signed)
    zero_point = torch.tensor(spec.qmin + zero % (spec.qmax - spec.qmin + 1), dtype=torch.int32)
    s = torch.tensor(scale)
    quantizer = Quantizer(spec, LearnedScale(), StraightThrough(), s, zero_point)
    # Multiples of half a step are ties; the others lie between.
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([torch.arange(-300, 300) * 0.5 * s, torch.randn(200, generator=generator) * scale * 50])
    expected = dequantize(quantize(x, s, zero_point, spec), s, zero_point)
    found = quantizer(x, *quantizer.grid(x))
    assert torch.equal(found, expected)
    assert torch.equal(quantizer.codes(x) * s, expected)


@pytest.mark.parametrize("mode", list(Rounding))
def test_rounds_as_the_grid_says(mode: Rounding) -> None:
    spec = QuantSpec(4, symmetric=True, rounding=mode)
    quantizer = Quantizer(spec, FixedRange(), StraightThrough(), torch.tensor(0.5), torch.tensor(0, dtype=torch.int32))
    x = torch.linspace(-5, 5, 81)
    zero = torch.tensor(0, dtype=torch.int32)
    expected = dequantize(quantize(x, torch.tensor(0.5), zero, spec), torch.tensor(0.5), zero)
    assert torch.equal(quantizer(x, *quantizer.grid(x)), expected)


def test_scales_per_channel_learn_apart() -> None:
    weight = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scale = torch.tensor([0.1, 0.3, 0.7], requires_grad=True)
    upstream = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    plan = Plan(-7, 7, StraightThrough(), axis=0)
    fake_quantize(weight, scale, None, plan).backward(upstream)
    assert scale.grad is not None
    for channel in range(3):
        row, own = weight.detach()[channel].clone().requires_grad_(), scale.detach()[channel].clone().requires_grad_()
        y = fake_quantize(row, own, None, Plan(-7, 7, StraightThrough()))
        y.backward(upstream[channel])
        assert own.grad is not None
        assert float(scale.grad[channel]) == pytest.approx(float(own.grad), rel=1e-6)


@pytest.mark.parametrize(("axis", "shared"), [(None, 24), (0, 8)])
def test_gradient_scale_is_that_of_lsq(axis: int | None, shared: int) -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.full(() if axis is None else (3,), 0.2, requires_grad=True)
    gradients: list[Tensor] = []
    for scaled in (False, True):
        y = fake_quantize(x, scale, None, Plan(-8, 7, StraightThrough(), axis=axis, gradient_scale=scaled))
        gradients += torch.autograd.grad(y.sum(), scale)
    torch.testing.assert_close(gradients[1], gradients[0] / math.sqrt(shared * 7))


def test_an_activation_in_front_is_part_of_the_quantizer() -> None:
    generator = torch.Generator().manual_seed(0)
    base, upstream = torch.randn(2000, generator=generator) * 4, torch.randn(2000, generator=generator)
    results = []
    for fused in (False, True):
        x, scale = base.clone().requires_grad_(), torch.tensor(0.05, requires_grad=True)
        plan = Plan(-128, 127, StraightThrough(), -128)
        if fused:
            y = fake_quantize(x, scale, None, plan, Clamp(0.0, 6.0))
        else:
            y = fake_quantize(torch.nn.functional.relu6(x), scale, None, plan)
        y.backward(upstream)
        assert x.grad is not None
        assert scale.grad is not None
        results.append((y.detach(), x.grad, scale.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_quantized_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(300, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    scale = torch.tensor(0.013, requires_grad=True)
    plan = Plan(-128, 127, StraightThrough())
    y = fake_quantize(x, scale, None, plan)
    assert y.dtype == dtype
    wide = fake_quantize(x.detach().to(torch.float32), scale.detach(), None, plan)
    assert torch.equal(y, wide.to(dtype))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert scale.grad is not None
    assert scale.grad.dtype == torch.float32


def test_chance_rounds_in_training_alone() -> None:
    spec, zero = QuantSpec(8, symmetric=True), torch.tensor(0, dtype=torch.int32)
    quantizer = Quantizer(spec, LearnedScale(), StochasticRounding(), torch.tensor(1.0), zero)
    x = torch.full((20000,), 2.25, requires_grad=True)
    torch.manual_seed(0)
    y = quantizer(x, *quantizer.grid(x))
    assert set(y.tolist()) == {2.0, 3.0}
    # Four standard deviations of the share of 20,000 draws that go up, a quarter of them.
    assert float((y == 3).float().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 20000))
    y.sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 1).all())
    assert quantizer.scale.grad is not None
    # code - v of each element, with the randomly chosen code.
    assert float(quantizer.scale.grad) == pytest.approx(float((y.detach() - 2.25).sum()), rel=1e-4)
    quantizer.eval()
    assert bool((quantizer(x, *quantizer.grid(x)) == 2).all())


def test_a_scale_that_fell_below_zero_finds_its_way_back() -> None:
    x = torch.tensor([3.0, 4.0])
    scale = torch.tensor(-1.0, requires_grad=True)
    optimizer = torch.optim.SGD([scale], lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        loss = (fake_quantize(x, scale, None, Plan(-8, 7, StraightThrough())) - x).square().sum()
        assert bool(loss.isfinite())
        loss.backward()
        optimizer.step()
    assert float(scale.detach()) > 0.1


def test_copies_and_state_bring_their_zero_point_along() -> None:
    spec = QuantSpec(8)
    first, second = (
        Quantizer(spec, LearnedScale(), StraightThrough(), torch.tensor(0.1), torch.tensor(z, dtype=torch.int32))
        for z in (-128, 5)
    )
    x = torch.linspace(-3, 3, 50)

    def of(quantizer: Quantizer) -> Tensor:
        result: Tensor = quantizer(x, *quantizer.grid(x))
        return result

    assert torch.equal(of(copy.deepcopy(first)), of(first))
    assert not torch.equal(of(first), of(second))
    second.load_state_dict(first.state_dict())
    assert torch.equal(of(first), of(second))


@pytest.mark.parametrize("clamp", [None, (0.0, None), (0.0, 6.0), (-1.0, 1.0), (None, 0.5), (1.0, None), (-50.0, 50.0)])
@pytest.mark.parametrize("spec", [(-128, 127, 0), (-128, 127, -128), (-128, 127, 5), (0, 15, 0), (-4, 3, 0)])
def test_thresholds_on_x_are_those_on_codes(
    spec: tuple[int, int, int], clamp: tuple[float | None, float | None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short way of processors against the one for all: results and masks to the bit, around every threshold."""
    qmin, qmax, zero_point = spec
    plan = Plan(qmin, qmax, StraightThrough(), zero_point, gradient_scale=True)
    limits = None if clamp is None else Clamp(*clamp)
    for scale in (0.1, 0.037, 1.0, 3.3, 1e-3, 6 / 255):
        codes = torch.arange(plan.low - 3, plan.high + 4).float()
        x = torch.cat(
            [codes * scale, (codes + 0.5) * scale, torch.tensor([0.0, -0.0, 6.0, -1.0, 1.0, 0.5, -50.0, 50.0])]
        )
        x = torch.cat([x, *(torch.nextafter(x, torch.tensor(end)) for end in (math.inf, -math.inf))])
        g = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        found = []
        for is_plain in (True, False):
            with monkeypatch.context() as patch:
                if not is_plain:
                    patch.setattr(quantizer, "_is_plain", lambda *arguments: False)
                leaf, s = x.clone().requires_grad_(), torch.tensor(scale, requires_grad=True)
                y = fake_quantize(leaf, s, None, plan, limits)
                y.backward(g)
                assert y.grad_fn is not None
                assert y.grad_fn.is_plain == is_plain  # type: ignore[attr-defined]
                found.append((y.detach(), leaf.grad, s.grad))
        (y, dx, ds), (expected, expected_dx, expected_ds) = found
        assert torch.equal(y, expected)
        assert dx is not None and expected_dx is not None and torch.equal(dx, expected_dx)
        assert ds is not None and expected_ds is not None
        # A sum of as many products in another order.
        bound = 1e-6 * float((g.abs() * qmax).norm()) / math.sqrt(x.numel() * qmax)
        assert float((ds - expected_ds).abs()) <= bound
