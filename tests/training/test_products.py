"""The three products of a layer against loops over codes, and the kernels on int8 against float64."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.quant.spec import QuantSpec
from qcompiler.quant.stochastic import noise, noise_key
from qcompiler.training import integer_products
from qcompiler.training.geometry import Geometry
from qcompiler.training.integer_products import PART, Codes8
from qcompiler.training.products import ARITHMETICS, Arithmetic, Job, LayerProducts
from qcompiler.training.range_estimators import DSGC, InHindsight

A8, W8 = QuantSpec(8), QuantSpec(8, symmetric=True, narrow=True)
CONV = Geometry("conv", (2, 1), (1, 0), (1, 1), (0, 0), output_axis=1)


def codes(shape: tuple[int, ...], zero_point: int, seed: int) -> Codes8:
    generator = torch.Generator().manual_seed(seed)
    return Codes8(torch.randint(-128, 128, shape, generator=generator).to(torch.int8), zero_point)


def wide(item: Codes8) -> Tensor:
    return item.codes.double() - item.zero_point


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_kernels_on_int8_are_exact_for_any_geometry(data: st.DataObject) -> None:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = data.draw(pair), data.draw(pair), data.draw(pair)
    padding = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    zeros = data.draw(st.tuples(*[st.sampled_from([-128, 0, 3, 127])] * 3))
    size = data.draw(st.tuples(st.integers(7, 9), st.integers(7, 9)))
    geometry = Geometry("conv", stride, padding, dilation, (0, 0), output_axis=1)
    x, w = codes((2, 3, *size), zeros[0], 0), codes((4, 3, *kernel), zeros[1], 1)
    y = integer_products.forward(geometry, x, w)
    assert torch.equal(y, geometry.forward(wide(x), wide(w)))
    g = codes(tuple(y.shape), zeros[2], 2)
    found = integer_products.for_input(geometry, g, w, x.codes.shape)
    assert torch.equal(found, geometry.for_input(wide(g), wide(x), wide(w)))
    found = integer_products.for_weight(geometry, g, x, w.codes.shape)
    assert torch.equal(found, geometry.for_weight(wide(g), wide(x), wide(w)))


def test_kernels_of_linear_layers_are_exact_beyond_one_int32_sum() -> None:
    geometry = Geometry("linear")
    x, w, g = codes((PART + 5, 3), -128, 0), codes((2, 3), 0, 1), codes((PART + 5, 2), 127, 2)
    x.codes.fill_(127)
    g.codes.fill_(-128)
    assert torch.equal(integer_products.forward(geometry, x, w), wide(x) @ wide(w).t())
    assert torch.equal(integer_products.for_input(geometry, g, w, x.codes.shape), wide(g) @ wide(w))
    # The largest sum of all: each term is 255 * 255.
    found = integer_products.for_weight(geometry, g, x, w.codes.shape)
    assert torch.equal(found, torch.full((2, 3), -255.0 * 255.0 * (PART + 5), dtype=torch.float64))


def test_which_products_have_kernels() -> None:
    cpu = torch.device("cpu")
    assert integer_products.matmul_is_exact("cpu")
    assert integer_products.serves(CONV, cpu, 8)
    assert not integer_products.serves(CONV, cpu, 9)
    assert not integer_products.serves(Geometry("conv", (1, 1), (0, 0), (1, 1), (0, 0), groups=2), cpu, 8)
    assert not integer_products.serves(Geometry("conv", (1, 1), (0, 0), (1, 1), (0, 0), transposed=True), cpu, 8)
    assert not integer_products.serves(Geometry("conv", (1,), (0,), (1,), (0,)), cpu, 8)
    assert not integer_products.serves(Geometry("matmul"), cpu, 8)


def job(arithmetic: Arithmetic = "float", *, per_channel: bool = False, stochastic: bool = True) -> Job:
    w = QuantSpec(8, symmetric=True, narrow=True, axis=0) if per_channel else W8
    return Job(CONV, A8, InHindsight(), stochastic, arithmetic, A8, w, 5, 3, per_channel)


def operands(per_channel: bool) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """x, w, the gradient of y, and the grids of x and w."""
    generator = torch.Generator().manual_seed(0)
    x_scale, x_zero = torch.tensor(0.03), torch.tensor(-20.0)
    scales = torch.tensor([0.01, 0.2, 0.05]) if per_channel else torch.tensor(0.01)
    x = torch.randint(-108, 148, (2, 2, 5, 4), generator=generator) * x_scale
    w = torch.randint(-127, 128, (3, 2, 3, 2), generator=generator) * scales.reshape(-1, 1, 1, 1)
    y = CONV.forward(x, w)
    return x, w, torch.randn(y.shape, generator=generator), (x_scale, x_zero), (scales, torch.zeros(()))


def plain_codes(g: Tensor, place: int, calls: int) -> tuple[list[int], float]:
    """Codes minus the zero point and the scale, element by element."""
    low, high = min(float(g.min()), 0.0), max(float(g.max()), 0.0)
    scale = torch.tensor((high - low) / 255, dtype=torch.float64).float()
    zero = min(max(math.floor(-128 - low / float(scale) + 0.5), -128), 127)
    drawn = noise(g.numel(), noise_key(5, 0, 3, place, calls))
    found = []
    for value, n in zip(g.flatten(), drawn.tolist(), strict=True):
        code = math.floor(float(value / scale) + n / 65536 + 0.5) + zero
        found.append(min(max(code, -128), 127) - zero)
    return found, float(scale)


def plain_products(
    g: Tensor, x: Tensor, w: Tensor, scale: float, input_scale: float, kernel: Tensor, scaled: Tensor
) -> tuple[Tensor, Tensor]:
    """g_x and g_w by loops; `scaled` and `kernel` are the operands of g_x."""
    for_input, for_weight = torch.zeros(x.shape).double(), torch.zeros(w.shape).double()
    n, outputs, height, width = g.shape
    for b, o, i, j in itertools.product(range(n), range(outputs), range(height), range(width)):
        for c, p, q in itertools.product(*map(range, w.shape[1:])):
            row, column = 2 * i - 1 + p, j + q
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                for_input[b, c, row, column] += scaled[b, o, i, j] * kernel[o, c, p, q]
                for_weight[o, c, p, q] += g[b, o, i, j] * x[b, c, row, column]
    return for_input * input_scale, for_weight * scale


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_gradients_are_loops_over_codes(arithmetic: Arithmetic, per_channel: bool) -> None:
    x, w, g, x_grid, w_grid = operands(per_channel)
    x.requires_grad_()
    w.requires_grad_()
    bias = torch.randn(3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    layer = LayerProducts(job(arithmetic, per_channel=per_channel))
    y = layer(x, w, bias, x_grid, w_grid)
    torch.testing.assert_close(y, CONV.forward(x, w, bias), rtol=1e-5, atol=1e-5)
    y.backward(g)

    steps, scale = plain_codes(g, 0, 0)
    quantized = torch.tensor(steps, dtype=torch.float64).reshape(g.shape)
    scaled, input_scale, kernel = quantized, scale, w.detach().double()
    if per_channel:
        spread = w_grid[0].reshape(1, -1, 1, 1)
        found, input_scale = plain_codes(g * spread, 1, 0)
        scaled = torch.tensor(found, dtype=torch.float64).reshape(g.shape)
        kernel = torch.round(w.detach() / w_grid[0].reshape(-1, 1, 1, 1)).double()
    expected = plain_products(quantized, x.detach().double(), w.detach(), scale, input_scale, kernel, scaled)
    assert x.grad is not None
    assert w.grad is not None
    assert bias.grad is not None
    for got, wanted in zip((x.grad, w.grad), expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    torch.testing.assert_close(bias.grad.double(), quantized.sum((0, 2, 3)) * scale, rtol=1e-6, atol=1e-9)
    assert int(layer.calls) == 1


@pytest.mark.parametrize("per_channel", [False, True])
def test_integers_are_the_reference_to_the_bit(per_channel: bool) -> None:
    results = []
    for arithmetic in ARITHMETICS[1:]:
        x, w, g, x_grid, w_grid = operands(per_channel)
        x.requires_grad_()
        w.requires_grad_()
        layer = LayerProducts(job(arithmetic, per_channel=per_channel))
        y = layer(x, w, None, x_grid, w_grid)
        y.backward(g)
        results.append((y.detach(), x.grad, w.grad))
    for left, right in zip(*results, strict=True):
        assert left is not None
        assert right is not None
        assert torch.equal(left, right)


def weight_gradient(
    layer: LayerProducts, x: Tensor, w: Tensor, g: Tensor, x_grid: tuple[Tensor, Tensor], w_grid: tuple[Tensor, Tensor]
) -> Tensor:
    own = w.clone().requires_grad_()
    layer(x, own, None, x_grid, w_grid).backward(g)
    assert own.grad is not None
    return own.grad


def test_micro_batches_have_noise_of_their_own_and_a_repeat_has_the_same() -> None:
    x, w, g, x_grid, w_grid = operands(False)
    layer = LayerProducts(job())
    twin = copy.deepcopy(layer)
    found = [weight_gradient(item, x, w, g, x_grid, w_grid) for item in (layer, layer, twin)]
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_nearest_rounding_draws_nothing() -> None:
    x, w, g, x_grid, w_grid = operands(False)
    layer = LayerProducts(job(stochastic=False))
    found = [weight_gradient(layer, x, w, g, x_grid, w_grid) for _ in range(2)]
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_gradient_that_is_not_finite_stays_so(arithmetic: Arithmetic) -> None:
    x, w, g, x_grid, w_grid = operands(False)
    x.requires_grad_()
    w.requires_grad_()
    g[0, 0, 0, 0] = math.inf
    layer = LayerProducts(job(arithmetic))
    layer(x, w, None, x_grid, w_grid).backward(g)
    assert x.grad is not None
    assert w.grad is not None
    assert bool(x.grad.isnan().any())
    assert bool(w.grad.isnan().any())
    assert bool(layer.gradient.pending.isinf().all()), "such statistics move no range"


def test_dsgc_slows_the_weight() -> None:
    x, w, g, x_grid, w_grid = operands(False)
    plain, slow = (
        LayerProducts(Job(CONV, QuantSpec(2), DSGC(slows=slows), True, "float", A8, W8, 5, 3, False))
        for slows in (False, True)
    )
    before, after = (weight_gradient(item, x, w, g, x_grid, w_grid) for item in (plain, slow))
    assert float(slow.gradient.factor) < 1.0
    torch.testing.assert_close(after, before * slow.gradient.factor)


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 4, 5)), ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (3, 4, 5))])
def test_products_of_activations_with_broadcasting(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    geometry = Geometry("matmul")
    a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    y = geometry.forward(a, b)
    g = torch.randn(y.shape, dtype=torch.float64)
    y.backward(g)
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(geometry.for_input(g, a, b), a.grad)
    torch.testing.assert_close(geometry.for_weight(g, a, b), b.grad)
