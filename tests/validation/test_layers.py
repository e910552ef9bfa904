"""Signal-to-noise ratio of every quantized tensor, by name."""

from __future__ import annotations

import math

import pytest
import torch

from qcompiler.ir.text import parse_module
from qcompiler.validation.layers import layer_sqnr
from tests.support.exact import ARITHMETIC
from tests.support.quantized import INPUT, linear

REFERENCE = """graph @main stage=float {
  input %x : f32[N, 2]
  bound N 1 64
  %w = parameter() {ref = "w", dtype = "f32", shape = (2, 2)} : f32[2, 2]
  %a = linear(%x, %w) : f32[N, 2]
  %r = relu(%a) : f32[N, 2]
  return %r
}
"""


def ratios(x: torch.Tensor, **tensors: torch.Tensor) -> dict[str, float]:
    module = linear()
    module.tensors.update(tensors)
    return layer_sqnr(parse_module(REFERENCE, module.tensors).main, module.main, [x], ARITHMETIC)


def test_what_is_on_the_grid_has_no_noise() -> None:
    assert ratios(INPUT) == {"x.q": math.inf, "r.q": math.inf, "output 0": math.inf}


def test_noise_is_that_of_the_tensor_and_of_all_before_it() -> None:
    found = ratios(torch.tensor([[1.1, 2.0]]))
    # The codes stand for [1, 2], and the result for [5, 0] in place of [5.1, 0].
    assert found["x.q"] == pytest.approx(10 * math.log10((1.1**2 + 4) / 0.01), abs=1e-3)
    assert found["r.q"] == found["output 0"] == pytest.approx(20 * math.log10(5.1 / 0.1), abs=1e-3)


def test_elements_that_are_infinite_in_the_model_do_not_count() -> None:
    found = ratios(torch.tensor([[math.inf, 2.0], [1.1, 2.0]]))
    assert found["x.q"] == pytest.approx(10 * math.log10((1.1**2 + 8) / 0.01), abs=1e-3)
