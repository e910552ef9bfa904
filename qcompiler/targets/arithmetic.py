"""The integer arithmetic that a descriptor describes."""

from __future__ import annotations

import dataclasses

from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.targets.descriptor import Descriptor
from qcompiler.targets.schema import Combination, Multiplier, NumberType, OpRule


def arithmetic_of(descriptor: Descriptor) -> Arithmetic:
    """The arithmetic of a target, with exceptions for single operators and activation widths."""
    base = Arithmetic(
        requant=descriptor.requantize.spec(),
        bias_rounding=descriptor.rounding.bias,
        table_rounding=descriptor.rounding.table,
        average_rounding=descriptor.rounding.average,
        divides_multipliers=descriptor.rounding.mean_multiplier == "divided",
        accumulator_bits=descriptor.accumulator.bits,
        overflow=descriptor.accumulator.overflow,
        add_shift=descriptor.elementwise.add_shift,
        elementwise=descriptor.elementwise.mode,
        bias_bits=descriptor.bias.bits,
        zero_point_folding=descriptor.bias.zero_point_folding,
        table_precision=descriptor.table.precision,
        softmax=descriptor.softmax.mode,
        wide_softmax=descriptor.softmax.wide_mode,
    )
    special: dict[tuple[str, int], Arithmetic] = {}
    for rule in descriptor.op:
        for bits in (8, 16):
            pair = next((p for p in rule.combinations if bits in _storages(descriptor.dtypes[p.activation])), None)
            found = _special(base, rule, pair)
            if found != base:
                special.update({(name, bits): found for name in rule.names})
    return dataclasses.replace(base, special=special)


def _storages(number: NumberType) -> set[int]:
    """Storage widths of activation codes in bits: a number type may have narrow and wide codes."""
    return {16 if width > 8 else 8 for width in number.widths}


def _special(base: Arithmetic, rule: OpRule, pair: Combination | None) -> Arithmetic:
    """The arithmetic of a rule for one width of activations."""
    requantize: Multiplier | None = rule.requantize
    if pair is not None and pair.requantize is not None:
        requantize = pair.requantize
    if requantize is not None:
        base = dataclasses.replace(base, requant=requantize.spec())
    if pair is not None and pair.accumulator is not None:
        base = dataclasses.replace(base, accumulator_bits=pair.accumulator.bits, overflow=pair.accumulator.overflow)
    if pair is not None and pair.bias is not None:
        bias = pair.bias
        base = dataclasses.replace(base, bias_bits=bias.bits, zero_point_folding=bias.zero_point_folding)
    return base
