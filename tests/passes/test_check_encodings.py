"""Given encodings are checked against the graph before the rest is calibrated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.errors import EncodingsError, InputError, PassError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext
from qcompiler.passes.apply_encodings import ApplyEncodings
from qcompiler.passes.check_encodings import SHOWN, CheckEncodings
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.quant.encoding import Encoding, Encodings
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import PADDED, conv, leaf, lines, module, run

TEXT = [
    *conv("c", "%x", 4, "f32[N, 4, 6, 6]", PADDED)[:1],
    leaf("c.bias", "f32", 4),
    f"%c = conv2d(%x, %c.weight, %c.bias) {PADDED}: f32[N, 4, 6, 6]",
    "%g = sigmoid(%c) : f32[N, 4, 6, 6]",
    "%p = max_pool2d(%g) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
    "%p",
]


def grid(name: str, scale: float, zero_point: int = 128, bits: int = 8) -> Encoding:
    return Encoding(name, bits, (scale,), (zero_point,))


def bias(scale: float, zero_point: int = 2**31, bits: int = 32) -> Encoding:
    return Encoding("c.bias", bits, (scale,), (zero_point,), symmetric=True)


INPUT, WEIGHT, RESULT = grid("x", 0.5), grid("c.weight", 0.25), grid("c", 2.0, 100)


def placed(*given: Encoding, apply: bool = True) -> tuple[Module, PassContext]:
    """The graph before the check, on the given grids or, without applying them, on none."""
    subject = module("canonical", *TEXT)
    context = PassContext(load_target("int8_dsp"), encodings=Encodings(given, "1.0.0"))
    passes: list[Pass] = [InsertQuantizers(), *([ApplyEncodings()] if apply else []), FixRanges(), UnifyScales()]
    for item in passes:
        run(item, subject, context)
    return subject, context


def checked(*given: Encoding, data: bool = True, unmatched: str = "error", apply: bool = True) -> Record:
    subject, context = placed(*given, apply=apply)
    context.calibration_data = [[torch.randn(1, 4, 6, 6)]] if data else None
    return run(CheckEncodings(unmatched), subject, context)


def test_encodings_that_fit_are_counted_and_nothing_changes() -> None:
    subject, context = placed(INPUT, WEIGHT, RESULT, bias(0.125))
    before, text = dict(subject.tensors), lines(subject)
    record = run(CheckEncodings(), subject, context)
    assert record.metrics == {"given": 4, "calibrated": 0} and not record.events
    assert all(subject.tensors[name] is tensor for name, tensor in before.items())
    assert lines(subject) == text
    assert checked(INPUT, WEIGHT).metrics == {"given": 2, "calibrated": 1}


def test_names_that_match_nothing_are_refused_with_the_nearest() -> None:
    message = r"1 of 2 encodings match no tensor: 'c\.weigth' \(did you mean c\.weight.*Correct the names, or ignore"
    with pytest.raises(EncodingsError, match=message):
        checked(INPUT, grid("c.weigth", 0.25))
    record = checked(INPUT, grid("c.weigth", 0.25), unmatched="ignore")
    assert record.metrics == {"given": 1, "calibrated": 1, "unmatched": "c.weigth"}


def test_a_message_lists_some_names_and_counts_the_others() -> None:
    many = [grid(f"no{index:02}", 1.0) for index in range(SHOWN + 3)]
    with pytest.raises(EncodingsError) as caught:
        checked(*many)
    assert [f"'no{index:02}'" in str(caught.value) for index in range(SHOWN + 3)] == [True] * SHOWN + [False] * 3
    assert " and 3 more" in str(caught.value)


def test_without_data_every_activation_needs_an_encoding() -> None:
    with pytest.raises(
        EncodingsError, match=r"1 tensors have no encoding, and there is no calibration_data: x\.q;.*Pass"
    ):
        checked(RESULT, data=False)
    assert checked(INPUT, RESULT, data=False).metrics["calibrated"] == 0, "a weight has its range without data"


REFUSED: dict[str, tuple[list[Encoding], str]] = {
    "a grid that the target dictates": (
        [grid("g", 1 / 128, 0)],
        r"'g' has scale 0\.0078125 and zero point 0; expected scale 0\.00390625 and zero point 0, which int8_dsp fixes",
    ),
    "a bias of other bits": ([INPUT, WEIGHT, bias(0.125, 128, 8)], "has 8 bits and zero point 128; expected 32 signed bits"),
    "a bias with a zero point": ([INPUT, WEIGHT, bias(0.125, 2**31 + 1)], "32 bits and zero point 2147483649; expected 32"),
    "a bias on another grid": (
        [INPUT, WEIGHT, bias(0.25)],
        r"'c\.bias' has the scale 0\.25; expected 0\.125, the product .*Remove the encoding of the bias",
    ),
    "a bias before its input": ([WEIGHT, bias(0.125)], r"the bias 'c\.bias' has an encoding, but x\.q have none"),
    "a bias before both": ([bias(0.125)], r"but x\.q and c\.weight\.q have none; expected encodings of input and weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_encodings_that_the_graph_cannot_have_are_refused(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(EncodingsError, match=message):
        checked(*given)


@pytest.mark.parametrize("item", [INPUT, WEIGHT, RESULT], ids=lambda item: item.name)
def test_tensors_that_ended_on_another_grid_are_refused(item: Encoding) -> None:
    """Without the pass that applies them."""
    with pytest.raises(
        EncodingsError, match=rf"the encoding of '{item.name}' has scale {item.scale[0]} and zero point"
    ):
        checked(item, apply=False)
    checked(item)


@pytest.mark.parametrize("unmatched", ["", "warn", None])
def test_an_unknown_treatment_is_refused(unmatched: Any) -> None:
    with pytest.raises(InputError, match=rf"unmatched={unmatched!r}; expected error or ignore"):
        CheckEncodings(unmatched)


def test_what_it_needs_and_establishes() -> None:
    check_declared(CheckEncodings(), {Stage.QUANTIZED}, requires={"encodings", "fixed-ranges", "ties"})
    subject = module("quantized", "%x")
    with pytest.raises(PassError, match="check-encodings needs a target"):
        run(CheckEncodings(), subject)
    with pytest.raises(PassError, match="check-encodings needs encodings"):
        run(CheckEncodings(), subject, PassContext(load_target("int8_dsp")))
