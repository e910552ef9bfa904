"""The rules of all families stand in one table, and only quantizers read real numbers."""

from __future__ import annotations

from qcompiler.ir.registry import op
from qcompiler.validation.exact import (
    averages,
    elementwise,
    mac,
    movement,
    normalization,
    places,
    quantizers,
    softmax,
    tables,
)
from qcompiler.validation.exact.rules import QUANTIZERS, RULES

FAMILIES = (averages, elementwise, mac, movement, normalization, places, quantizers, softmax, tables)


def test_every_family_is_in_the_table() -> None:
    assert dict(RULES) == {key: rule for family in FAMILIES for key, rule in family.exact.items()}


def test_quantizers_alone_read_real_numbers() -> None:
    assert {*QUANTIZERS} == {"fake_quantize", "fake_quantize_bias"}


def test_a_rule_is_found_by_name_before_trait() -> None:
    assert RULES.find(op("conv2d")) is mac.mac
    assert RULES.find(op("permute")) is movement.movement
    assert RULES.find(op("pad")) is movement.pad
    assert RULES.find(op("tanh")) is tables.table
    assert RULES.find(op("prelu")) is tables.prelu
    assert RULES.find(op("custom")) is None
