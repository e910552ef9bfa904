"""Sums of products of codes round once to the grid of the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.validation.exact import Codes
from tests.support.exact import check_rounds, codes, evaluate, grid, real_result

X = grid(0.02, -5)
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "conv1d": ((2, 4, 7), (6, 2, 3), {"padding": (1, 1), "stride": (2,), "groups": 2}),
    "conv2d": ((2, 3, 5, 5), (4, 3, 3, 3), {"padding": (1, 0, 1, 2)}),
    "conv3d": ((2, 2, 4, 4, 4), (3, 2, 2, 2, 2), {}),
    "conv_transpose1d": ((2, 4, 5), (4, 3, 3), {"stride": (2,)}),
    "conv_transpose2d": ((2, 4, 3, 3), (4, 2, 3, 3), {"stride": (2, 2), "padding": (1, 1), "groups": 2}),
    "conv_transpose3d": ((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), {}),
    "linear": ((3, 5, 8), (4, 8), {}),
}


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_rounds_its_sum_once(op: str, bias: bool) -> None:
    shape, weight_shape, attributes = LAYERS[op]
    operands = [codes(shape, X, 1), codes(weight_shape, grid(0.01), 2, -127)]
    if bias:
        groups = attributes.get("groups", 1)
        channels = weight_shape[1] * int(str(groups)) if "transpose" in op else weight_shape[0]
        operands.append(codes((channels,), grid(0.02 * 0.01), 3, -9000, 9000))
    check_rounds(evaluate(op, *operands, **attributes), real_result(op, *operands, **attributes))


@pytest.mark.parametrize(("op", "axis"), [("conv2d", 0), ("linear", 0), ("conv_transpose2d", 1)])
def test_each_output_channel_has_the_scale_of_its_weights(op: str, axis: int) -> None:
    shape = {"conv2d": (2, 3, 5, 5), "linear": (2, 3), "conv_transpose2d": (2, 3, 5, 5)}[op]
    weight = codes((3, 3, 2, 2)[: 2 if op == "linear" else 4], grid([0.004, 0.01, 0.03], axis=axis), 4, -127)
    operands = [codes(shape, X, 1), weight]
    check_rounds(evaluate(op, *operands), real_result(op, *operands))


def test_codes_beyond_the_limits_are_cut() -> None:
    operands = [codes((4, 8), grid(0.1), 1), codes((4, 8), grid(0.05), 2, -127)]
    check_rounds(evaluate("linear", *operands), real_result("linear", *operands), qmin=-20, qmax=30)


def test_operands_without_codes_and_sums_beyond_float64_are_refused() -> None:
    x = codes((2, 4), X)
    with pytest.raises(GraphError, match="linear reads real numbers"):
        evaluate("linear", x, torch.ones(3, 4))
    large = Codes(torch.full((3, 4), 2**50), grid(1.0), 0, 2**50, 32)
    with pytest.raises(
        GraphError, match=r"a sum of products may exceed float64 \(at %linear\); expected less than 2\^53"
    ):
        evaluate("linear", x, large)
