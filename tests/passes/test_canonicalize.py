"""One spelling for each computation: what each rule makes of a small graph, and what it leaves alone."""

from __future__ import annotations

import pytest

from qcompiler.passes.canonicalize import Canonicalize
from tests.support.golden import computes_the_same, conv, leaf, lines, module, run

CANONICAL: dict[str, tuple[list[str], list[str]]] = {
    "identity and dropout": (
        ["%a = identity(%x) : f32[N, 4, 6, 6]", "%b = dropout(%a) {p = 0.5} : f32[N, 4, 6, 6]", "%b"],
        ["return %x"],
    ),
    "reshape of a reshape": (
        [
            '%a = reshape(%x) {shape = (dim"N", 24, 6)} : f32[N, 24, 6]',
            '%b = reshape(%a) {shape = (dim"N", 144)} : f32[N, 144]',
            "%b",
        ],
        ['%b = reshape(%x) {shape = (dim"N", 144)} : f32[N, 144]', "return %b"],
    ),
    "permutations that cancel": (
        [
            "%a = permute(%x) {axes = (0, 2, 3, 1)} : f32[N, 6, 6, 4]",
            "%b = permute(%a) {axes = (0, 3, 1, 2)} : f32[N, 4, 6, 6]",
            "%b",
        ],
        ["return %x"],
    ),
    "a product with a matrix": (
        [leaf("w", "f32", 6, 8), "%a = matmul(%x, %w) : f32[N, 4, 6, 8]", "%a"],
        ["%a_1 = linear(%x, %w_1) : f32[N, 4, 6, 8]", "return %a_1"],
    ),
    "a product with a matrix that is turned": (
        [
            leaf("w", "f32", 8, 6),
            "%t = permute(%w) {axes = (1, 0)} : f32[6, 8]",
            "%a = matmul(%x, %t) : f32[N, 4, 6, 8]",
            "%a",
        ],
        ["%a_1 = linear(%x, %w) : f32[N, 4, 6, 8]", "return %a_1"],
    ),
    "a matrix times a value": (
        [leaf("w", "f32", 8, 6), "%a = matmul(%w, %x) : f32[N, 4, 8, 6]", "%a"],
        [
            "%a_1 = permute(%x) {axes = (0, 1, 3, 2)} : f32[N, 4, 6, 6]",
            "%a_2 = linear(%a_1, %w) : f32[N, 4, 6, 8]",
            "%a_3 = permute(%a_2) {axes = (0, 1, 3, 2)} : f32[N, 4, 8, 6]",
            "return %a_3",
        ],
    ),
    "adaptive pooling to one": (
        ["%a = adaptive_avg_pool2d(%x) {output_size = (1, 1)} : f32[N, 4, 1, 1]", "%a"],
        ["%a_1 = mean(%x) {axes = (2, 3), keepdim = true} : f32[N, 4, 1, 1]", "return %a_1"],
    ),
    "adaptive pooling that divides": (
        ["%a = adaptive_avg_pool2d(%x) {output_size = (3, 2)} : f32[N, 4, 3, 2]", "%a"],
        ["%a_1 = avg_pool2d(%x) {kernel = (2, 3), stride = (2, 3)} : f32[N, 4, 3, 2]", "return %a_1"],
    ),
    "zero padding in front of a convolution": (
        [
            "%a = pad(%x) {pad = (0, 0, 1, 2, 0, 0, 0, 1)} : f32[N, 4, 7, 9]",
            *conv("c", "%a", 8, "f32[N, 8, 5, 7]", "{stride = (1, 1), padding = (0, 0, 0, 0), dilation = (1, 1)} "),
            "%c",
        ],
        [
            "%c = conv2d(%x, %c.weight) {padding = (1, 2, 0, 1)} : f32[N, 8, 5, 7]",
            "return %c",
        ],
    ),
    "clamps that are something else": (
        [
            "%a = clamp(%x) {min = 0.0} : f32[N, 4, 6, 6]",
            "%b = clamp(%a) : f32[N, 4, 6, 6]",
            "%c = clamp(%b) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]",
            "%c",
        ],
        [
            "%a_1 = relu(%x) : f32[N, 4, 6, 6]",
            "%c = clamp(%a_1) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]",
            "return %c",
        ],
    ),
    "division by a constant": (
        [leaf("k", "f32", 4, 1, 1, kind="constant"), "%a = div(%x, %k) : f32[N, 4, 6, 6]", "%a"],
        ["%a_1 = mul(%x, %k) : f32[N, 4, 6, 6]", "return %a_1"],
    ),
}


@pytest.mark.parametrize("case", CANONICAL)
def test_canonicalize(case: str) -> None:
    before, after = CANONICAL[case]
    subject = module("float", *before)
    run(Canonicalize(), subject)
    assert lines(subject) == after
    computes_the_same(module("float", *before), subject, rtol=1e-6)


def test_windows_of_different_sizes_stay_as_they_are() -> None:
    line = "%a = adaptive_avg_pool2d(%x) {output_size = (4, 4)} : f32[N, 4, 4, 4]"
    subject = module("float", line, "%a")
    run(Canonicalize(), subject)
    assert lines(subject) == [line, "return %a"]


def test_dropout_that_drops_stays() -> None:
    subject = module("float", "%b = dropout(%x) {p = 0.5, training = true} : f32[N, 4, 6, 6]", "%b")
    run(Canonicalize(), subject)
    assert lines(subject)[0].startswith("%b = dropout(%x)")
