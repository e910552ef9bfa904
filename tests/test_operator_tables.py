"""No operator lacks a rule that another part of the compiler has."""

from __future__ import annotations

import pytest

from qcompiler.backends.onnx_qdq.rules import RULES as ONNX
from qcompiler.ir.registry import Trait, known_ops, op
from qcompiler.ir.types import Stage
from qcompiler.ops.kinds import integer_kinds
from qcompiler.passes.lower_to_integer.rules import KEEPS, LOWERS
from qcompiler.program.kernels import KERNELS
from qcompiler.validation.exact.rules import RULES as EXACT

NOT_WRITTEN = {"expand_blocks": "the instruction that reads a weight multiplies the factors of its blocks"}
"""Integer operators that are no instruction."""


@pytest.mark.parametrize("name", integer_kinds())
def test_what_may_be_integer_is_lowered_and_evaluated_exactly(name: str) -> None:
    definition = op(name)
    if definition.has(Trait.EXACT):  # the same operator at every stage
        assert definition.stages == {*Stage}
        return
    assert EXACT.find(definition) is not None
    assert LOWERS.find(definition) is not None or KEEPS.find(definition) is not None


def test_every_integer_operator_is_an_instruction_and_has_onnx() -> None:
    integer = {name for name, item in known_ops().items() if item.stages == {Stage.INTEGER}}
    assert integer - {*NOT_WRITTEN} <= {*KERNELS}
    assert {*ONNX} == {*KERNELS, "call"}
