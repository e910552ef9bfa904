"""Squared errors of the integer results against the float model."""

from __future__ import annotations

import math

import pytest
import torch

from qcompiler.validation.noise import float_outputs, squared_errors
from tests.support.exact import ARITHMETIC
from tests.support.quantized import linear

X = torch.tensor([[1.1, 2.0], [1.0, 2.0]])
WANTED = torch.tensor([[5.1, 0.0], [5.0, 0.0]])


def test_without_quantizers_the_graph_is_the_float_model() -> None:
    module = linear()
    (found,) = float_outputs(module.main, [X], module.tensors)
    torch.testing.assert_close(found, WANTED)


def test_errors_are_summed_over_the_elements_of_an_output() -> None:
    module = linear()
    assert squared_errors(module.main, [X], module.tensors, [WANTED], ARITHMETIC) == pytest.approx([0.01], rel=1e-4)
    far = WANTED + torch.tensor([[0.0, 3.0], [0.0, 0.0]])
    assert squared_errors(module.main, [X], module.tensors, [far], ARITHMETIC) == pytest.approx([9.01], rel=1e-4)


def test_elements_that_are_not_finite_and_integers_count_nothing() -> None:
    module = linear()
    holed = WANTED.clone()
    holed[0, 0] = math.inf
    assert squared_errors(module.main, [X], module.tensors, [holed], ARITHMETIC) == [0.0]
    assert squared_errors(module.main, [X], module.tensors, [holed.nan_to_num().long()], ARITHMETIC) == [0.0]
