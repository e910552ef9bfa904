"""Codes give their real numbers; an operand of another kind is named with its operator."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.validation.exact import Codes, Pending
from qcompiler.validation.exact.values import codes_of, real_of
from tests.support.exact import codes, grid, node


def test_codes_per_tensor() -> None:
    x = Codes(torch.tensor([-128, 3, 127]), grid(0.5, 3), -128, 127, 8)
    assert x.real().tolist() == [-65.5, 0.0, 62.0]
    assert x.steps().tolist() == [-131, 0, 124]
    assert x.largest_step() == 131


def test_codes_per_channel() -> None:
    x = Codes(torch.tensor([[1, 2], [3, 4]]), grid([0.5, 2.0], 1, axis=1), -8, 7, 4)
    assert x.real().tolist() == [[0.0, 2.0], [1.0, 6.0]]
    assert x.steps().tolist() == [[0, 1], [2, 3]]


def test_an_operand_of_another_kind_is_named() -> None:
    x, waits = codes((2, 3), grid(0.1)), Pending(lambda params, qmin, qmax: torch.zeros(2, 3))
    relu = node("relu", [x])
    assert codes_of(relu, x) is x
    assert real_of(relu, x.codes) is x.codes
    with pytest.raises(GraphError, match=r"relu reads real numbers \(at %relu\); expected a quantizer before it"):
        codes_of(relu, torch.ones(2))
    with pytest.raises(GraphError, match="relu reads an accumulator"):
        codes_of(relu, waits)
    for item in (x, waits):
        with pytest.raises(GraphError, match=r"relu is given codes \(at %relu\); expected real numbers"):
            real_of(relu, item)
