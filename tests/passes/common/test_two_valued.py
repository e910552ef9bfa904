"""Numbers that a mask chooses become the mask."""

from __future__ import annotations

import pytest
import torch

from qcompiler.passes import PassContext
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fold_constants import FoldConstants
from tests.support.golden import leaf, lines, module, run

INPUTS = "%x : f32[N, 4, 6]; %c : bool[N, 1, 6]; %i : i64[N, 1, 6]"
FAR = torch.tensor(torch.finfo(torch.float32).min)
NUMBERS = {"one": torch.tensor(1.0), "far": FAR, "zero": torch.tensor(0.0), "half": torch.tensor(0.5)}
LEAVES = [leaf(name, "f32", kind="constant").replace("(,)", "()") for name in NUMBERS]


def canonical(*text: str, ones: bool = True) -> list[str]:
    """The canonical lines of a graph, without leaves and types, for integers that are 0 and 1, or others."""
    subject = module("float", *LEAVES, *text, inputs=INPUTS, tensors=dict(NUMBERS))
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 1, 6, generator=generator) > 0.4
    integers = mask.long() if ones else mask.long() * 3
    context = PassContext(samples=[[torch.randn(2, 4, 6, generator=generator), mask, integers]])
    for item in (Canonicalize(), FoldConstants(), EliminateDeadCode()):
        run(item, subject, context)
    return [line.partition(" : ")[0] for line in lines(subject) if "= constant(" not in line]


CASES: dict[str, tuple[list[str], list[str]]] = {
    "numbers added before a softmax": (
        [
            '%f = convert(%i) {dtype = "f32"} : f32[N, 1, 6]',
            "%d = sub(%one, %f) : f32[N, 1, 6]",
            "%m = mul(%d, %far) : f32[N, 1, 6]",
            "%s = add(%x, %m) : f32[N, 4, 6]",
            "%y = softmax(%s) {axis = 2} : f32[N, 4, 6]",
            "%y",
        ],
        ['%f_1 = exact(%i, %f.zero) {compute = "not_equal"}', "%y_1 = softmax(%x, %f_1) {axis = 2}", "return %y_1"],
    ),
    "booleans of numbers": (
        [
            '%f = convert(%c) {dtype = "f32"} : f32[N, 1, 6]',
            "%d = sub(%one, %f) : f32[N, 1, 6]",
            '%b = convert(%d) {dtype = "bool"} : bool[N, 1, 6]',
            "%s = select(%b, %far, %d) : f32[N, 1, 6]",
            "%a = add(%x, %s) : f32[N, 4, 6]",
            "%y = softmax(%a) {axis = 2} : f32[N, 4, 6]",
            "%y",
        ],
        ["%y_1 = softmax(%x, %c) {axis = 2}", "return %y_1"],
    ),
    "a comparison": (
        [
            '%f = convert(%c) {dtype = "f32"} : f32[N, 1, 6]',
            '%b = compare(%f, %half) {compute = "less"} : bool[N, 1, 6]',
            "%b",
        ],
        ["%b_1 = not(%c)", "return %b_1"],
    ),
    "a filled softmax": (
        ["%s = select(%c, %far, %x) : f32[N, 4, 6]", "%y = softmax(%s) {axis = 2} : f32[N, 4, 6]", "%y"],
        ["%y_1 = not(%c)", "%y_2 = softmax(%x, %y_1) {axis = 2}", "return %y_2"],
    ),
    "a factor of data": (
        ['%f = convert(%c) {dtype = "f32"} : f32[N, 1, 6]', "%y = mul(%x, %f) : f32[N, 4, 6]", "%y"],
        ["%y_1 = masked(%x, %c)", "return %y_1"],
    ),
    "moved": (
        [
            '%f = convert(%c) {dtype = "f32"} : f32[N, 1, 6]',
            "%p = permute(%f) {axes = (0, 2, 1)} : f32[N, 6, 1]",
            '%b = convert(%p) {dtype = "bool"} : bool[N, 6, 1]',
            "%b",
        ],
        ["%p_1 = permute(%c) {axes = (0, 2, 1)}", "return %p_1"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_of_a_mask_become_the_mask(name: str) -> None:
    text, expected = CASES[name]
    found = canonical(*text)
    assert found == expected


def test_integers_other_than_0_and_1_are_no_mask() -> None:
    text, _ = CASES["numbers added before a softmax"]
    assert any("convert(%i)" in line for line in canonical(*text, ones=False))
