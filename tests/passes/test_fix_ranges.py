"""Grids that the hardware fixes are given to their quantizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.errors import PassError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import lines, module, refusals, run

TEXT = [
    "%g = sigmoid(%x) : f32[N, 4, 6, 6]",
    "%t = tanh(%g) : f32[N, 4, 6, 6]",
    "%p = max_pool2d(%t) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
    "%p",
]


def fixed(target: str, **overrides: Any) -> tuple[Module, Record]:
    subject = module("canonical", *TEXT)
    context = PassContext(load_target(target), overrides=overrides)
    run(InsertQuantizers(), subject, context)
    before = lines(subject)
    record = run(FixRanges(), subject, context)
    assert lines(subject) == before, "tensors are written, and no node changes"
    return subject, record


GIVEN: dict[str, dict[str, tuple[float, int]]] = {
    "int8_dsp": {"g": (1 / 256, -128)},
    "tflite_int8": {"g": (1 / 256, -128), "t": (1 / 128, 0)},
    "hexagon_htp_a16w8": {"g": (2.0**-16, 0), "t": (2.0**-15, 32768)},
}


@pytest.mark.parametrize("target", GIVEN)
def test_a_function_on_a_fixed_grid(target: str) -> None:
    subject, record = fixed(target)
    for name in ("x", "g", "t"):
        scale, zero_point = subject.tensors[f"{name}.scale"], subject.tensors[f"{name}.zero_point"]
        assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
        if name in GIVEN[target]:
            assert (float(scale), int(zero_point)) == GIVEN[target][name]
        else:
            assert bool(scale.isnan()), "calibration finds the range"
    assert [(event.kind, event.node, event.detail) for event in record.events] == [
        ("rewrite", f"{name}.q", f"a grid fixed by {target}: scale {scale}, zero point {zero}")
        for name, (scale, zero) in GIVEN[target].items()
    ]


def test_a_grid_for_another_width_is_refused() -> None:
    subject, record = fixed("int8_dsp", g={"activation_bits": 16})
    assert refusals(record) == ["the grid fixed by int8_dsp is for 8 bits, not 16"]
    assert [event.node for event in record.events] == ["g.q"]
    assert bool(subject.tensors["g.scale"].isnan())


def test_results_stay_within_half_a_step() -> None:
    subject = module("canonical", TEXT[0], "%g")
    context = PassContext(load_target("int8_dsp"), samples=[[torch.randn(2, 4, 6, 6)]])
    (_, record) = PassManager([InsertQuantizers(), FixRanges()], {"partitioned"}).run(subject, context)
    assert record.metrics["sqnr_db"] > 40  # type: ignore[operator]  # a number: the contract is lossy


def test_what_it_needs_and_establishes() -> None:
    check_declared(FixRanges(), {Stage.QUANTIZED}, requires={"quantizers"}, establishes={"fixed-ranges"})
    with pytest.raises(PassError, match="fix-ranges needs a target"):
        run(FixRanges(), module("quantized", "%x"))
