"""A softmax in integers is within a step of the real one, its logarithm within half of one, and a mask is exact."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.validation.exact import Codes, Pending
from tests.support.exact import OUT, check_rounds, codes, evaluate, grid, real_result


@pytest.mark.parametrize("axis", [0, 2])
def test_softmax_is_within_a_step(axis: int) -> None:
    x = codes((5, 3, 16), grid(0.02, 7), 1)
    check_rounds(evaluate("softmax", x, axis=axis), real_result("softmax", x, axis=axis), 1.0)


@pytest.mark.parametrize("axis", [0, 2])
def test_log_softmax_is_rounded_once(axis: int) -> None:
    x = codes((5, 3, 16), grid(0.002, 7), 1)
    check_rounds(evaluate("log_softmax", x, axis=axis), real_result("log_softmax", x, axis=axis))


def test_elements_without_a_part_are_zero() -> None:
    x = codes((5, 16), grid(0.02, 7), 1)
    mask = torch.arange(16) % 3 > 0
    found = evaluate("softmax", x, mask, axis=1)
    assert isinstance(found, Pending)
    result = found.requantize(OUT, -128, 127)
    assert set(result[:, ~mask].reshape(-1).tolist()) == {int(OUT.zero_point)}
    alone = evaluate("softmax", Codes(x.codes[:, mask], x.params, x.qmin, x.qmax, x.bits), axis=1)
    assert isinstance(alone, Pending)
    assert torch.equal(result[:, mask], alone.requantize(OUT, -128, 127))


def test_real_numbers_are_refused() -> None:
    for op in ("softmax", "log_softmax"):
        with pytest.raises(GraphError, match="softmax reads real numbers"):
            evaluate(op, torch.zeros(2, 3), axis=1)
