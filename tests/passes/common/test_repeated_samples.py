"""Nodes read one sample in place of its repetition for the batch."""

from __future__ import annotations

import pytest

from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from tests.support.golden import computes_the_same, leaf, lines, module, run

POSITIONS = leaf("p", "f32", 1, 6, 4, kind="parameter")
REPEATED = '%e = expand(%p, %x) {shape = (dim"N", 6, 4)} : f32[N, 6, 4]'

CASES: dict[str, tuple[list[str], list[str]]] = {
    "a sum broadcasts": (
        ["%y = add(%x, %e) : f32[N, 6, 4]", "%y"],
        ["%y = add(%x, %p) : f32[N, 6, 4]", "return %y"],
    ),
    "a function is computed once": (
        ["%r = sigmoid(%e) : f32[N, 6, 4]", "%y = mul(%x, %r) : f32[N, 6, 4]", "%y"],
        ["%r_1 = sigmoid(%p) : f32[1, 6, 4]", "%y = mul(%x, %r_1) : f32[N, 6, 4]", "return %y"],
    ),
    "a concat needs all samples": (
        ["%y = concat(%x, %e) {axis = 1} : f32[N, 12, 4]", "%y"],
        [REPEATED, "%y = concat(%x, %e) {axis = 1} : f32[N, 12, 4]", "return %y"],
    ),
    "an output has all samples": (["%e"], [REPEATED, "return %e"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sample_is_read_where_it_broadcasts(name: str) -> None:
    text, expected = CASES[name]
    subject = module("float", POSITIONS, REPEATED, *text, inputs="%x : f32[N, 6, 4]")
    before = module("float", POSITIONS, REPEATED, *text, inputs="%x : f32[N, 6, 4]")
    run(Canonicalize(), subject)
    run(EliminateDeadCode(), subject)
    assert lines(subject) == expected
    computes_the_same(before, subject, 0.0)
