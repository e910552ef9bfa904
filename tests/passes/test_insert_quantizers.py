"""Quantizers where the descriptor of the target asks for them."""

from __future__ import annotations

import pytest

from qcompiler.errors import UnsupportedError
from qcompiler.passes.insert_quantizers import InsertQuantizers
from tests.support.golden import PADDED, conv, quantized, shown


def test_insert_quantizers_follows_the_descriptor() -> None:
    text = [
        *conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        "%r = relu(%c) : f32[N, 8, 6, 6]",
        "%p = max_pool2d(%r) {kernel = (2, 2), stride = (2, 2)} : f32[N, 8, 3, 3]",
        "%s = add(%p, %p) : f32[N, 8, 3, 3]",
        "%s",
    ]
    subject, _, _ = quantized(*text, upto=InsertQuantizers)
    assert shown(subject) == [
        "%x.q = fake_quantize(%x, %x.scale, %x.zero_point)",
        "%c.weight.q = fake_quantize(%c.weight, %c.weight.scale, %c.weight.zero_point)",
        "%c = conv2d(%x.q, %c.weight.q)",
        "%r = relu(%c)",  # no quantizer in between: a supergroup
        "%r.q = fake_quantize(%r, %r.scale, %r.zero_point)",
        "%p = max_pool2d(%r.q)",  # moves codes: on the grid of its input
        "%s = add(%p, %p)",
        "%s.q = fake_quantize(%s, %s.scale, %s.zero_point)",
        "return %s.q",
    ]
    specs = [str(node.attributes["spec"]) for node in subject.main.nodes if node.op == "fake_quantize"]
    assert specs == ["s8", "s8 symmetric narrow", "s8", "s8"]


def test_insert_quantizers_refuses_what_the_target_lacks() -> None:
    text = [
        "%c = matmul(%x, %x) : f32[N, 4, 6, 6]",
        "%c",
    ]
    with pytest.raises(UnsupportedError, match=r"the target int8_dsp has no integer matmul.*add a rule"):
        quantized(*text, upto=InsertQuantizers)
