"""Losses of single tensors: each is measured with all others unquantized, and the worst come first."""

from __future__ import annotations

import math

import pytest
import torch

from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.text import parse_module
from qcompiler.validation.own_losses import own_losses
from tests.support.quantized import INPUT, linear
from tests.validation.test_layers import REFERENCE


def losses(x: torch.Tensor, measured: int = 8, **tensors: torch.Tensor) -> dict[str, float]:
    module = linear()
    reference = parse_module(REFERENCE, dict(module.tensors))
    reference.tensors.update(tensors)
    wanted = [torch.relu(x @ reference.tensors["w"].T)]
    found = own_losses(reference.main, module.main, [x], wanted, measured=measured)
    assert [item.sqnr_db for item in found] == sorted(item.sqnr_db for item in found)
    assert [item.tensor for item in found if item.parameter] == [item.tensor for item in found if item.tensor == "w"]
    return {item.tensor: item.sqnr_db for item in found}


def test_tensors_on_their_grids_lose_nothing() -> None:
    assert losses(INPUT) == {}


def test_a_loss_is_that_of_the_tensor_alone() -> None:
    # The outputs are 1.1 + 2 * 2 = 5.1 and 0; rounding the input gives 5, and so does rounding the result.
    found = losses(torch.tensor([[1.1, 2.0]]))
    assert found == pytest.approx({"x": 20 * math.log10(51), "r": 20 * math.log10(51)}, rel=1e-4)


def test_the_loss_of_a_rounded_weight_is_measured_against_the_float_weight() -> None:
    # The graph holds the weight after rounding, the reference the weight before it.
    found = losses(INPUT, w=torch.tensor([[1.25, 2.0], [-3.0, 1.0]]))
    assert found == pytest.approx({"w": 20 * math.log10(5.25 / 0.25), "r": 20 * math.log10(5.25 / 0.25)}, rel=1e-4)


def test_tensors_of_another_model_are_not_used() -> None:
    module = linear()
    reference = parse_module(REFERENCE, {**module.tensors, "w": 9.0 * torch.ones(2, 2)})
    assert own_losses(reference.main, module.main, [INPUT], [torch.tensor([[5.0, 0.0]])]) == []


def test_only_so_many_tensors_are_measured() -> None:
    assert len(losses(torch.tensor([[1.1, 2.1]]), measured=1)) == 1


def test_without_derivatives_the_tensors_with_the_largest_errors_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("derivative not implemented")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    assert set(losses(torch.tensor([[1.1, 2.0]]))) == {"x", "r"}


def test_a_fused_activation_is_part_of_the_float_graph() -> None:
    module = linear()
    reference = parse_module(REFERENCE, dict(module.tensors))
    (relu,) = (node for node in module.main.nodes if node.op == "relu")
    rewriter = Rewriter(module.main)
    rewriter.set_attributes(next(iter(relu.output.users)), qmin=0, qmax=127)
    rewriter.replace(relu, relu.inputs[0])
    assert own_losses(reference.main, module.main, [INPUT], [torch.tensor([[5.0, 0.0]])]) == []


def test_what_the_model_of_noise_expects_is_exact_where_the_graph_is_linear() -> None:
    module = linear()
    x = torch.tensor([[1.1, 2.0]])
    reference = parse_module(REFERENCE, dict(module.tensors))
    found = own_losses(reference.main, module.main, [x], [torch.relu(x @ reference.tensors["w"].T)])
    # One output is above zero, so that signs change nothing.
    assert {item.tensor: item.expected_db for item in found} == pytest.approx(
        {item.tensor: item.sqnr_db for item in found}, rel=1e-4
    )
