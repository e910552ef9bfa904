"""Activations become code limits of the quantizers after them."""

from __future__ import annotations

from qcompiler.passes.fuse_requantization import FuseRequantization
from tests.support.golden import PADDED, conv, quantized


def test_fuse_requantization_makes_code_limits_of_activations() -> None:
    text = [*conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED), "%r = relu(%c) : f32[N, 8, 6, 6]", "%r"]
    subject, _, _ = quantized(*text, upto=FuseRequantization)
    assert "relu" not in {node.op for node in subject.main.nodes}
    quantizer = next(node for node in subject.main.nodes if node.name == "r.q")
    zero_point = int(subject.tensors["r.zero_point"])
    assert (quantizer.attributes["qmin"], quantizer.attributes["qmax"]) == (zero_point, 127)
