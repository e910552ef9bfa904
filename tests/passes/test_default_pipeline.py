"""The passes in their default order, on real networks: contracts hold and the lowered codes are those simulated."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from examples.digits.data import load_data
from examples.digits.model import load_digits_net
from qcompiler import frontends
from qcompiler.errors import PassError, UnsupportedError
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes.base import PassContext
from qcompiler.passes.manager import PassManager
from qcompiler.session.pipeline import default_pipeline, quantization_passes
from qcompiler.targets import load_target, targets
from qcompiler.validation.exact import output_codes
from tests.support.running import outputs_of

TO_QUANTIZED = quantization_passes()
TO_INTEGER = default_pipeline()


def capture(model: nn.Module, x: Tensor) -> Module:
    return frontends.capture(model.eval(), x).module


def compiled(model: nn.Module, x: Tensor, target: str, calibration: list[list[Tensor]] | None) -> Module:
    module = capture(model, x)
    context = PassContext(load_target(target), samples=[[x]], calibration_data=calibration)
    PassManager(TO_INTEGER).run(module, context)
    return module


QUICK = (
    "cmsis_nn",
    "hexagon_htp_a16w4",
    "hexagon_htp_a16w8",
    "int16x8",
    "int8_dsp",
    "nvdla",
    "ort_cpu",
    "pow2_mcu",
    "w4a8_npu_blocks",
)
"""One for each way to requantize, and for each kind of grid."""
QUICK_WITHOUT_DATA = ("int8_dsp", "ort_cpu", "pow2_mcu")
"""Ranges without data depend on little of a target: whether grids are symmetric, and whether scales are powers of two."""


def test_every_way_to_requantize_is_among_the_quick() -> None:
    modes = {name: load_target(name).arithmetic.at("conv2d", 8).requant.mode for name in targets()}
    assert {modes[name] for name in QUICK} == {
        mode for name, mode in modes.items() if load_target(name).simulation is None
    }


@pytest.mark.parametrize(
    ("target", "with_data"),
    [
        pytest.param(name, with_data, marks=[] if name in quick else [pytest.mark.slow])
        for name in targets()
        if load_target(name).simulation is None
        for with_data, quick in ((True, QUICK), (False, QUICK_WITHOUT_DATA))
    ],
)
def test_digits_net_keeps_its_accuracy_in_integers(target: str, with_data: bool) -> None:
    data = load_data()
    model = load_digits_net()
    calibration = [[data.calibration_images]] if with_data else None
    module = compiled(model, data.calibration_images[:4], target, calibration)
    assert module.main.stage is Stage.INTEGER
    with torch.no_grad():
        float_right = (model(data.test_images).argmax(1) == data.test_labels).float().mean()
    right = (outputs_of(module.main, [data.test_images])[0].argmax(1) == data.test_labels).float().mean()
    assert float(right) >= float(float_right) - 0.005


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("mobilenet_v2", {"width_mult": 0.35}),
        pytest.param("mobilenet_v2", {}, marks=pytest.mark.slow),
        pytest.param("resnet18", {}, marks=pytest.mark.slow),
    ],
)
def test_lowered_codes_equal_the_exact_simulation(network: str, options: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, network)(**options)
    with torch.no_grad():  # settle the batch-norm statistics of the random weights
        model.train()(torch.randn(8, 3, 64, 64))
    x = torch.randn(2, 3, 32, 32)
    target = load_target("int8_dsp")
    context = PassContext(target, calibration_data=[[torch.randn(8, 3, 32, 32)]])
    simulated, lowered = capture(model, x), capture(model, x)
    PassManager(TO_QUANTIZED).run(simulated, context)
    PassManager(TO_INTEGER).run(lowered, context)
    for batch in (1, 7):
        inputs = [torch.randn(batch, 3, 32, 32)]
        expected = output_codes(simulated.main, inputs, target.arithmetic)[0]
        found = output_codes(lowered.main, inputs, target.arithmetic)[0]
        assert expected.unique().numel() > 10, "a constant output would prove nothing"
        assert int((expected != found).sum()) == 0


def test_refuses_an_op_that_the_target_lacks_with_its_place() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, x * 0.5)

    x = torch.randn(2, 2, 5, 5)
    with pytest.raises(UnsupportedError, match=r"int8_dsp has no integer compare.*Model\.forward"):
        compiled(Model(), x, "int8_dsp", [[x]])


class Unbounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.front(x)
        return torch.reciprocal(y) + torch.reciprocal(y + 0.5)


def test_data_free_calibration_names_all_functions_after_which_no_range_is_known() -> None:
    with pytest.raises(
        PassError, match=r"these 2: reciprocal has .*Unbounded.forward.*; reciprocal has .*Pass calibration_data"
    ):
        compiled(Unbounded(), torch.rand(2, 4) + 1.0, "int8_dsp", None)
