"""Batch norms that learn: nothing changes when they are taken out, and each style is the formula that it stands for."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

import qcompiler
from qcompiler import errors
from qcompiler.training.batch_norm import BatchNorm, Style, kl_divergence
from qcompiler.training.deploy import tensor_at
from tests.training.networks import INPUTS, small

TARGETS: dict[Style, str] = {
    "fold": "int8_dsp_per_channel",
    "double": "int8_dsp_per_channel",
    "keep": "int8_dsp_per_channel",
}


def prepared(style: Style, model: nn.Module | None = None, **options: object) -> qcompiler.QATModule:
    keywords: dict[str, object] = {"calibration_data": [INPUTS], "batch_norm": style, **options}
    return qcompiler.prepare_qat(model or small(), TARGETS[style], **keywords)  # type: ignore[arg-type]


def in_float(module: qcompiler.QATModule, x: Tensor) -> Tensor:
    """The evaluation in float, in eval mode."""
    module.eval()
    result = module.fake_quantized(x)
    assert isinstance(result, Tensor)
    return result.detach()


@pytest.mark.parametrize("style", ["double", "keep"])
def test_all_styles_start_at_the_same_function(style: Style) -> None:
    folded, learning = prepared("fold"), prepared(style)
    step = float(tensor_at(folded, "head.quantizer.scale").detach())
    difference = (in_float(folded, INPUTS) - in_float(learning, INPUTS)).abs()
    # A folded bias is rounded to steps of its own, which turns a code here and there: 4 of these 120 by one step.
    assert float(difference.max()) <= 1.01 * step
    assert float((difference > 0.5 * step).double().mean()) <= 0.05
    names = {name for name, item in learning.named_modules() if isinstance(item, BatchNorm)}
    assert names == {"stem.1", "depthwise.1", "point.1"}
    assert set(small().state_dict()) <= set(learning.state_dict())


def test_kept_parameters_are_those_of_the_model() -> None:
    """Nothing is equalized here, so that weights and statistics come back as they were."""
    model = small()
    passes = """canonicalize, fold-constants, fold-batch-norm, partition, insert-quantizers, fix-ranges, unify-scales,
        calibrate-weights, calibrate-activations"""
    learning = qcompiler.prepare_qat(
        model, "int8_dsp_per_channel", calibration_data=[INPUTS], batch_norm="keep", pipeline=passes
    )
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        found = tensor_at(learning, name)
        # Divided by g and multiplied with it again, in float64, stored in float32 in between.
        torch.testing.assert_close(found, tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_kept_scale_follows_from_the_folded_one() -> None:
    folded, learning = prepared("fold"), prepared("keep")
    norm = learning.get_submodule("stem.1")
    assert isinstance(norm, BatchNorm)
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    found = tensor_at(learning, "stem.0.weight_quantizer.scale") * gain.abs()
    torch.testing.assert_close(found, tensor_at(folded, "stem.0.weight_quantizer.scale"), rtol=1e-5, atol=0.0)


def test_keep_trains_like_a_batch_norm_behind_a_quantized_layer() -> None:
    learning = prepared("keep")
    layer, norm = learning.get_submodule("stem.0.weight_quantizer"), learning.get_submodule("stem.1")
    assert isinstance(norm, BatchNorm)
    x = torch.randn(6, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    torchs = nn.BatchNorm2d(8, eps=norm.eps, momentum=norm.momentum)
    torchs.load_state_dict({key: item.clone() for key, item in norm.state_dict().items()})
    for mode in (True, False):
        torch.testing.assert_close(norm.train(mode)(x), torchs.train(mode)(x), rtol=0.0, atol=0.0)
    assert torchs.running_var is not None
    assert torch.equal(norm.running_var, torchs.running_var)
    assert layer is not None


def test_double_is_a_float_forward_for_the_statistics_and_a_quantized_one() -> None:
    learning = prepared("double")
    norm, quantizer = learning.get_submodule("depthwise.1"), learning.get_submodule("depthwise.0.weight_quantizer")
    assert isinstance(norm, BatchNorm)
    weight, bias = tensor_at(learning, "depthwise.0.weight"), tensor_at(learning, "depthwise.0.bias")
    seen: list[Tensor] = []
    learning.get_submodule("depthwise.2.quantizer").register_forward_hook(
        lambda module, arguments, result: seen.append(arguments[0])
    )
    inputs: list[Tensor] = []
    learning.get_submodule("stem.2.quantizer").register_forward_hook(
        lambda module, arguments, result: inputs.append(result)
    )
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    learning.train()(INPUTS)
    (x,) = inputs
    z = functional.conv2d(x, weight, bias, padding=1, groups=8)
    batch_mean, batch_variance = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    gain = norm.weight / torch.sqrt(variance + norm.eps)
    folded = weight * gain.reshape(-1, 1, 1, 1)
    quantized = quantizer(folded, *quantizer.grid(folded))  # type: ignore[operator]
    y = functional.conv2d(x, quantized, None, padding=1, groups=8)
    correction = torch.sqrt(variance + norm.eps) / torch.sqrt(batch_variance + norm.eps)
    shift = norm.bias + (bias - batch_mean) * norm.weight / torch.sqrt(batch_variance + norm.eps)
    expected = y * correction.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)
    count = z.numel() // 8
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * batch_mean, rtol=1e-5, atol=1e-6)
    unbiased = batch_variance * count / (count - 1)
    torch.testing.assert_close(norm.running_var, 0.9 * variance + 0.1 * unbiased, rtol=1e-5, atol=1e-6)


def test_keep_needs_a_scale_per_channel() -> None:
    with pytest.raises(errors.InputError, match="scale per output channel"):
        qcompiler.prepare_qat(small(), "int8_dsp", calibration_data=[INPUTS], batch_norm="keep")
    powers = qcompiler.load_target("int8_dsp_per_channel").override(power_of_two=True)
    with pytest.raises(errors.InputError, match="power of two"):
        qcompiler.prepare_qat(small(), powers, calibration_data=[INPUTS], batch_norm="keep")
    with pytest.raises(errors.InputError, match="batch_norm is 'static'"):
        qcompiler.prepare_qat(small(), calibration_data=[INPUTS], batch_norm="static")  # type: ignore[arg-type]


@pytest.mark.parametrize("style", ["double", "keep"])
def test_reestimation_gives_the_mean_of_the_statistics_of_batches(style: Style) -> None:
    module = prepared(style)
    norm = module.get_submodule("stem.1")
    assert isinstance(norm, BatchNorm)
    batches = [INPUTS[:8] + 1.0, INPUTS[8:16] * 2.0, INPUTS[16:]]
    before = {name: item.clone() for name, item in module.state_dict().items()}
    kept = norm.momentum, int(norm.num_batches_tracked)
    # The first layer sees inputs alone, so that its statistics follow from them.
    quantizer = module.get_submodule("x.quantizer")
    weight = tensor_at(module, "stem.0.weight")
    if style == "keep":
        own = module.get_submodule("stem.0.weight_quantizer")
        weight = own(weight, *own.grid(weight))  # type: ignore[operator]
    found = []
    for batch in batches:
        z = functional.conv2d(quantizer(batch, *quantizer.grid(batch)), weight, padding=1)  # type: ignore[operator]
        found.append((z.mean((0, 2, 3)), z.var((0, 2, 3))))
    assert qcompiler.reestimate_batch_norm(module, [(batch, None) for batch in batches]) == 3
    torch.testing.assert_close(norm.running_mean, sum(a for a, _ in found) / 3, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, sum(b for _, b in found) / 3, rtol=1e-4, atol=1e-5)
    assert (norm.momentum, int(norm.num_batches_tracked)) == kept
    assert module.training
    for name, item in module.state_dict().items():
        if "running" not in name:
            assert torch.equal(item, before[name]), name
    assert qcompiler.reestimate_batch_norm(module, batches, limit=2) == 2
    with pytest.raises(errors.CalibrationError, match="no batch"):
        qcompiler.reestimate_batch_norm(module, [])
    with pytest.raises(errors.InputError, match="folded into its weights"):
        qcompiler.reestimate_batch_norm(prepared("fold"), batches)


def test_reestimation_before_each_evaluation() -> None:
    module = prepared("keep")
    calls: list[int] = []
    module.before_evaluation(lambda: calls.append(qcompiler.reestimate_batch_norm(module, [INPUTS])))
    module.eval()
    for _ in range(2):
        module(INPUTS[:2])
    assert calls == [1], "once, as long as nothing changes in between"
    module.train()(INPUTS)
    copied = copy.deepcopy(module).eval()
    copied(INPUTS[:2])
    assert calls == [1], "a copy has no such callback"
    module.eval()(INPUTS[:2])
    assert calls == [1, 1]


def test_reestimation_before_what_was_learned_ships() -> None:
    module = prepared("keep")
    calls: list[int] = []
    module.before_evaluation(lambda: calls.append(qcompiler.reestimate_batch_norm(module, [INPUTS])))
    module.train()(INPUTS)
    compiled = qcompiler.compile(module)
    assert torch.equal(cast("Tensor", compiled.run(INPUTS)), module.eval()(INPUTS))
    assert calls == [1], "evaluation uses the shipped state"
    module.train()
    module(INPUTS)
    module.step()
    qcompiler.compile(module)
    module(INPUTS)
    module.step()
    module.eval()(INPUTS)
    assert calls == [1, 1, 1], "a step changes the learned state in any mode"


def test_divergence_is_the_standard_one() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.distributions.Normal(torch.randn(7, generator=generator), torch.rand(7, generator=generator) + 0.1)
    other = torch.distributions.Normal(torch.randn(7, generator=generator), torch.rand(7, generator=generator) + 0.1)
    expected = torch.distributions.kl_divergence(first, other)
    found = kl_divergence(first.mean, first.variance, other.mean, other.variance)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    same = kl_divergence(first.mean, first.variance, first.mean, first.variance)
    torch.testing.assert_close(same, torch.zeros(7), rtol=0.0, atol=1e-6)


def test_divergence_finds_the_layer_whose_statistics_are_wrong() -> None:
    module = prepared("keep")
    qcompiler.reestimate_batch_norm(module, [INPUTS])
    norm = module.get_submodule("point.1")
    assert isinstance(norm, BatchNorm)
    before = qcompiler.batch_norm_divergence(module, [INPUTS])
    assert all(item.largest < 1e-6 for item in before.values()), "the batch from which they were estimated"
    with torch.no_grad():
        norm.running_var[2] *= 4.0
    state = {name: item.clone() for name, item in module.state_dict().items()}
    after = qcompiler.batch_norm_divergence(module, [INPUTS])
    # log 2 + 1/8 - 1/2 for a deviation that is twice too large
    assert after["point.1"].largest == pytest.approx(0.3181, abs=1e-3)
    assert after["stem.1"].largest < 1e-6
    assert str(after).splitlines()[1].split()[0] == "point.1", "a table, the worst first"
    assert all(torch.equal(item, state[name]) for name, item in module.state_dict().items())


def test_frozen_batch_norms_are_those_in_eval_mode() -> None:
    module = prepared("keep")
    norm = module.get_submodule("stem.1")
    assert isinstance(norm, BatchNorm)
    before = norm.running_mean.clone()
    norm.eval()
    module(INPUTS)
    assert torch.equal(norm.running_mean, before)
    other = module.get_submodule("point.1")
    assert isinstance(other, BatchNorm)
    assert int(other.num_batches_tracked) == 1


def test_momentum_none_averages_all_batches() -> None:
    model = small()
    for item in model.modules():
        if isinstance(item, nn.BatchNorm2d):
            item.momentum = None
    module = prepared("keep", model)
    norm = module.get_submodule("stem.1")
    assert isinstance(norm, BatchNorm)
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda item, arguments, result: seen.append(arguments[0].mean((0, 2, 3))))
    for part in INPUTS.split(8):
        module(part)
    torch.testing.assert_close(norm.running_mean, torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["keep", "double"])
def test_a_step_is_a_function_of_the_state_that_it_is_given(style: Style) -> None:
    module, other = prepared(style), prepared(style)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    for _ in range(2):
        found = functional_call(module, state, (INPUTS,))
        assert torch.equal(found, other(INPUTS))
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert statistics
    for name in statistics:
        assert torch.equal(state[name], other.state_dict()[name])
        assert not torch.equal(state[name], before[name])
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
