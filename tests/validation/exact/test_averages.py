"""Means of codes: over axes to a new grid, over windows on the grid of the operand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.validation.exact import Codes
from tests.support.exact import check_rounds, codes, evaluate, grid, real_result

X = codes((2, 3, 6, 5), grid(0.1, 9), 1)


@pytest.mark.parametrize(("axes", "keepdim"), [((2, 3), False), ((2, 3), True), ((1,), False), ((3, 1), True)])
def test_a_mean_over_axes_waits_for_a_grid(axes: tuple[int, ...], keepdim: bool) -> None:
    check_rounds(evaluate("mean", X, axes=axes, keepdim=keepdim), real_result("mean", X, axes=axes, keepdim=keepdim))


WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "pool": ("avg_pool2d", {"kernel": (2, 3), "stride": (2, 1), "padding": (0, 0)}),
    "pool with a border": ("avg_pool2d", {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True}),
    "pool without the border": (
        "avg_pool2d",
        {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "count_include_pad": False},
    ),
    "pool with a divisor": (
        "avg_pool2d",
        {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "divisor_override": 5},
    ),
    "adaptive": ("adaptive_avg_pool2d", {"output_size": (4, 3)}),
    "nearest": ("resize", {"size": (9, 4), "mode": "nearest"}),
    "bilinear": ("resize", {"size": (7, 11), "mode": "bilinear"}),
    "corners": ("resize", {"size": (9, 9), "mode": "bilinear", "align_corners": True}),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_mean_of_a_window_stays_on_its_grid(name: str) -> None:
    op, attributes = WINDOWS[name]
    found = evaluate(op, X, **attributes)
    assert isinstance(found, Codes)
    assert found.params is X.params
    wanted = real_result(op, X, **attributes) / 0.1 + 9
    assert float((found.codes - wanted).abs().max()) <= 0.5 + 1e-4


def test_a_border_widens_the_limits_to_the_code_of_zero() -> None:
    high = codes((1, 1, 4, 4), grid(0.1, -100), 1, 50, 100)
    found = evaluate("avg_pool2d", high, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
    assert isinstance(found, Codes)
    assert (found.qmin, found.qmax) == (-100, 100)
    assert int(found.codes.min()) < 50


@pytest.mark.parametrize(
    ("op", "attributes"), [("mean", {"axes": (1,)}), ("resize", {"size": (3, 3), "mode": "nearest"})]
)
def test_real_numbers_are_refused(op: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match=f"{op} reads real numbers"):
        evaluate(op, torch.ones(2, 3, 4, 4), **attributes)
