"""Bias correction: the means of the float model come back, from data and from batch norms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qcompiler import frontends
from qcompiler.errors import InputError, PassError
from qcompiler.ir.graph import Module, Value
from qcompiler.ir.interpret import evaluate_node
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.targets import load_target
from tests.support.equalized import FRONT, QUANTIZED, depthwise, image, run_alike
from tests.support.running import outputs_of


def test_means_on_the_calibration_batch_are_those_of_the_float_model() -> None:
    """White paper, 3.3: the invariant of the empirical correction, with 3-bit weights."""
    net, x = depthwise(), torch.randn(32, 3, 8, 8)
    means: list[Tensor] = []
    for passes in ([], [CorrectBias(method="empirical")]):
        module = frontends.capture(net.eval(), x).module
        context = PassContext(load_target("int8_dsp").override(weight_bits=3), [[x[:4]]], [[x[:16]], [x[16:]]])
        PassManager([*FRONT, *QUANTIZED, *passes]).run(module, context)
        last = next(node for node in module.main.nodes if node.name == "c4")
        seen: dict[str, Tensor] = {}
        with torch.no_grad():
            outputs_of(module.main, [x], _recorder(seen))
        means.append(seen[last.name].mean((0, 2, 3)))
    expected = torch.zeros(())
    with torch.no_grad():
        y = x
        for index in range(5):
            y = getattr(net, f"n{index}")(getattr(net, f"c{index}")(y))
            expected = y.mean((0, 2, 3))
            y = torch.relu(y)
    assert float((means[0] - expected).abs().max()) > 0.05
    torch.testing.assert_close(means[1], expected, rtol=0, atol=1e-4)


def _recorder(seen: dict[str, Tensor]) -> Callable[[Value, Tensor], None]:
    return lambda value, tensor: seen.update({value.name: tensor})


def test_the_analytic_correction_is_the_mean_of_the_error_of_the_weights() -> None:
    """(W^ - W) E[x] with E[x] from batch norms, against the mean measured on many inputs of the float model."""
    net, x = depthwise(), torch.randn(256, 3, 8, 8)
    found: dict[str, dict[str, Tensor]] = {}
    module = Module()
    for passes in ([], [CorrectBias(method="analytic")]):
        module = frontends.capture(net.eval(), x).module
        context = PassContext(load_target("int8_dsp").override(weight_bits=4), [[x[:4]]], None)
        PassManager([*FRONT, *QUANTIZED, *passes]).run(module, context)
        found[str(len(passes))] = {name: t for name, t in module.tensors.items() if name.endswith("bias")}
    plain = frontends.capture(net.eval(), x).module
    PassManager(FRONT).run(plain, PassContext(samples=[[x[:4]]]))
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        outputs_of(plain.main, [x], _recorder(seen))
    quantized = {node.name: node for node in module.main.nodes if node.op == "fake_quantize"}
    for name in ("c2", "c4"):  # without padding, where the analytic form is complete
        layer = next(node for node in plain.main.nodes if node.name == name)
        weight = plain.tensors[f"{name}.weight"]
        quantizer = quantized[f"{name}.weight.q"]
        operands = [weight, *(leaf_tensor(value) for value in quantizer.inputs[1:])]
        error = evaluate_node(quantizer, operands)[0] - weight
        wanted = functional.conv2d(seen[layer.inputs[0].name], error).mean((0, 2, 3))
        shift = found["0"][f"{name}.bias"] - found["1"][f"{name}.bias"]
        assert float((shift - wanted).norm()) < 0.3 * float(wanted.norm()), (
            "what is left of it; inputs are not quite normal"
        )


def test_options_and_missing_data_of_the_correction_are_refused() -> None:
    with pytest.raises(InputError, match="method='guess'"):
        CorrectBias(method="guess")
    with pytest.raises(InputError, match="images=0"):
        CorrectBias(images=0)
    with pytest.raises(PassError, match="empirical bias correction needs"):
        run_alike(depthwise(), [*QUANTIZED, CorrectBias(method="empirical")], image(), calibrate=False)
