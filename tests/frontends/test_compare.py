"""A graph is compared with the model, and the first module that differs is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CaptureError
from qcompiler.frontends import capture
from qcompiler.frontends.compare import TOLERANCE_EPS, compare, is_close
from tests.support.functions import Function, bound, numbers

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("found", "close"),
    [
        ([1.0, 1024.0], True),
        ([1.0, 1024.0 * (1 + TOLERANCE_EPS * EPS)], True),
        ([1.0, 1024.0 * (1 + 4 * TOLERANCE_EPS * EPS)], False),
        ([1.0 + 1024 * TOLERANCE_EPS / 2 * EPS, 1024.0], True),  # relative to the largest element
        ([1.0, float("nan")], False),
        ([1.0], False),
    ],
)
def test_tensors_are_close_up_to_rounding(found: list[float], close: bool) -> None:
    assert is_close(torch.tensor(found), torch.tensor([1.0, 1024.0])) is close


def test_nan_equals_nan_and_integers_are_exact() -> None:
    holes = torch.tensor([float("nan"), 1.0])
    assert is_close(holes.clone(), holes)
    assert is_close(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert not is_close(torch.tensor([1, 2]), torch.tensor([1, 3]))
    assert not is_close(torch.tensor([1.0]), torch.tensor([1]))


class Flag(nn.Module):
    """Behaves in another way once it was traced: a trace holds what was true while it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.ReLU(), FlagInner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x)) + 1.0  # type: ignore[no-any-return]


def is_traced(x: object) -> bool:
    return isinstance(x, torch.fx.Proxy) or torch.compiler.is_compiling()


class FlagInner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if is_traced(x) else x * 3.0


def test_the_first_module_that_differs_is_named() -> None:
    words = r"differ on inputs of shape \[2, 3\]; the first module that differs is inner \(FlagInner\) \(at inner\)"
    with pytest.raises(CaptureError, match=words):
        capture(Flag().eval(), numbers(2, 3))


def test_a_difference_outside_of_all_modules_is_the_models_own() -> None:
    model, x = Function(lambda x: x * 2).eval(), numbers(2, 3)
    graph, binding = capture(model, x).module.main, bound(model, x)
    compare(graph, model, binding, [x], x * 2)
    with pytest.raises(CaptureError, match=r"the model itself \(Function\), in its own forward"):
        compare(graph, model, binding, [x], x * 3)
    with pytest.raises(CaptureError, match="the captured graph and the model differ"):
        compare(graph, model, binding, [x], (x * 2,))  # the same numbers in another nesting


def test_a_graph_that_cannot_run_says_so() -> None:
    model, x = Function(lambda x: x * 2).eval(), numbers(2, 3)
    graph = capture(model, x).module.main
    with pytest.raises(CaptureError, match=r"the captured graph cannot run on inputs of shape \[2, 4\]"):
        compare(graph, model, bound(model, x), [numbers(2, 4)], numbers(2, 4))
