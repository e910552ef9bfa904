"""Quantizers of gradients come after sums of products."""

from __future__ import annotations

from typing import Any

import pytest

from qcompiler.errors import InputError, TargetError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.ir.verify import verify_module
from qcompiler.passes import PassContext
from qcompiler.passes.insert_gradient_quantizers import InsertGradientQuantizers
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import PADDED, computes_the_same, conv, lines, module, run, shown

TEXT = [
    *conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
    "%r = relu(%c) : f32[N, 8, 6, 6]",
    *conv("d", "%r", 4, "f32[N, 4, 6, 6]", PADDED, 8),
    "%d",
]


def quantized(target: str = "int8_dsp") -> Module:
    subject = module("canonical", *TEXT)
    run(InsertQuantizers(), subject, PassContext(load_target(target)))
    subject.main.stage = InsertQuantizers.becomes or subject.main.stage
    return subject


def inserted(target: str = "int8_dsp", bits: int | None = None, **overrides: Any) -> tuple[Module, Record]:
    subject = quantized(target)
    context = PassContext(load_target(target), overrides=overrides)
    return subject, run(InsertGradientQuantizers(bits), subject, context)


def test_the_quantizer_is_between_the_layer_and_its_activation() -> None:
    subject, record = inserted()
    assert shown(subject) == [
        "%x.q = fake_quantize(%x, %x.scale, %x.zero_point)",
        "%c.weight.q = fake_quantize(%c.weight, %c.weight.scale, %c.weight.zero_point)",
        "%c = conv2d(%x.q, %c.weight.q)",
        "%c.g = quantize_gradient(%c, %c.gradient.range)",
        "%r = relu(%c.g)",
        "%r.q = fake_quantize(%r, %r.scale, %r.zero_point)",
        "%d.weight.q = fake_quantize(%d.weight, %d.weight.scale, %d.weight.zero_point)",
        "%d = conv2d(%r.q, %d.weight.q)",
        "%d.g = quantize_gradient(%d, %d.gradient.range)",
        "%d.q = fake_quantize(%d.g, %d.scale, %d.zero_point)",
        "return %d.q",
    ]
    assert [event.code for event in record.events] == ["gradient-quantizer-inserted"] * 2
    verify_module(subject)
    assert '%c.g = quantize_gradient(%c, %c.gradient.range) {spec = spec"s8"} : f32[N, 8, 6, 6]' in lines(subject)


def test_a_scale_per_channel_needs_a_second_range() -> None:
    subject, record = inserted("int8_dsp_per_channel")
    assert "%c.g = quantize_gradient(%c, %c.gradient.range, %c.scaled_gradient.range)" in shown(subject)
    assert [event.code for event in record.events].count("second-gradient-quantizer") == 2


def test_widths_come_from_the_call_and_from_overrides() -> None:
    subject, record = inserted(bits=4, c={"gradient_bits": 16}, d={"gradient_bits": "float"})
    specs = {node.name: str(node.spec) for node in subject.main.nodes if node.op == "quantize_gradient"}
    assert specs == {"c.g": "s16"}
    assert record.events[-1].code == "float-gradient"
    assert {str(n.spec) for n in inserted(bits=4)[0].main.nodes if n.op == "quantize_gradient"} == {"s4"}


def test_the_graph_computes_the_same_and_the_pass_is_as_declared() -> None:
    before, after = quantized(), quantized()
    run(InsertGradientQuantizers(), after, PassContext(load_target("int8_dsp")))
    computes_the_same(before, after, rtol=0.0)
    check_declared(InsertGradientQuantizers(), {Stage.QUANTIZED}, requires={"quantizers"})


def test_refuses_widths_that_the_target_lacks() -> None:
    with pytest.raises(TargetError, match="no gradients of 9 bits"):
        inserted(bits=9)
    with pytest.raises(InputError, match="gradient_bits is 'none'"):
        inserted(c={"gradient_bits": "none"})
    with pytest.raises(InputError, match="weight_bits is 'float'"):
        inserted(c={"weight_bits": "float"})
