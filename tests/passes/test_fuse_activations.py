"""Activations merge, and move next to the operator that makes their input."""

from __future__ import annotations

import pytest

from qcompiler.passes.fuse_activations import FuseActivations
from tests.support.golden import computes_the_same, lines, module, refusals, run

FUSED: dict[str, tuple[list[str], list[str]]] = {
    "two in a row": (
        ["%a = relu(%x) : f32[N, 4, 6, 6]", "%b = clamp(%a) {min = -1.0, max = 6.0} : f32[N, 4, 6, 6]", "%b"],
        ["%a = clamp(%x) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]", "return %a"],
    ),
    "over a pooling": (
        [
            "%p = max_pool2d(%x) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
            "%r = relu(%p) : f32[N, 4, 3, 3]",
            "%r",
        ],
        [
            "%r_1 = relu(%x) : f32[N, 4, 6, 6]",
            "%p = max_pool2d(%r_1) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
            "return %p",
        ],
    ),
    "not where others read": (
        [
            "%p = permute(%x) {axes = (0, 2, 3, 1)} : f32[N, 6, 6, 4]",
            "%r = relu(%p) : f32[N, 6, 6, 4]",
            "%s = add(%p, %r) : f32[N, 6, 6, 4]",
            "%s",
        ],
        [
            "%p = permute(%x) {axes = (0, 2, 3, 1)} : f32[N, 6, 6, 4]",
            "%r = relu(%p) : f32[N, 6, 6, 4]",
            "%s = add(%p, %r) : f32[N, 6, 6, 4]",
            "return %s",
        ],
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_fuse_activations(case: str) -> None:
    before, after = FUSED[case]
    subject = module("canonical", *before)
    record = run(FuseActivations(), subject)
    assert lines(subject) == after
    computes_the_same(module("canonical", *before), subject, rtol=0.0)
    assert (refusals(record) == ["p has other users"]) == (case == "not where others read")
