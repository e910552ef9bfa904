"""Normalizations that a model writes out become the operator."""

from __future__ import annotations

import pytest
import torch

from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from tests.support.golden import computes_the_same, leaf, lines, module, run

X = "%x : f32[N, 6, 4]"
SQUARES = [
    leaf("eps", "f32", kind="constant").replace("(,)", "()"),
    "%q = mul(%x, %x) : f32[N, 6, 4]",
    "%m = mean(%q) {axes = (2,), keepdim = true} : f32[N, 6, 1]",
    "%s = add(%m, %eps) : f32[N, 6, 1]",
]
NORM = "layer_norm(%x, {0}.weight, {0}.bias) {{eps = 0.25, dims = 1, centered = false}} : f32[N, 6, 4]"

CASES: dict[str, tuple[list[str], str]] = {
    "the inverse root": (["%r = rsqrt(%s) : f32[N, 6, 1]", "%y = mul(%x, %r) : f32[N, 6, 4]", "%y"], "%y"),
    "a division": (["%r = sqrt(%s) : f32[N, 6, 1]", "%y = div(%x, %r) : f32[N, 6, 4]", "%y"], "%y_2"),
    "a weight and a bias": (
        [
            "%r = rsqrt(%s) : f32[N, 6, 1]",
            "%n = mul(%x, %r) : f32[N, 6, 4]",
            leaf("w", "f32", 4),
            leaf("b", "f32", 4),
            "%a = mul(%w, %n) : f32[N, 6, 4]",
            "%y = add(%a, %b) : f32[N, 6, 4]",
            "%y",
        ],
        "%y",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_norm_that_is_written_out_is_one_operator(name: str) -> None:
    text, stem = CASES[name]
    tensors = {"eps": torch.tensor(0.25)}
    subject, before = (module("float", *SQUARES, *text, inputs=X, tensors=dict(tensors)) for _ in range(2))
    run(Canonicalize(), subject)
    run(EliminateDeadCode(), subject)
    assert [line.partition(" = ")[2] for line in lines(subject)][:-1] == [NORM.format(stem)]
    computes_the_same(before, subject, 1e-5)


def test_squares_of_another_value_are_no_norm() -> None:
    text = [
        "%z = exp(%x) : f32[N, 6, 4]",
        "%r = rsqrt(%s) : f32[N, 6, 1]",
        "%y = mul(%z, %r) : f32[N, 6, 4]",
        "%y",
    ]
    subject = module("float", *SQUARES, *text, inputs=X, tensors={"eps": torch.tensor(0.25)})
    run(Canonicalize(), subject)
    assert not any("layer_norm" in line for line in lines(subject))
