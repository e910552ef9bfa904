"""Ranges of weights follow from the weights themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.errors import CalibrationError, InputError
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.quant.affine import dequantize, quantize
from qcompiler.quant.spec import QuantSpec
from tests.support.declared import check_declared
from tests.support.golden import leaf, lines, module, run

WEIGHT = torch.tensor([[2.0, -1.0, 0.5, 0.25], [-0.5, 0.125, 0.0, 0.25]])


def layer(spec: str, weight: torch.Tensor = WEIGHT, scale: float = torch.nan) -> Module:
    """A linear layer whose weight has a quantizer, as has its input; both without a range."""
    outputs, inputs = weight.shape
    parsed = QuantSpec.parse(spec)
    size = () if parsed.axis is None else (outputs,)
    blocks = [] if parsed.block is None else [leaf("wf", "u8", outputs, inputs // parsed.block, kind="state")]
    return module(
        "quantized",
        *[leaf("s", "f32"), leaf("z", "i32", kind="state")],
        *[leaf("w", "f32", *weight.shape), leaf("ws", "f32", *size), leaf("wz", "i32", *size, kind="state")],
        *blocks,
        f'%q = fake_quantize(%x, %s, %z) {{spec = spec"s8"}} : f32[N, {inputs}]',
        f'%wq = fake_quantize(%w, %ws, %wz{", %wf" if blocks else ""}) {{spec = spec"{spec}"}}'
        f" : f32[{outputs}, {inputs}]",
        f"%y = linear(%q, %wq) : f32[N, {outputs}]",
        "%y",
        inputs=f"%x : f32[N, {inputs}]",
        tensors={
            "s": torch.tensor(torch.nan),
            "z": torch.tensor(0, dtype=torch.int32),
            "w": weight,
            "ws": torch.full(size, scale),
            "wz": torch.zeros(size, dtype=torch.int32),
        },
    )


GRIDS: dict[str, tuple[list[float], list[int]]] = {
    "s8 symmetric narrow": ([2 / 127], [0]),
    "s4 symmetric narrow": ([2 / 7], [0]),
    "s8": ([3 / 255], [-43]),
    "s8 symmetric narrow axis=0": ([2 / 127, 0.5 / 127], [0, 0]),
    "s8 symmetric narrow axis=0 scale=pow2": ([2.0**-5, 2.0**-7], [0, 0]),
}


@pytest.mark.parametrize("spec", GRIDS)
def test_the_whole_range_is_on_the_grid(spec: str) -> None:
    subject = layer(spec)
    before = lines(subject)
    record = run(CalibrateWeights(), subject)
    scale, zero_point = subject.tensors["ws"], subject.tensors["wz"]
    torch.testing.assert_close(scale.reshape(-1), torch.tensor(GRIDS[spec][0]), rtol=1e-6, atol=0)
    assert zero_point.reshape(-1).tolist() == GRIDS[spec][1]
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
    assert lines(subject) == before and torch.equal(subject.tensors["w"], WEIGHT)
    assert bool(subject.tensors["s"].isnan()), "an activation has its range from data"
    assert [(event.kind, event.node, event.detail) for event in record.events] == [
        ("rewrite", "wq", "range -1 to 2 by min_max")
    ]


def test_blocks_of_inputs_have_factors_of_the_scale_of_their_channel() -> None:
    weight = torch.tensor([[7.0, -3.5, 1.0, 0.5], [0.5, 0.25, 3.5, -7.0]])
    subject = layer("s4 symmetric narrow axis=0 block=2", weight)
    run(CalibrateWeights(), subject)
    steps = subject.tensors["ws"].reshape(-1, 1) * subject.tensors["wf"]
    needed = weight.reshape(2, 2, 2).abs().amax(2) / 7
    assert bool((steps >= needed * (1 - 1e-6)).all()), "nothing is clipped"
    assert bool((steps <= needed + subject.tensors["ws"].reshape(-1, 1) * (1 + 1e-6)).all()), "at most one more factor"
    assert subject.tensors["wf"].dtype == torch.uint8
    assert not bool(subject.tensors["wz"].any())


def test_with_few_bits_the_least_error_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 200, generator=generator)
    errors = {}
    spec = QuantSpec.parse("s3 symmetric narrow")
    for method in ("min_max", "mse"):
        subject = layer(str(spec), weight)
        run(CalibrateWeights(method=method), subject)
        scale, zero_point = subject.tensors["ws"], subject.tensors["wz"]
        restored = dequantize(quantize(weight, scale, zero_point, spec), scale, zero_point)
        errors[method] = float((restored - weight).square().sum())
    assert errors["mse"] < 0.5 * errors["min_max"]


def test_a_range_that_is_there_stays() -> None:
    subject = layer("s8 symmetric narrow", scale=0.25)
    record = run(CalibrateWeights(), subject)
    assert float(subject.tensors["ws"]) == 0.25 and not record.events


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    weight = WEIGHT.clone()
    weight[1, 2] = value
    with pytest.raises(CalibrationError, match="wq"):
        run(CalibrateWeights(), layer("s8 symmetric narrow", weight))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no method": ({"method": "min-max"}, "min-max"),
    "for logits alone": ({"method": "cross_entropy"}, "method='cross_entropy' is not possible for all tensors"),
    "percentile": ({"method": "percentile", "percentile": 100.1}, "percentile=100.1"),
    "no percentile": ({"method": "percentile", "percentile": 0.0}, "percentile=0"),
    "bins": ({"method": "mse", "bins": 1}, "a histogram of 1 bins"),
    "clipping": ({"method": "sqnr", "clipping": -0.1}, "clipping=-0.1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_out_of_range_are_refused(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        CalibrateWeights(**options)


def test_the_noise_of_the_weights_is_recorded_and_bounded() -> None:
    subject = layer("s8 symmetric narrow")
    context = PassContext(samples=[[torch.randn(16, 4)]])
    (record,) = PassManager([CalibrateWeights()], {"quantizers"}).run(subject, context)
    assert 30 < record.metrics["sqnr_db"] < 80  # type: ignore[operator]  # a number: the contract is lossy


def test_what_it_needs_and_establishes() -> None:
    check_declared(CalibrateWeights(), {Stage.QUANTIZED}, requires={"quantizers"}, establishes={"weight-ranges"})
