"""Functions as models, and what a front end makes of them before it is compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qcompiler.frontends.examples import Binding, bind_example
from qcompiler.frontends.sources import source_of


class Function(nn.Module):
    """A function of one or two tensors as a model."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor | None = None) -> object:
        return self.function(x, y) if self.function.__code__.co_argcount == 2 else self.function(x)


class Missing(nn.Module):
    """Two functions that no target computes in integers."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sinh(x) + torch.logcumsumexp(x, 1)


def missing() -> tuple[nn.Module, Tensor]:
    """The model and an example, as the command line reads them."""
    return Missing().eval(), torch.zeros(2, 3)


def bound(model: nn.Module, *inputs: object) -> Binding:
    """A call of `model`."""
    return bind_example(source_of(model).signature(), inputs)


def numbers(*shape: int) -> Tensor:
    """Random numbers, the same for each shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
