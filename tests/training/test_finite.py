"""No scale reaches 0 in training, and what is not finite is named at the step that made it so."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler import errors
from qcompiler.training.quantizer import Quantizer
from tests.training.networks import INPUTS, LABELS, small


def prepare(method: str = "lsq", target: str = "int8_dsp", **options: Any) -> qcompiler.QATModule:
    return qcompiler.prepare_qat(small(), target, calibration_data=[INPUTS], method=method, **options)


def backward(module: qcompiler.QATModule) -> None:
    module.zero_grad()
    logits = module.train()(INPUTS)
    assert isinstance(logits, Tensor)
    functional.cross_entropy(logits, LABELS).backward()


def scales(module: qcompiler.QATModule) -> dict[str, Tensor]:
    nothing = torch.ones(8, 8)
    return {name: item.grid(nothing)[0] for name, item in module.named_modules() if isinstance(item, Quantizer)}


@pytest.mark.filterwarnings("ignore:the parameters change, but step")
@pytest.mark.parametrize("calls_step", [True, False])
@pytest.mark.parametrize("method", ["lsq", "lsq+", "lsq_unscaled", "min_max", "pact", "ewgs"])
def test_no_scale_reaches_zero_at_rates_that_are_far_too_large(method: str, calls_step: bool) -> None:
    module = prepare(method)
    first = scales(module)
    # Ends and clips are in units of the tensor, far larger than scales.
    optimizer = torch.optim.Adam(module.parameters(), lr=1.0 if method in ("min_max", "pact") else 0.03)
    crossed = 0
    for _ in range(15):
        backward(module)
        optimizer.step()
        learned = [p for name, p in module.named_parameters() if name.endswith((".scale", ".clip", ".high"))]
        crossed += sum(int((p <= 0).sum()) for p in learned)
        if calls_step:
            module.step()
            assert all(bool((p > 0).all()) for p in learned)
        for name, scale in scales(module).items():
            assert bool((scale > 0).all()), name
    assert crossed > 0, "the rates are not too large"
    if not calls_step:
        return
    # Half a step below the last one is the least; fifteen halvings are 2^-15.
    assert all(bool((scale > first[name] * 2.0**-16).all()) for name, scale in scales(module).items())
    compiled = qcompiler.compile(module.eval(), verify="off")
    assert torch.equal(cast("Tensor", compiled.run(INPUTS)), cast("Tensor", module(INPUTS)))


def test_a_step_halves_a_scale_at_most_and_turns_round_at_zero() -> None:
    module = prepare()
    quantizer = module.quantizer("head")
    start = float(quantizer.scale.detach())
    for moved, expected in ((0.6, 0.6), (-5.0, 0.6), (-0.4, 0.4), (-0.1, 0.2), (0.01, 0.1), (4.0, 4.0)):
        with torch.no_grad():
            quantizer.scale.fill_(moved * start)
        module.step()
        assert float(quantizer.scale.detach()) == pytest.approx(expected * start, rel=1e-6)


def test_a_scale_below_zero_has_the_gradient_of_the_scale_that_stands_for_it() -> None:
    gradients = []
    for factor in (-1.0, 0.5):
        module = prepare()
        with torch.no_grad():
            module.quantizer("head").scale.mul_(factor)
        backward(module)
        gradients.append(module.quantizer("head").scale.grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert float(gradients[0]) == float(gradients[1]) != 0.0


def test_limits_are_no_part_of_the_state_and_follow_it() -> None:
    module, other = prepare(), prepare()
    assert not [name for name in module.state_dict() if "limit" in name]
    with torch.no_grad():
        module.quantizer("head").scale.mul_(0.01)
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        other.quantizer("head").scale.mul_(0.6)
    other.step()
    assert torch.equal(other.quantizer("head").scale, module.quantizer("head").scale * 0.6)


def test_one_step_of_adamw_on_attention_leaves_every_scale_above_zero() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(layer, nn.Linear(16, 4)).eval()
    data = 0.05 * torch.randn(4, 6, 16)
    target = qcompiler.load_target("int8_dsp_per_channel").override(fallback="float")
    module = qcompiler.prepare_qat(model, target, calibration_data=[data])
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    module.train()
    cast("Tensor", module(data)).square().mean().backward()
    optimizer.step()
    assert any(bool((p <= 0).any()) for name, p in module.named_parameters() if name.endswith(".scale"))
    module.step()
    assert all(bool((p > 0).all()) for name, p in module.named_parameters() if name.endswith(".scale"))
    assert torch.equal(
        cast("Tensor", qcompiler.compile(module.eval(), verify="off").run(data)), cast("Tensor", module(data))
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("head.weight", "after step 2 of training, a parameter is {}"),
        ("stem.0.weight", "after step 2 of training, a parameter is {}"),
        ("head.quantizer.scale", "after step 2 of training, the scale of the quantizer is {}"),
        ("point.0.weight_quantizer.scale", "after step 2 of training, the scale of the quantizer is {}"),
    ],
)
def test_what_is_not_finite_is_named_with_its_step(name: str, message: str, value: float) -> None:
    module = prepare()
    module.step()
    with torch.no_grad():
        module.get_parameter(name).view(-1)[-1] = value
    with pytest.raises(errors.CalibrationError, match=message.format(value)) as caught:
        module.step()
    where = name.removesuffix(".scale") if "quantizer" in name else name
    assert caught.value.where == where
    assert "scale_lr" in str(caught.value)


def test_a_quantizer_is_named_before_the_weights_that_it_spoiled() -> None:
    module = prepare()
    with torch.no_grad():
        module.get_parameter("head.weight").fill_(float("nan"))
        module.get_parameter("stem.0.weight_quantizer.scale").fill_(float("nan"))
    with pytest.raises(errors.CalibrationError, match="scale of the quantizer is nan, and 1 other tensors") as caught:
        module.step()
    assert caught.value.where == "stem.0.weight_quantizer"


@pytest.mark.parametrize("batch_norm", ["keep", "double"])
def test_running_statistics_that_break_alone_are_named(batch_norm: str) -> None:
    module = prepare(target="int8_dsp_per_channel", batch_norm=batch_norm)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    # A batch spoils the statistics, and a loss scaler leaves out its step: no parameter has a gradient.
    module.train()(torch.full_like(INPUTS, float("nan")))
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    with pytest.raises(errors.CalibrationError, match="after step 1 of training, a running statistic") as caught:
        module.step()
    assert caught.value.where == next(name for name, _ in module.named_buffers() if name.endswith("running_mean"))
