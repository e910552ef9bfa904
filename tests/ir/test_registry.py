"""Operands and attributes that an operator accepts, and attributes as plain values."""

from __future__ import annotations

import math
from enum import Enum, IntEnum

import numpy as np
import pytest
import sympy
import torch

from qcompiler.errors import GraphError, PluginError
from qcompiler.ir.attributes import plain
from qcompiler.ir.dims import symbol
from qcompiler.ir.registry import REQUIRED, OpDef, known_ops, op, register
from qcompiler.ir.types import DType, Stage
from qcompiler.quant.rounding import Rounding
from qcompiler.quant.spec import QuantSpec


class Text(str, Enum):  # noqa: UP042
    """An enumeration whose `str` is not its text."""

    LEFT = "left"


class Number(IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (DType.F32, "f32"),
        (Rounding.HALF_UP, "rhup"),
        (Text.LEFT, "left"),
        (Number.TWO, 2),
        (np.int64(-3), -3),
        (np.float32(0.5), 0.5),
        (sympy.Integer(4), 4),
        (symbol("N") * 0 + 2, 2),
        (True, True),
        (None, None),
        (-math.inf, -math.inf),
        (torch.Size([2, 3]), (2, 3)),
        ([1, Rounding.FLOOR], (1, "floor")),
    ],
)
def test_attributes_become_plain_values(given: object, expected: object) -> None:
    found = plain(given)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(found, tuple) and isinstance(expected, tuple):
        assert [type(item) for item in found] == [type(item) for item in expected]


def test_sizes_and_quantizers_stay_what_they_are() -> None:
    size, spec = 2 * symbol("N") + 1, QuantSpec(8, axis=0)
    assert plain(size) == size
    assert plain(spec) is spec


@pytest.mark.parametrize("value", [object(), {1: 2}, ((1,),), torch.ones(2), 1j])
def test_what_text_could_not_say_is_refused(value: object) -> None:
    with pytest.raises(GraphError, match="expected a number, string"):
        plain(value)


def definition(name: str, *operands: str) -> OpDef:
    return OpDef(
        name,
        operands,
        infer=lambda types, attributes: (types[0],),
        evaluate=lambda node, tensors: (tensors[0],),
        stages=frozenset(Stage),
        attributes={"mode": Rounding.FLOOR, "must": REQUIRED, "last": None},
    )


@pytest.mark.parametrize(
    ("operands", "accepted"),
    [((), {0}), (("x",), {1}), (("x", "bias?"), {1, 2}), (("x*",), {1, 2, 3}), (("x", "y*"), {2, 3})],
)
def test_numbers_of_operands(operands: tuple[str, ...], accepted: set[int]) -> None:
    counted = definition("counted", *operands)
    assert {count for count in range(4) if counted.accepts(count)} == accepted


def test_attributes_are_completed_in_the_order_of_the_declaration() -> None:
    completed = definition("completed").complete({"last": [1, 2], "must": 0})
    assert list(completed.items()) == [("mode", "floor"), ("must", 0), ("last", (1, 2))]
    assert type(completed["mode"]) is str, "defaults are plain too"
    with pytest.raises(GraphError, match=r"lacks the attribute 'must' .at %here."):
        definition("completed").complete({}, "%here")
    with pytest.raises(GraphError, match=r"no attribute 'lsat'.*expected one of mode, must, last"):
        definition("completed").complete({"lsat": 0})
    with pytest.raises(GraphError, match=r"completed has the attribute must = .*at %here"):
        definition("completed").complete({"must": object()}, "%here")


def test_a_name_is_taken_once() -> None:
    before = known_ops()
    with pytest.raises(PluginError, match=r"two operators have the name 'relu'.*test_registry"):
        register(definition("relu"))
    assert known_ops() == before
    assert op("relu") is before["relu"]
