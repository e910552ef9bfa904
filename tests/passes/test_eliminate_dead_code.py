"""What nothing reads is removed: nodes, graphs and tensors."""

from __future__ import annotations

from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from tests.support.golden import PADDED, conv, lines, module, run


def test_eliminate_dead_code_removes_nodes_and_tensors() -> None:
    subject = module(
        "float", *conv("dead", "%x", 8, "f32[N, 8, 6, 6]", PADDED), "%r = relu(%x) : f32[N, 4, 6, 6]", "%r"
    )
    run(EliminateDeadCode(), subject)
    assert lines(subject) == ["%r = relu(%x) : f32[N, 4, 6, 6]", "return %r"]
    assert subject.tensors == {}
