"""A layer normalization in integers is within a step of the real one."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import GraphError, UnsupportedError
from tests.support.exact import OUT, check_rounds, codes, evaluate, grid, real_result

WEIGHT, BIAS = torch.linspace(-1.5, 1.5, 16), torch.linspace(0.5, -0.5, 16)


@pytest.mark.parametrize("eps", [1e-5, 0.01])
def test_layer_norm_is_within_a_step(eps: float) -> None:
    x = codes((5, 3, 16), grid(0.02, 7), 1)
    check_rounds(
        evaluate("layer_norm", x, WEIGHT, BIAS, eps=eps), real_result("layer_norm", x, WEIGHT, BIAS, eps=eps), 1.0
    )


def test_numbers_outside_of_its_integers_are_refused_with_the_place() -> None:
    x = codes((5, 16), grid(0.02, 7), 1)
    found = evaluate("layer_norm", codes((5, 16), grid(0.02), 1, -(2**28), 2**28), WEIGHT, BIAS)
    with pytest.raises(UnsupportedError, match=r"the variance of 16 elements can reach .* \(at %layer_norm\)"):
        found.requantize(OUT, -128, 127)  # type: ignore[union-attr]
    with pytest.raises(GraphError, match="layer_norm reads real numbers"):
        evaluate("layer_norm", x.real(), WEIGHT, BIAS)
    with pytest.raises(GraphError, match="layer_norm is given codes"):
        evaluate("layer_norm", x, codes((16,), grid(0.1)), BIAS)
