"""What a tracer gets wrong in silence: sizes that round, a batch of one, aliases, values read, arguments left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler import frontends
from qcompiler.errors import QCompilerError
from tests.support.running import outputs_of


class Function(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor | None = None) -> object:
        return self.function(x, y)


def added_in_place(x: Tensor, y: Tensor | None) -> Tensor:
    """The view is written to, and the whole is read."""
    whole = x * 2
    whole.reshape(-1).add_(1)
    return whole


def clamped_before(x: Tensor, y: Tensor | None) -> Tensor:
    """What is written to is read before and after."""
    z = x + 1
    before = z * 2
    z.relu_()
    return before + z


def optional(x: Tensor, y: Tensor | None) -> Tensor:
    return x if y is None else x + y


def decided(x: Tensor, y: Tensor | None) -> Tensor:
    return x * 2 if len(x) == 1 else x


def half(x: Tensor, y: Tensor | None) -> Tensor:
    return x[: x.shape[0] // 2]


def squeezed(x: Tensor, y: Tensor | None) -> Tensor:
    return torch.relu(x).squeeze()


def scaled_by_half_of_the_batch(x: Tensor, y: Tensor | None) -> Tensor:
    return x * (x.shape[0] // 2)


def read(x: Tensor, y: Tensor | None) -> Tensor:
    return x * x.max().item()


@pytest.mark.parametrize("function", [added_in_place, clamped_before, optional])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_does_what_the_model_does_at_any_batch(function: Callable[..., Tensor], batch: int) -> None:
    try:
        graph = frontends.capture(Function(function).eval(), torch.randn(2, 6)).module.main
    except QCompilerError as error:
        assert function is added_in_place, "only memory that is seen twice may be refused"
        assert "memory that another tensor shares" in str(error)  # noqa: PT017
        return
    x = torch.randn(batch, 6, generator=torch.Generator().manual_seed(batch))
    assert torch.equal(outputs_of(graph, [x])[0], function(x.clone(), None))


def test_an_argument_that_is_left_out_stays_out() -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    assert len(frontends.capture(Function(optional).eval(), x).module.main.inputs) == 1
    both = frontends.capture(Function(optional).eval(), (x, y)).module.main
    assert torch.equal(outputs_of(both, [x, y])[0], x + y)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (half, "of symbolic size N is sliced"),
        (squeezed, r"differ on inputs of shape \[1, 3\]"),
        (decided, r"differ on inputs of shape \[1, 3\]"),
        (scaled_by_half_of_the_batch, "batch|differ"),
        (read, "values of its inputs"),
    ],
)
def test_what_holds_for_one_batch_only_is_refused(function: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(QCompilerError, match=message):
        frontends.capture(Function(function).eval(), torch.randn(4, 3))
