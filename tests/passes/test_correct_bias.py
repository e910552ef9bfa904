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
from qcompiler.ir.types import Stage
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.equalized import FRONT, QUANTIZED, depthwise, image, run_alike
from tests.support.golden import leaf, module, refusals, run
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
            "the remaining shift; inputs are not quite normal"
        )


def test_options_and_missing_data_of_the_correction_are_refused() -> None:
    with pytest.raises(InputError, match="method='guess'"):
        CorrectBias(method="guess")
    with pytest.raises(InputError, match="images=0"):
        CorrectBias(images=0)
    with pytest.raises(PassError, match="empirical bias correction needs"):
        run_alike(depthwise(), [*QUANTIZED, CorrectBias(method="empirical")], image(), calibrate=False)


LINEAR = [
    *[leaf("ws", "f32"), leaf("wz", "i32", kind="state"), leaf("w", "f32", 1, 2), leaf("b", "f32", 1)],
    '%wq = fake_quantize(%w, %ws, %wz) {spec = spec"s8 symmetric narrow"} : f32[1, 2]',
    "%y = linear(%x, %wq, %b) : f32[N, 1]",
]
NUMBERS = {
    "ws": torch.tensor(1.0),
    "wz": torch.tensor(0, dtype=torch.int32),
    "w": torch.tensor([[1.25, 2.0]]),  # rounded to 1 and 2: a quarter of the first input is lost
    "b": torch.tensor([0.0]),
}


def linear(*text: str, **tensors: Tensor) -> Module:
    return module("quantized", *(text or (*LINEAR, "%y")), inputs="%x : f32[N, 2]", tensors={**NUMBERS, **tensors})


@pytest.mark.parametrize("method", ["auto", "empirical"])
def test_the_mean_that_is_lost_on_data_comes_back(method: str) -> None:
    subject = linear()
    data = [[torch.tensor([[4.0, 1.0], [8.0, 3.0]])], [torch.tensor([[0.0, -1.0]])]]
    record = run(CorrectBias(method=method), subject, PassContext(calibration_data=data))
    assert float(subject.tensors["b"]) == pytest.approx(0.25 * 4.0)
    assert [(event.kind, event.node, event.detail) for event in record.events] == [
        ("rewrite", "y", "its weights moved the mean by up to 1")
    ]
    assert torch.equal(subject.tensors["w"], NUMBERS["w"])


@pytest.mark.parametrize("method", ["auto", "analytic"])
def test_the_mean_that_is_lost_on_the_assumed_inputs_comes_back(method: str) -> None:
    subject = linear()
    run(CorrectBias(method=method), subject, PassContext(input_range=(0.0, 8.0)))
    assert float(subject.tensors["b"]) == pytest.approx(0.25 * 4.0)


def test_layers_are_corrected_on_what_corrected_layers_give() -> None:
    """The second layer sees the mean that the first one has after its correction: its own weights lose nothing."""
    text = [
        *LINEAR,
        *[leaf("v", "f32", 1, 1), leaf("c", "f32", 1)],
        '%vq = fake_quantize(%v, %ws, %wz) {spec = spec"s8 symmetric narrow"} : f32[1, 1]',
        "%z = linear(%y, %vq, %c) : f32[N, 1]",
        "%z",
    ]
    subject = linear(*text, v=torch.tensor([[3.0]]), c=torch.tensor([0.0]))
    run(CorrectBias(), subject, PassContext(calibration_data=[[torch.tensor([[4.0, 1.0]])]]))
    assert (float(subject.tensors["b"]), float(subject.tensors["c"])) == (1.0, 0.0)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no bias": ([*LINEAR[:5], "%y = linear(%x, %wq) : f32[N, 1]", "%y"], "it has no bias"),
    "a shared bias": (
        [*LINEAR, "%z = linear(%x, %wq, %b) : f32[N, 1]", "%s = add(%y, %z) : f32[N, 1]", "%s"],
        "another layer uses the same bias",
    ),
    "an unknown mean": (
        [*LINEAR[:5], "%r = reciprocal(%x) : f32[N, 2]", "%y = linear(%r, %wq, %b) : f32[N, 1]", "%y"],
        "the mean of its input is unknown without calibration_data: reciprocal has",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_cannot_be_corrected_are_refused_with_the_reason(case: str) -> None:
    text, reason = REFUSED[case]
    subject = linear(*text)
    record = run(CorrectBias(), subject, PassContext(input_range=(-1.0, 1.0)))
    found = refusals(record)
    assert found and all(why.startswith(reason) for why in found)
    assert {event.node for event in record.events} <= {"y", "z"}
    assert all(torch.equal(subject.tensors[name], NUMBERS[name]) for name in ("w", "b") if name in subject.tensors)
    if case != "an unknown mean":
        data = [[torch.tensor([[4.0, 1.0]])]]
        assert refusals(run(CorrectBias(), subject, PassContext(calibration_data=data))) == found


def test_what_it_needs_and_invalidates() -> None:
    check_declared(CorrectBias(), {Stage.QUANTIZED}, requires={"weight-ranges"}, invalidates={"activation-ranges"})


def test_weights_have_no_error_at_the_center_of_a_folded_normalization() -> None:
    """An input that the normalization mapped to 0 gives the bias of the model, whatever the weights are rounded to."""
    mean = torch.tensor([0.485, 0.456, 0.406])
    bias = torch.tensor([0.5, -1.0, 2.0, 0.0])
    text = [
        leaf("mean", "f32", 3, 1, 1),
        "%n = sub(%x, %mean) : f32[N, 3, 4, 4]",
        leaf("w", "f32", 4, 3, 3, 3),
        leaf("b", "f32", 4),
        "%a = conv2d(%n, %w, %b) {stride = (1, 1), padding = (0, 0, 0, 0), dilation = (1, 1)} : f32[N, 4, 2, 2]",
        "%a",
    ]
    x = mean.reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    found = []
    for passes in ([], [CorrectBias("center")]):
        tensors = {"mean": mean.reshape(3, 1, 1), "b": bias.clone()}
        subject = module("float", *text, inputs="%x : f32[N, 3, 4, 4]", tensors=tensors)
        context = PassContext(load_target("int8_dsp").override(weight_bits=3), [[torch.rand(4, 3, 4, 4)]])
        PassManager([*FRONT, *QUANTIZED, *passes]).run(subject, context)
        found.append(outputs_of(subject.main, [x])[0])
    wanted = bias.reshape(1, 4, 1, 1).expand_as(found[0])
    assert float((found[0] - wanted).abs().max()) > 0.05
    torch.testing.assert_close(found[1], wanted, rtol=0, atol=1e-5)
