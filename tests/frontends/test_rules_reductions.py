"""Means, sums and extremes along axes become operators that compute the same."""

from __future__ import annotations

import pytest
import torch

from qcompiler.frontends import rules_reductions
from tests.support.spellings import Spelling, check_refused, check_rule, check_same, rules_of

SPELLED: dict[str, Spelling] = {
    "mean": lambda x: x.mean((1, -1)),
    "sum": lambda x: x.sum((1, -1), keepdim=True),
    "amax": lambda x: x.amax((1, -1)),
    "amin": lambda x: x.amin(-1, keepdim=True),
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
    "the sum of a batch": (lambda x: x.sum(), "sum over the batch"),
    "indices": (lambda x: x.max(1).indices, "the model reads the indices of max"),
}  # fmt: skip


def test_each_rule_is_spelled() -> None:
    assert {*SPELLED} == {*rules_of(rules_reductions)}


@pytest.mark.parametrize("name", SPELLED)
def test_the_graph_of_a_spelling_computes_what_torch_does(name: str) -> None:
    check_rule(name, SPELLED[name])


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_one_operator_are_one_graph(name: str) -> None:
    check_same(SAME[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_operator_is_refused_with_reason_and_place(name: str) -> None:
    check_refused(name, REFUSED)
