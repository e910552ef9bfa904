"""Means, sums and extremes along axes become operators that compute the same."""

from __future__ import annotations

import pytest
import torch

from qcompiler.frontends import rules_reductions
from tests.support.spellings import RuleTests, Spelling, check_rule

SPELLED: dict[str, Spelling] = {
    "mean": lambda x: x.mean((1, -1)),
    "sum": lambda x: x.sum((1, -1), keepdim=True),
    "amax": lambda x: x.amax((1, -1)),
    "amin": lambda x: x.amin(-1, keepdim=True),
    "var": lambda x: x.var((2, 3), unbiased=False),
    "std": lambda x: torch.std(x, 1, keepdim=True),
    "norm": lambda x: x.norm(dim=(1, 2), keepdim=True),
    "linalg_norm": lambda x: torch.linalg.norm(x, dim=-1),
    "linalg_vector_norm": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "aminmax": lambda x: x.aminmax(dim=1).max,
}

SAME: dict[str, list[Spelling]] = {
    "mean": [lambda x: x.mean((2, 3)), lambda x: torch.mean(x, [2, 3]), lambda x: x.mean((-2, -1)), lambda x: x.mean(axis=(2, 3), keepdims=False)],
    "sum": [lambda x: x.sum((2, 3)), lambda x: torch.sum(x, [2, 3]), lambda x: x.sum((-1, -2)), lambda x: x.mean((2, 3)) * 16, lambda x: x.sum(axis=(2, 3))],
    "largest of images": [lambda x: x.amax((2, 3), keepdim=True), lambda x: torch.amax(x, (-2, -1), True), lambda x: torch.max_pool2d(x, 4)],
    "largest of an axis": [lambda x: x.amax(1), lambda x: x.max(1).values, lambda x: torch.max(x, 1)[0], lambda x: x.max(dim=-3)[0]],
    "smallest of an axis": [lambda x: x.amin(1, True), lambda x: x.min(1, True).values, lambda x: torch.min(x, dim=1, keepdim=True)[0]],
}  # fmt: skip

REFUSED: dict[str, tuple[Spelling, str]] = {
    "the largest of a batch": (lambda x: x.amax(0), "amax over the batch"),
    "the sum of magnitudes": (lambda x: x.norm(1, dim=1), "norm with p=1"),
    "the sum of a batch": (lambda x: x.sum(), "sum over the batch"),
}  # fmt: skip


class TestRules(RuleTests):
    file, spelled, same, refused = rules_reductions, SPELLED, SAME, REFUSED


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_extremes_of_axes_of_any_size(size: int) -> None:
    check_rule("amax", lambda x: x[:, :size].amax(1))
    check_rule("amin", lambda x: x[:, :, :size].amin(2, keepdim=True))
