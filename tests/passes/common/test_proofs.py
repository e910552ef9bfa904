"""The proofs about a layer before it is lowered: one refusal for each proof, one step beyond the last valid case."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.types import DType, TensorType
from qcompiler.passes.common.proofs import Proofs
from qcompiler.quant.requant import Requantization, RequantMode, RequantSpec, prepare_requantization
from qcompiler.targets import load_target

BASE = load_target("int8_dsp").arithmetic


def node() -> Node:
    graph = Module().add(Graph())
    return graph.append("relu", [graph.add_input("x", TensorType(DType.F32, (1,)))])


def proofs(**changes: object) -> Proofs:
    return Proofs(node(), dataclasses.replace(BASE, special={}, **changes), "chip")  # type: ignore[arg-type]


def multiplier(real: float, spec: RequantSpec | RequantMode = RequantMode.SINGLE) -> Requantization:
    return prepare_requantization(torch.tensor(real, dtype=torch.float64), spec)


def layer(
    subject: Proofs, weights: list[int], bias: int, steps: tuple[int, int], zero_point: int = 0, real: float = 2.0**-8
) -> None:
    codes = torch.tensor([weights])
    item = multiplier(real, subject.arithmetic.requant)
    subject.layer(codes, torch.tensor([bias]), steps, zero_point, item)


@pytest.mark.parametrize("overflow", ["forbid", "wrap"])
def test_the_final_sum(overflow: str) -> None:
    """128 * 255 + 127 is the last of 16 bits, and what cancels does not count."""
    subject = proofs(accumulator_bits=16, overflow=overflow)
    layer(subject, [100, 28, -128], 127, (0, 255))
    with pytest.raises(UnsupportedError, match=r"can reach 32768 \(at %relu.*at most 32767.*16 bits.*fewer bits"):
        layer(subject, [100, 28, -128], 128, (0, 255))
    layer(subject, [-128], -128, (0, 255))
    with pytest.raises(UnsupportedError, match="can reach 32769"):
        layer(subject, [-128], -129, (0, 255))


def test_every_partial_sum_where_accumulators_saturate() -> None:
    """The products are added before or after the bias: each alone may be at an end."""
    layer(proofs(accumulator_bits=16, overflow="wrap"), [128], -20_000, (0, 255))
    subject = proofs(accumulator_bits=16, overflow="saturate")
    layer(subject, [128], -20_000, (0, 255))
    layer(proofs(accumulator_bits=16, overflow="wrap"), [200], -20_000, (0, 255))
    with pytest.raises(UnsupportedError, match="can reach 51000"):
        layer(subject, [200], -20_000, (0, 255))


def test_sums_of_codes_as_they_are() -> None:
    """With the zero point in the bias, sums begin far from where they end, where 0 is no code that is read."""
    changes = {"zero_point_folding": "compiler", "accumulator_bits": 16}
    layer(proofs(**{**changes, "overflow": "wrap"}), [1] * 1000, 0, (0, 27), 100)
    layer(proofs(overflow="forbid", accumulator_bits=16), [1] * 1000, 0, (0, 27), 100)
    with pytest.raises(UnsupportedError, match="can reach 100000"):
        layer(proofs(**{**changes, "overflow": "forbid"}), [1] * 1000, 0, (0, 27), 100)


def test_the_bias_with_the_zero_point_in_it() -> None:
    changes = {"zero_point_folding": "compiler", "bias_bits": 16, "accumulator_bits": 32}
    layer(proofs(**changes), [127, 129], -1, (0, 255), -128)
    with pytest.raises(UnsupportedError, match=r"a bias is 32768 including the zero point of the input.*16-bit biases"):
        layer(proofs(**changes), [127, 129], 0, (0, 255), -128)
    layer(proofs(**{**changes, "zero_point_folding": "hardware"}), [127, 129], 0, (0, 255), -128)


SHIFTS = {
    "to the left": (RequantSpec(RequantMode.SINGLE, max_left_shift=1), 1.9, 2.1, "left shift of 2 bits.* at most 1"),
    "to the right": (RequantSpec(RequantMode.NVDLA, max_right_shift=0), 0.6, 1.37 * 2.0**-9, "right shift of 8 bits.* at most 0"),
    "of an accumulator in 32 bits": (RequantSpec(RequantMode.DOUBLE), 0.9, 2.0**22, "shifted left by 23, exceeds 32 bits"),
    "by powers of two alone": (RequantSpec(RequantMode.POW2_SHIFT), 0.25, 2.0**47, "shifted left by 47, exceeds 63 bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHIFTS)
def test_shifts_that_the_hardware_does_not_have(case: str) -> None:
    spec, right, wrong, message = SHIFTS[case]
    subject = proofs(requant=spec)
    layer(subject, [128, 128], 0, (0, 255), real=right)
    with pytest.raises(UnsupportedError, match=message) as caught:
        layer(subject, [128, 128], 0, (0, 255), real=wrong)
    assert "bits for the input of this layer" in str(caught.value)


def test_a_multiplier_that_the_mode_has_not() -> None:
    subject = proofs(requant=RequantSpec(RequantMode.POW2_SHIFT))
    assert subject.prepared(torch.tensor(0.125)).exponent == torch.tensor(-3)
    with pytest.raises(UnsupportedError, match=r"the multiplier 0\.1.*power of two.*%relu|%relu.*power of two"):
        subject.prepared(torch.tensor(0.1, dtype=torch.float64))


def test_sums_of_the_same_step_and_numbers_of_32_bits() -> None:
    subject = proofs(accumulator_bits=24)
    subject.steps((-128, 127), 2**16)
    with pytest.raises(UnsupportedError, match="can reach 8388736"):
        subject.steps((-128, 127), 2**16 + 1)
    subject.bounded(2**23 - 1, multiplier(0.5), None)
    with pytest.raises(UnsupportedError, match="24 bits"):
        subject.bounded(2**23, multiplier(0.5))


def test_wide_accumulators_hold_what_modes_of_15_bits_take() -> None:
    subject = proofs(requant=RequantSpec(RequantMode.TOSA16), accumulator_bits=64)
    layer(subject, [2**15], 2**46, (0, 65535))
    with pytest.raises(UnsupportedError, match=r"requantization mode 'tosa16' accepts 48 bits"):
        layer(subject, [2**15], 2**47, (0, 65535))
