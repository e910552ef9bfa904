"""Gradients of scales and offsets in whole modules, against formulas written as plain loops over elements."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import qcompiler
from qcompiler.quant.affine import along_axis
from qcompiler.quant.spec import QuantSpec
from qcompiler.training.estimators import EWGS, PSG, DifferentiableSoftQuantization, Estimator, StraightThrough
from qcompiler.training.freezing import Freezing, Tracking
from qcompiler.training.quantizer import Quantizer
from qcompiler.training.ranges import LearnedOffset, LearnedScale, Ranges
from tests.training.networks import INPUTS, LABELS, small

BATCH = 6


def nearest(v: float) -> int:
    """To the nearest, ties to even."""
    return round(v)


def lsq(steps: list[float], g: list[float], low: int, high: int, fixed: dict[int, int]) -> float:
    """Equation 3 of LSQ, summed; `fixed` holds the codes of frozen elements, which do not follow their weight."""
    total = 0.0
    for index, (v, upstream) in enumerate(zip(steps, g, strict=True)):
        if index in fixed:
            part = float(fixed[index])
        elif v < low:
            part = low
        elif v > high:
            part = high
        else:
            part = nearest(v) - v
        total += upstream * part
    return total


class Call:
    """The operands of one call of a quantizer, and the gradients that it returned."""

    def __init__(self, quantizer: Quantizer, arguments: tuple[Any, ...], y: Tensor) -> None:
        self.quantizer, self.y = quantizer, y
        x, scale, _, low, high = (*arguments, None, None)[:5]
        limited = x.detach() if low is None and high is None else x.detach().clamp(low, high)
        # The division is that of codes, in float32: the largest weight of a channel lies right on the end of its grid.
        self.steps = (limited / along_axis(scale.detach(), x.dim(), quantizer.spec.axis)).double()
        y.retain_grad()


def calls_of(module: qcompiler.QATModule, images: Tensor, labels: Tensor) -> list[Call]:
    """Train mode, one backward of the mean loss."""
    calls: list[Call] = []
    hooks = [
        item.register_forward_hook(lambda item, x, y: calls.append(Call(cast("Quantizer", item), x, y)))
        for item in module.modules()
        if isinstance(item, Quantizer) and any(True for _ in item.parameters(recurse=False))
    ]
    module.zero_grad()
    logits = module.train()(images)
    assert isinstance(logits, Tensor)
    functional.cross_entropy(logits, labels).backward()
    for hook in hooks:
        hook.remove()
    return calls


def prepare(target: str, **options: Any) -> qcompiler.QATModule:
    loaded = qcompiler.load_target(target).override(weight_bits=4, activation_bits=4)
    return qcompiler.prepare_qat(small(), loaded, calibration_data=[INPUTS], **options)


def expected_gradients(calls: list[Call], weights: set[Quantizer]) -> dict[Quantizer, list[float]]:
    """By quantizer: a gradient for each scale; tensors of one quantizer are counted and added up together."""
    elements: dict[Quantizer, int] = {}
    totals: dict[Quantizer, list[float]] = {}
    for call in calls:
        quantizer, spec = call.quantizer, call.quantizer.spec
        assert call.y.grad is not None
        rows, gradients = call.steps.unsqueeze(0), call.y.grad.double().unsqueeze(0)
        frozen = quantizer.oscillation
        masks = None if frozen is None or not frozen.freezes else (frozen.frozen.unsqueeze(0), frozen.frozen_codes)
        if spec.axis is not None:
            rows, gradients = call.steps.movedim(spec.axis, 0), call.y.grad.double().movedim(spec.axis, 0)
            masks = None if masks is None else (masks[0][0].movedim(spec.axis, 0), masks[1].movedim(spec.axis, 0))
        z = 0 if spec.symmetric else int(quantizer.zero_point)
        sums = []
        for channel, (row, gradient) in enumerate(zip(rows, gradients, strict=True)):
            fixed: dict[int, int] = {}
            if masks is not None:
                codes = (masks[1] if spec.axis is not None else masks[1].unsqueeze(0))[channel].flatten().tolist()
                fixed = {i: int(codes[i]) for i, held in enumerate(masks[0][channel].flatten().tolist()) if held}
            steps, upstream = row.flatten().tolist(), gradient.flatten().tolist()
            sums.append(lsq(steps, upstream, spec.qmin - z, spec.qmax - z, fixed))
        count = rows[0].numel() if quantizer in weights else rows[0].numel() // BATCH
        elements[quantizer] = elements.get(quantizer, 0) + count
        totals[quantizer] = [a + b for a, b in zip(totals.get(quantizer, [0.0] * len(sums)), sums, strict=True)]
    positive = {item: item.spec.qmax - (0 if item.spec.symmetric else int(item.zero_point)) for item in totals}
    return {item: [total / math.sqrt(elements[item] * positive[item]) for total in totals[item]] for item in totals}


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("int8_dsp", {}),
        ("int8_dsp_per_channel", {"batch_norm": "keep"}),
        ("lsq_paper", {"freezing": Freezing(0.5, Tracking(0.2))}),
    ],
)
def test_scales_have_the_gradient_of_lsq(target: str, options: dict[str, Any]) -> None:
    module = prepare(target, **options)
    for state in module.oscillations().values():
        # Half of the codes are frozen, one step away from where their weight is.
        state.frozen.view(-1)[::2] = True
        state.frozen_codes.copy_(torch.where(state.frozen, state.previous + 1.0, 0.0))
    weights = {module.quantizer(layer) for layer in module.weights}
    expected = expected_gradients(calls_of(module, INPUTS[:BATCH], LABELS[:BATCH]), weights)
    assert len(expected) >= 7
    assert any(not item.spec.symmetric for item in expected) or target == "lsq_paper"
    for quantizer, gradients in expected.items():
        assert quantizer.scale.grad is not None
        # float32 sums of up to 4,000 products that cancel; an error of N or of the steps is a factor of 1.4 at least.
        bound = 1e-3 * max(map(abs, gradients)) + 1e-7
        assert quantizer.scale.grad.reshape(-1).tolist() == pytest.approx(gradients, rel=1e-3, abs=bound)


@pytest.mark.parametrize("method", ["lsq", "lsq+", "dsq"])
def test_scales_learn_alike_whatever_the_batch(method: str) -> None:
    gradients = []
    for copies in (1, 3):
        module = prepare("int8_dsp", method=method)
        calls_of(module, INPUTS[:BATCH].repeat(copies, 1, 1, 1), LABELS[:BATCH].repeat(copies))
        gradients.append({name: p.grad for name, p in module.named_parameters() if "quantizer" in name})
    assert gradients[0]
    for name, one in gradients[0].items():
        other = gradients[1][name]
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


class Shapes(torch.nn.Module):
    """A parameter among activations, a batch inside of a larger dimension, and a model for one batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.position = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 24).reshape(4, 6))
        self.linear = torch.nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.position
        return cast("Tensor", self.linear(y.reshape(y.shape[0] * 4, 6)))


def test_elements_are_counted_without_the_batch() -> None:
    model = Shapes().eval()
    data = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    module = qcompiler.prepare_qat(model, "int8_dsp", calibration_data=[data])
    counts = {name: item.shared for name, item in module.named_modules() if isinstance(item, Quantizer)}
    assert counts == dict.fromkeys(("x.quantizer", "position_quantizer", "add.quantizer", "linear.quantizer"), 24) | {
        "linear.weight_quantizer": 36
    }


@pytest.mark.parametrize("ranges", [LearnedScale(), LearnedOffset()], ids=lambda item: type(item).__name__)
@pytest.mark.parametrize("estimator", [StraightThrough(), EWGS(), PSG(), DifferentiableSoftQuantization()])
@pytest.mark.parametrize("zero", [0, 3, 15])
def test_a_grid_learns_alike_stored_with_a_sign_or_without(estimator: Estimator, ranges: Ranges, zero: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(64, generator=generator), torch.randn(64, generator=generator)
    found = []
    for signed in (False, True):
        spec = QuantSpec(4, signed=signed)
        z = torch.tensor(zero + spec.qmin, dtype=torch.int32)
        quantizer = Quantizer(spec, ranges, estimator, torch.tensor(0.1), z, gradient_scale=True)
        leaf = x.clone().requires_grad_()
        quantizer(leaf, *quantizer.grid(leaf)).backward(g)
        found.append((leaf.grad, quantizer.get_parameter("scale").grad))
        if "offset" in dict(quantizer.named_parameters()):
            found[-1] = (leaf.grad, quantizer.get_parameter("offset").grad)
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("zero", [-2, 0, 3])
def test_scale_and_offset_have_the_gradients_of_lsq_plus(zero: int, signed: bool) -> None:
    spec = QuantSpec(4, signed=signed)
    n, p = (-8, 7) if signed else (0, 15)
    z = zero if signed else zero + 8
    generator = torch.Generator().manual_seed(1)
    x, g = torch.randn(200, generator=generator), torch.randn(200, generator=generator)
    start = torch.tensor(0.2)
    quantizer = Quantizer(spec, LearnedOffset(), StraightThrough(), start, torch.tensor(z, dtype=torch.int32))
    quantizer(x, *quantizer.grid(x)).backward(g)
    scale, offset = float(start), -float(start) * z
    by_scale = by_offset = 0.0
    clipped = 0
    for value, upstream in zip(x.tolist(), g.tolist(), strict=True):
        v = (value - offset) / scale
        if n <= v <= p:
            by_scale += upstream * (nearest(v) - v)
        else:
            clipped += 1
            by_scale += upstream * (n if v < n else p)
            by_offset += upstream
    assert clipped > 20
    for name, expected in (("scale", by_scale), ("offset", by_offset)):
        gradient = quantizer.get_parameter(name).grad
        assert gradient is not None
        assert float(gradient) == pytest.approx(expected, rel=1e-4)
