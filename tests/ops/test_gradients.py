"""`quantize_gradient`: the identity forward, codes backward."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import ParseError
from qcompiler.ir.graph import Module
from qcompiler.ir.interpret import interpret
from tests.support.golden import leaf, module

ENDS = torch.tensor([-0.5, 1.0])


def quantizing(rounding: str, ends: torch.Tensor = ENDS) -> Module:
    node = f'%g = quantize_gradient(%x, %r) {{spec = spec"s4", rounding = "{rounding}"}} : f32[N, 500]'
    lines = [leaf("r", "f32", 2, kind="state"), node, "%g"]
    return module("quantized", *lines, inputs="%x : f32[N, 500]", tensors={"r": ends})


def backward(subject: Module, gradient: torch.Tensor) -> torch.Tensor:
    x = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (y,), _ = interpret(subject.main, [x], subject.tensors)
    assert torch.equal(y, x)
    y.backward(gradient)
    assert x.grad is not None
    return x.grad


def test_the_gradient_is_on_the_grid_of_the_range() -> None:
    gradient = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    found = backward(quantizing("nearest"), gradient)
    scale = (torch.tensor(1.5, dtype=torch.float64) / 15).float()
    zero = -3  # round(-8 + 0.5 / 0.1)
    for got, g in zip(found.flatten().tolist(), gradient.flatten(), strict=True):
        code = min(max(int(torch.round(g / scale)) + zero, -8), 7)
        assert got == pytest.approx(float((code - zero) * scale), abs=1e-7)


def test_stochastic_rounding_keeps_the_mean_and_repeats() -> None:
    gradient = torch.full((40, 500), 0.234)
    first, second = (backward(quantizing("stochastic"), gradient) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first.unique()) == 2
    # Five standard deviations of the mean of 20,000 numbers, at most half a step of 0.1 each.
    assert abs(float(first.double().mean()) - 0.234) < 5 * 0.05 / 20_000**0.5


def test_an_unknown_range_passes_the_gradient() -> None:
    gradient = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backward(quantizing("nearest", torch.full((2,), torch.nan)), gradient), gradient)


@pytest.mark.parametrize(
    ("attributes", "size", "message"),
    [
        ('spec = spec"s8 axis=1"', 2, "one scale"),
        ('spec = spec"s8", rounding = "up"', 2, "stochastic, nearest"),
        ('spec = spec"s8"', 3, "its low and its high end"),
    ],
)
def test_refuses_what_is_no_quantizer_of_a_gradient(attributes: str, size: int, message: str) -> None:
    node = f"%g = quantize_gradient(%x, %r) {{{attributes}}} : f32[N, 500]"
    with pytest.raises(ParseError, match=message):
        module("quantized", leaf("r", "f32", size, kind="state"), node, "%g", inputs="%x : f32[N, 500]")
