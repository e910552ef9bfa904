"""Constants next to a product of two activations change a scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.passes import PassContext
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.targets import load_target
from tests.support.golden import leaf, lines, module, run

C = leaf("c", "f32", kind="constant").replace("(,)", "()")
CASES: dict[str, tuple[list[str], list[str]]] = {
    "after the product": (
        ["%p = matmul(%x, %x) : f32[N, 4, 6, 6]", "%y = mul(%p, %c) : f32[N, 4, 6, 6]", "%y"],
        ["%p = matmul(%x, %x) {factor = 0.5} : f32[N, 4, 6, 6]", "return %p"],
    ),
    "before it": (
        [
            "%e = exp(%x) : f32[N, 4, 6, 6]",
            "%s = mul(%e, %c) : f32[N, 4, 6, 6]",
            "%t = permute(%s) {axes = (0, 1, 3, 2)} : f32[N, 4, 6, 6]",
            "%y = matmul(%x, %t) : f32[N, 4, 6, 6]",
            "%y",
        ],
        [
            "%e = exp(%x) : f32[N, 4, 6, 6]",
            "%t = permute(%e) {axes = (0, 1, 3, 2)} : f32[N, 4, 6, 6]",
            "%y = matmul(%x, %t) {factor = 0.5} : f32[N, 4, 6, 6]",
            "return %y",
        ],
    ),
    "with another reader": (
        [
            "%s = mul(%x, %c) : f32[N, 4, 6, 6]",
            "%p = matmul(%x, %s) : f32[N, 4, 6, 6]",
            "%y = add(%p, %s) : f32[N, 4, 6, 6]",
            "%y",
        ],
        [
            "%s = mul(%x, %c) : f32[N, 4, 6, 6]",
            "%p = matmul(%x, %s) : f32[N, 4, 6, 6]",
            "%y = add(%p, %s) : f32[N, 4, 6, 6]",
            "return %y",
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_product_takes_a_positive_constant(name: str) -> None:
    text, expected = CASES[name]
    subject = module("float", C, *text, tensors={"c": torch.tensor(0.5)})
    run(Canonicalize(), subject, PassContext(target=load_target("int8_dsp")))
    assert lines(subject) == expected


def test_targets_that_only_shift_multiply() -> None:
    text, _ = CASES["after the product"]
    subject = module("float", C, *text, tensors={"c": torch.tensor(0.5)})
    run(Canonicalize(), subject, PassContext(target=load_target("pow2_mcu")))
    assert any("mul(" in line for line in lines(subject))


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 0.3) @ x.transpose(1, 2) / 1.7


@pytest.mark.parametrize("target", ["int8_dsp", "ort_cpu", "hexagon_htp_a16w8"])
def test_the_factor_is_in_the_multiplier_of_every_form(target: str) -> None:
    x = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))
    compiled = qcompiler.compile(Scaled().eval(), target, calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    assert "int_mul" not in {item.op for item in compiled.artifact.program.program.instructions}
    result, expected = compiled.run(x), Scaled()(x)
    assert isinstance(result, Tensor)
    assert float((result - expected).abs().max()) < 0.02 * float(expected.abs().max())
