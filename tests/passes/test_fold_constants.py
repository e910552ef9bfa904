"""Results that depend on constants alone are computed at compile time."""

from __future__ import annotations

import torch

from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fold_constants import FoldConstants
from tests.support.golden import leaf, lines, module, run


def test_fold_constants_computes_what_it_may() -> None:
    text = [
        leaf("a", "f32", 4, 1, 1, kind="constant"),
        leaf("b", "f32", 4, 1, 1, kind="constant"),
        "%s = add(%a, %b) : f32[4, 1, 1]",
        "%y = mul(%x, %s) : f32[N, 4, 6, 6]",
        "%y",
    ]
    subject = module("canonical", *text)
    expected = subject.tensors["a"] + subject.tensors["b"]
    run(FoldConstants(), subject)
    run(EliminateDeadCode(), subject)
    assert [line.partition(" : ")[0] for line in lines(subject)] == ["%y = mul(%x, %s_1)", "return %y"]
    assert torch.equal(next(iter(subject.tensors.values())), expected)
