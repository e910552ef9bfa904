"""Grids that several values share: a range for all of them, or for what is chosen among them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qcompiler


class Joined(nn.Module):
    """A layer and a small constant, put together by `join`."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.join = nn.Conv2d(3, 4, 1), join
        self.register_buffer("table", torch.full((1, 4, 1, 6), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.table, Tensor)
        return self.join(self.layer(x), self.table)


@pytest.mark.parametrize("join", [lambda x, t: torch.cat([x, t], 2), lambda x, t: torch.cat([t, x], 2)])
@pytest.mark.parametrize("with_data", [True, False])
def test_a_constant_shares_the_range_of_activations(join: Callable[[Tensor, Tensor], Tensor], with_data: bool) -> None:
    torch.manual_seed(0)
    model, x = Joined(join).eval(), torch.randn(1, 3, 6, 6)
    compiled = qcompiler.compile(model, example_inputs=(x,), calibration_data=[x] if with_data else None)
    found = compiled.simulate(x)
    assert isinstance(found, Tensor)
    expected = model(x).detach()
    share = 0.05 if with_data else 0.2  # some inputs are beyond the range that is assumed without data
    assert float((found - expected).abs().max()) < share * float(expected.abs().max())
