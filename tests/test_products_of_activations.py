"""Products of two activations in every form, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import UnsupportedError
from qcompiler.program.roofline import estimate
from qcompiler.targets import load_target


class Scores(nn.Module):
    """Scores of two heads, and their products with the queries: [N, 9, 16] -> [N, 2, 9, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        query, key = (layer(x).reshape(x.shape[0], 9, 2, 8).transpose(1, 2) for layer in (self.query, self.key))
        result: Tensor = query @ key.transpose(-2, -1) @ query
        return result


def scores() -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = Scores().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model, torch.randn(4, 9, 16, generator=generator)


@pytest.mark.parametrize("target", ["ort_cpu", "int16x8", "pow2_mcu", "hexagon_htp_a16w8"])
def test_all_forms_agree_on_targets_of_each_arithmetic(target: str) -> None:
    model, x = scores()
    compiled = qcompiler.compile(model, target, calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    statuses = {form.name: form.status for form in compiled.verification.forms}
    assert {statuses[name] for name in ("integer graph", "integer program", "C")} == {"equal"}
    if target == "ort_cpu":
        assert set(statuses.values()) == {"equal"}
    work = estimate(compiled.artifact.program, load_target(target))
    products = [layer.macs for layer in work.layers if layer.op == "int_matmul"]
    assert products == [2 * 9 * 9 * 8] * 2


def test_the_second_operand_has_a_width_that_the_core_multiplies() -> None:
    model, x = scores()
    compiled = qcompiler.compile(model, "hexagon_htp_a16w8", calibration_data=[x], verify="off")
    tensors = compiled.artifact.program.program.tensors
    pairs = [
        tuple(tensors[name].dtype for name in item.inputs[:2])
        for item in compiled.artifact.program.program.instructions
        if item.op == "int_matmul"
    ]
    assert pairs == [("u16", "u8")] * 2


def test_sums_that_the_accumulator_cannot_hold_are_refused() -> None:
    model, x = scores()
    with pytest.raises(
        UnsupportedError, match=r"the accumulator can reach .*Scores\.forward.*has 32 bits.*one of the two operands"
    ):
        qcompiler.compile(model, load_target("int8_dsp").override(activation_bits=16), calibration_data=[x])


def test_training_ends_in_the_compiled_model() -> None:
    model, x = scores()
    module = qcompiler.prepare_qat(model, "int8_dsp", calibration_data=[x])
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    module.train()
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    module.eval()
    compiled = qcompiler.compile(module, verify="off")
    result = compiled.run(x)
    assert isinstance(result, Tensor) and torch.equal(result, module(x))
