"""Activations become code limits of the quantizers after them."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import CalibrationError
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes.fuse_requantization import FuseRequantization
from tests.support.declared import check_declared
from tests.support.golden import PADDED, computes_the_same, conv, leaf, lines, module, quantized, refusals, run

GRID = [leaf("s", "f32"), leaf("z", "i32", kind="state")]
LIMITS = [leaf("low", "f32", 4), leaf("high", "f32", 4)]
TENSORS = {
    "s": torch.tensor(0.5),
    "z": torch.tensor(-28, dtype=torch.int32),
    "low": torch.tensor([-1.0, 0.0, 1.0, -2.0]),
    "high": torch.tensor([2.0, 1.0, 3.0, 0.5]),
}
SHAPE = "f32[N, 4, 6, 6]"


def quantizer(source: str, limits: str = "") -> str:
    return f'%q = fake_quantize({source}, %s, %z) {{spec = spec"s8"{limits}}} : {SHAPE}'


def built(*text: str) -> Module:
    """A graph on a grid of steps of a half around the code -28."""
    return module("quantized", *GRID, *text, tensors=TENSORS)


FUSED: dict[str, tuple[str, str, str]] = {
    "relu": ("relu(%x) :", "", ", qmin = -28"),
    "relu6": ("clamp(%x) {min = 0.0, max = 6.0} :", "", ", qmin = -28, qmax = -16"),
    "ends between two codes": ("clamp(%x) {min = -0.7, max = 6.3} :", "", ", qmin = -29, qmax = -15"),
    "ends beyond the grid": ("clamp(%x) {min = -99.0, max = 99.0} :", "", ""),
    "limits that are there already": (
        "clamp(%x) {min = 0.0, max = 6.0} :",
        ", qmin = -20, qmax = 5",
        ", qmin = -20, qmax = -16",
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_an_activation_becomes_limits_of_codes(case: str) -> None:
    activation, before, after = FUSED[case]
    text = [f"%r = {activation} {SHAPE}", quantizer("%r", before), "%q"]
    subject = built(*text)
    record = run(FuseRequantization(), subject)
    node = next(node for node in subject.main.nodes if node.inputs)
    low, high = node.attributes["qmin"], node.attributes["qmax"]
    assert [line.partition(" {")[0] for line in lines(subject)] == ["%q = fake_quantize(%x, %s, %z)", "return %q"]
    expected = built(quantizer("%x", after), "%q")
    wanted = next(node for node in expected.main.nodes if node.inputs)
    spec = wanted.spec
    limits = [wanted.attributes[key] for key in ("qmin", "qmax")]
    assert [low, high] == [
        end if limit is None else limit for limit, end in zip(limits, (spec.qmin, spec.qmax), strict=True)
    ]
    assert [(event.kind, event.node, event.detail) for event in record.events] == [
        ("rewrite", "q", f"includes r: codes {low} to {high}")
    ]
    computes_the_same(built(*text), subject, rtol=0.0)


def test_fuse_requantization_makes_code_limits_of_activations() -> None:
    text = [*conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED), "%r = relu(%c) : f32[N, 8, 6, 6]", "%r"]
    subject, _, _ = quantized(*text, upto=FuseRequantization)
    assert "relu" not in {node.op for node in subject.main.nodes}
    quantizer = next(node for node in subject.main.nodes if node.name == "r.q")
    zero_point = int(subject.tensors["r.zero_point"])
    assert (quantizer.attributes["qmin"], quantizer.attributes["qmax"]) == (zero_point, 127)


REFUSED: dict[str, list[str]] = {
    "an output": [f"%r = relu(%x) : {SHAPE}", quantizer("%r"), "%q, %r"],
    "two readers": [
        f"%r = relu(%x) : {SHAPE}",
        quantizer("%r"),
        f'%p = fake_quantize(%r, %s, %z) {{spec = spec"s8"}} : {SHAPE}',
        "%q, %p",
    ],
    "a reader that is no quantizer": [f"%r = relu(%x) : {SHAPE}", f"%e = exp(%r) : {SHAPE}", quantizer("%e"), "%q"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_activation_that_others_read_is_refused(case: str) -> None:
    subject = built(*REFUSED[case])
    before = lines(subject)
    record = run(FuseRequantization(), subject)
    assert refusals(record) == ["its result has users other than one quantizer"]
    assert [event.node for event in record.events] == ["r"]
    assert lines(subject) == before


def test_an_activation_merges_with_the_limits_per_channel_after_it() -> None:
    text = [
        *LIMITS,
        f"%r = relu(%x) : {SHAPE}",
        f"%c = clamp_channels(%r, %low, %high) {{axis = 1}} : {SHAPE}",
        quantizer("%c"),
        "%q",
    ]
    subject = built(*text)
    record = run(FuseRequantization(), subject)
    assert [node.op for node in subject.main.nodes if node.inputs] == ["clamp_channels", "fake_quantize"]
    assert [(event.kind, event.detail) for event in record.events] == [("rewrite", "includes r")]
    computes_the_same(built(*text), subject, rtol=0.0)


def test_a_quantizer_without_a_range_is_refused_with_its_place() -> None:
    subject = module(
        "quantized",
        *GRID,
        f"%r = relu(%x) : {SHAPE}",
        quantizer("%r"),
        "%q",
        tensors={**TENSORS, "s": torch.tensor(torch.nan)},
    )
    with pytest.raises(CalibrationError, match=r"the quantizer has no range yet \(at %q.*Calibrate first"):
        run(FuseRequantization(), subject)


def test_what_it_needs_and_establishes() -> None:
    check_declared(
        FuseRequantization(),
        {Stage.QUANTIZED},
        requires={"weight-ranges", "activation-ranges"},
        establishes={"requantization-fused"},
    )
