"""Functions of one number are tables of all codes, each entry the nearest code."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.ops import UNARY
from tests.support.exact import check_rounds, codes, evaluate, grid, real_result

POSITIVE = ("log", "log1p", "sqrt", "rsqrt", "reciprocal")


@pytest.mark.parametrize("op", UNARY)
def test_a_table_has_the_nearest_code_of_each_value(op: str) -> None:
    x = codes((1, 4, 60), grid(0.04, -128 - 9), 1) if op in POSITIVE else codes((1, 4, 60), grid(0.04, 5), 1)
    check_rounds(evaluate(op, x), real_result(op, x))


def test_a_slope_per_channel_has_its_own_table() -> None:
    x = codes((2, 3, 20), grid(0.04, 5), 1)
    slopes = torch.tensor([0.25, -0.5, 1.5])
    check_rounds(evaluate("prelu", x, slopes), real_result("prelu", x, slopes))
    check_rounds(evaluate("prelu", x, slopes[:1]), real_result("prelu", x, slopes[:1]))


def test_a_scale_per_channel_has_its_own_table() -> None:
    x = codes((2, 3, 20), grid(0.04, 5), 1)
    scales = torch.tensor([1.0, 2.0, 1.0])
    found = evaluate("scaled_unary", x, scales, function="tanh", axis=1)
    check_rounds(found, real_result("scaled_unary", x, scales, function="tanh", axis=1))


@pytest.mark.parametrize("op", ["sigmoid", "prelu"])
def test_real_numbers_are_refused(op: str) -> None:
    operands = [torch.ones(1, 3), *([torch.ones(3)] if op == "prelu" else [])]
    with pytest.raises(GraphError, match=f"{op} reads real numbers"):
        evaluate(op, *operands)
