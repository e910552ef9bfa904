"""Results that are not finite are refused by the module or the node that gave the first of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import InputError
from qcompiler.frontends import capture
from qcompiler.frontends.finite import check_finite, check_result, is_finite, not_finite
from tests.support.functions import Function, bound, numbers

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("result", "finite"),
    [
        (torch.ones(2), True),
        (torch.tensor([INF]), False),
        ({"a": (torch.ones(1), [torch.tensor([NAN])])}, False),
        ((torch.ones(1), 3.0, None), True),
        (torch.tensor([2**62]), True),
        ("not a result", True),  # which is refused elsewhere
    ],
)
def test_every_tensor_of_a_result_counts(result: object, finite: bool) -> None:
    assert is_finite(result) is finite


def test_the_kind_is_named() -> None:
    assert not_finite([torch.tensor([INF]), torch.tensor([NAN])]) == "NaN"
    assert not_finite([torch.tensor([INF, 1.0])]) == "infinity"


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


def test_the_first_module_is_named() -> None:
    x = torch.zeros(2, 3)
    model = nn.Sequential(nn.ReLU(), Log(), nn.Linear(3, 2)).eval()
    with pytest.raises(
        InputError, match=r"returns NaN on the example inputs, first in 1 \(Log\) \(at 1\)|infinity.*first in 1 \(Log\)"
    ):
        check_result(model, bound(model, x), model(x))
    own = Function(lambda x: x / 0).eval()
    with pytest.raises(InputError, match=r"first in its own forward \(Function\); expected finite results"):
        check_result(own, bound(own, x), own(x))
    check_result(own, bound(own, x), x)


def test_the_first_node_is_named() -> None:
    graph = capture(nn.Sequential(nn.ReLU(), Log()).eval(), numbers(2, 3).abs() + 1).module.main
    check_finite(graph, [torch.ones(2, 3)], "the data", "Change it.")
    with pytest.raises(
        InputError, match=r"returns infinity on the data \(at .*1.*Log.forward.*\); expected finite results. Change it"
    ):
        check_finite(graph, [torch.zeros(2, 3)], "the data", "Change it.")
