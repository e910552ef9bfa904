# ruff: noqa: PLW0108  # a function of torch is traced under its own name only when a frame of ours calls it
"""Elementwise functions of torch become operators that compute the same."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.ops.stochastic_depth import stochastic_depth

from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture, rules_elementwise
from tests.support.spellings import RuleTests, Spelling, image, model_of, node_of

ATEN = torch.ops.aten

SPELLED: dict[str, Spelling] = {
    "batch_norm": lambda x, m: F.batch_norm(x, m.mean, m.variance, m.weight, m.bias, eps=0.01),
    "aten_batch_norm": lambda x, m: torch.batch_norm(x, None, m.bias, m.mean, m.variance, False, 0.1, 0.01, True),
    "native_batch_norm_legit_no_training": lambda x, m: ATEN._native_batch_norm_legit_no_training.default(x, m.weight, None, m.mean, m.variance, 0.1, 1e-5)[0],
    "dropout": lambda x: F.dropout(x, 0.3, training=False),
    "dropout1d": lambda x: F.dropout1d(x.flatten(2), training=False),
    "dropout2d": lambda x: F.dropout2d(x, training=False),
    "dropout3d": lambda x: F.dropout3d(x, training=False),
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.5, False),
    "alpha_dropout": lambda x: F.alpha_dropout(x, training=False),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, training=False),
    "torchvision.ops.stochastic_depth.stochastic_depth": torchvision.ops.StochasticDepth(0.5, "row"),
    "contiguous": lambda x: x.contiguous(),
    "clone": lambda x: torch.clone(x),
    "detach": lambda x: x.detach() + 1,
    "data": lambda x: x.data + 1,
    "alias": lambda x: ATEN.alias.default(x) + 1,
    "lift_fresh_copy": lambda x: ATEN.lift_fresh_copy.default(x),
    "lift_fresh": lambda x: ATEN.lift_fresh.default(x) + 1,
    "requires_grad": lambda x: x.requires_grad_() + 1,
    "relu": lambda x: torch.relu_(x.clone()),
    "prelu": lambda x, m: F.prelu(x, m.weight),
    "relu6": lambda x: F.relu6(x * 8),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 1),
    "clamp": lambda x: x.clamp(max=0.25),
    "clamp_min": lambda x: x.clamp_min(0.25),
    "clamp_max": lambda x: torch.clamp_max(x, -0.25),
    "softplus": lambda x: F.softplus(x, 1, 20),
    "elu": lambda x: F.elu(x, 0.5),
    "sigmoid": lambda x: F.sigmoid(x),
    "tanh": lambda x: x.tanh_(),
    "silu": lambda x: F.silu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x * 3),
    "hardsigmoid": lambda x: F.hardsigmoid(x * 3),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "celu": lambda x: F.celu(x, alpha=2.0),
    "selu": lambda x: F.selu(x),
    "log_sigmoid": lambda x: F.logsigmoid(x),
    "mish": lambda x: F.mish(x),
    "softsign": lambda x: F.softsign(x),
    "tanhshrink": lambda x: F.tanhshrink(x),
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "hardshrink": lambda x: F.hardshrink(x, lambd=0.7),
    "abs": lambda x: x.absolute(),
    "exp": lambda x: torch.exp(x),
    "expm1": lambda x: torch.special.expm1(x),
    "log": lambda x: torch.log(x.abs() + 0.5),
    "log1p": lambda x: torch.log1p(x.abs() + 0.5),
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.5),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.5),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 0.5),
    "erf": lambda x: torch.special.erf(x),
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "atan": lambda x: torch.arctan(x),
    "log_sigmoid_forward": lambda x: ATEN.log_sigmoid_forward.default(x)[0],
    "add": lambda x, m: torch.add(x, m.weight, alpha=0.5),
    "sub": lambda x, m: torch.sub(x, m.weight, alpha=2),
    "mul": lambda x, m: m.weight * x,
    "maximum": lambda x, m: torch.maximum(x, m.weight),
    "max": lambda x, m: torch.max(x, m.weight),
    "fmax": lambda x, m: torch.fmax(x, m.weight),
    "fmin": lambda x, m: x.fmin(m.weight),
    "minimum": lambda x, m: x.minimum(m.weight),
    "min": lambda x, m: x.min(m.weight),
    "div": lambda x, m: x / (m.weight + 3),
    "rsub": lambda x: torch.rsub(x, 3, alpha=2),
    "neg": lambda x: -x,
    "square": lambda x: x.square(),
    "pow": lambda x: x.pow(3),
    "addcmul": lambda x, m: torch.addcmul(x, x, m.weight, value=0.5),
    "addcdiv": lambda x, m: torch.addcdiv(x, x, m.weight + 3, value=2),
    "lerp": lambda x, m: torch.lerp(x, x.abs(), 0.25),
    "glu": lambda x: F.glu(x, 1),
    "where": lambda x, m: torch.where(m.weight > 0, x, 0.5),
    "masked_fill": lambda x, m: x.masked_fill(torch.eye(4) > 0, -0.5),
    "copy": lambda x: x.clone().copy_(x * 2),
    "fill": lambda x: x.clone().fill_(0.5) + x,
    "zero": lambda x: x.clone().zero_() + x,
}  # fmt: skip

SAME: dict[str, list[Spelling]] = {
    "relu": [
        lambda x: F.relu(x),
        lambda x: x.relu(),
        lambda x: x.relu_(),
        lambda x: F.relu(x, inplace=True),
        lambda x: F.relu_(x.clone()),
        lambda x: x.clamp(min=0),
        lambda x: x.clip(0),
        lambda x: torch.clamp_min(x, 0.0),
        nn.ReLU(),
        nn.ReLU(inplace=True),
    ],
    "relu6": [nn.ReLU6(), nn.ReLU6(inplace=True), lambda x: F.relu6(x), lambda x: x.clamp(0, 6), lambda x: F.hardtanh(x, 0.0, 6.0)],
    "sigmoid": [nn.Sigmoid(), lambda x: torch.sigmoid(x), lambda x: x.sigmoid(), lambda x: x.sigmoid_(), lambda x: F.sigmoid(x), lambda x: torch.special.expit(x)],
    "tanh": [nn.Tanh(), lambda x: torch.tanh(x), lambda x: x.tanh_(), lambda x: F.tanh(x)],
    "silu": [nn.SiLU(), nn.SiLU(inplace=True), lambda x: F.silu(x), lambda x: F.silu(x, inplace=True)],
    "gelu": [nn.GELU(), lambda x: F.gelu(x), lambda x: F.gelu(x, approximate="none")],
    "gelu by tanh": [nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")],
    "hardswish": [nn.Hardswish(), nn.Hardswish(inplace=True), lambda x: F.hardswish(x)],
    "hardsigmoid": [nn.Hardsigmoid(), lambda x: F.hardsigmoid(x), lambda x: F.hardsigmoid(x, inplace=True)],
    "leaky_relu": [nn.LeakyReLU(0.1), nn.LeakyReLU(0.1, inplace=True), lambda x: F.leaky_relu(x, 0.1), lambda x: F.leaky_relu(x, negative_slope=0.1)],
    "elu": [nn.ELU(), lambda x: F.elu(x), lambda x: F.elu(x, 1.0, inplace=True)],
    "softplus": [nn.Softplus(), lambda x: F.softplus(x)],
    "mish": [nn.Mish(), lambda x: F.mish(x)],
    "exp": [lambda x: x.exp(), lambda x: torch.exp(x), lambda x: x.exp_()],
    "prelu": [lambda x, m: F.prelu(x, m.weight), lambda x, m: torch.prelu(x, m.weight), lambda x, m: x.prelu(m.weight)],
    "add": [lambda x: x + x, lambda x: torch.add(x, x), lambda x: x.add(x), lambda x: x.add_(x)],
    "add a number": [lambda x: x + 1.5, lambda x: 1.5 + x, lambda x: x.add(1.5), lambda x: torch.add(x, 3, alpha=0.5)],
    "maximum": [lambda x, m: torch.maximum(x, m.weight), lambda x, m: torch.max(x, m.weight), lambda x, m: x.max(m.weight), lambda x, m: x.maximum(m.weight)],
    "minimum": [lambda x, m: torch.minimum(x, m.weight), lambda x, m: torch.min(x, m.weight), lambda x, m: x.minimum(m.weight)],
    "sub": [lambda x, m: x - m.weight, lambda x, m: torch.sub(x, m.weight), lambda x, m: x.subtract(m.weight), lambda x, m: x.sub_(m.weight)],
    "mul": [lambda x: x * x, lambda x: torch.mul(x, x), lambda x: x.multiply(x), lambda x: x.square(), lambda x: x**2, lambda x: torch.pow(x, 2)],
    "div": [lambda x: x / 4, lambda x: torch.div(x, 4), lambda x: x.true_divide(4), lambda x: x * 0.25, lambda x: x.div_(4)],
    "div by a tensor": [lambda x, m: x / m.variance, lambda x, m: torch.div(x, m.variance)],
    "masked": [lambda x: x.masked_fill(torch.eye(4) == 0, 0.0), lambda x: torch.where(torch.eye(4) > 0, x, 0.0)],
    "powers": [lambda x: x**3, lambda x: torch.pow(x, 3.0), lambda x: x.pow(3)],
    "square root": [lambda x: x.abs() ** 0.5, lambda x: x.abs().pow(0.5), lambda x: x.abs().sqrt()],
    "power of e": [lambda x: math.e**x, lambda x: torch.exp(x)],
    "power of two": [lambda x: 2**x, lambda x: torch.pow(2.0, x), lambda x: torch.exp(x * math.log(2))],
    "addcmul": [lambda x, m: torch.addcmul(x, x, m.weight), lambda x, m: x.addcmul(x, m.weight), lambda x, m: x + x * m.weight],
    "lerp": [lambda x, m: torch.lerp(x, x.relu(), 0.25), lambda x, m: x + (x.relu() - x) * 0.25],
    "neg": [lambda x: -x, lambda x: torch.neg(x), lambda x: x.negative(), lambda x: x * -1, lambda x: x.neg_()],
    "batch_norm": [
        lambda x, m: F.batch_norm(x, m.mean, m.variance, m.weight, m.bias),
        lambda x, m: torch.batch_norm(x, m.weight, m.bias, m.mean, m.variance, False, 0.1, 1e-5, True),
    ],
    "nothing": [nn.Identity(), lambda x: x, lambda x: x.contiguous(), lambda x: x.clone(), lambda x: F.dropout(x, training=False), nn.Dropout(), lambda x: x.to(torch.float32), lambda x: x.detach()],
}  # fmt: skip

REFUSED: dict[str, tuple[Spelling, str]] = {
    "no statistics": (nn.BatchNorm2d(4, track_running_stats=False), "a batch norm without running statistics"),
    "of the batch": (
        lambda x, m: F.batch_norm(x, m.mean, m.variance, training=True),
        "a batch norm uses batch statistics",
    ),
    "dropout": (lambda x: F.dropout(x), "dropout is active in a model in eval mode"),
    "stochastic depth": (node_of(stochastic_depth, 0.0, "row"), "stochastic_depth is active in a model in eval mode"),
    "limits": (lambda x, m: x.clamp(x.mean(1, True), x + 1), "a clamp has limits that depend on the inputs"),
    "softplus": (lambda x: F.softplus(x, beta=2), "softplus with beta=2 and threshold=20"),
    "elu": (lambda x: ATEN.elu.default(x, 1.0, 2.0, 3.0), "elu with scale=2.0 and input_scale=3.0"),
    "division": (lambda x: torch.div(x, 2, rounding_mode="floor"), "a division with rounding_mode='floor'"),
    "power of itself": (lambda x: x.abs() ** x.abs(), "a power whose exponent is a tensor"),
    "power of zero": (lambda x: 0 ** x.abs(), "a power of 0"),
}


class TestRules(RuleTests):
    file, spelled, same, refused = rules_elementwise, SPELLED, SAME, REFUSED


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        (lambda x: ATEN.log_sigmoid_forward.default(x)[1], "the buffer of a log_sigmoid"),
        (
            lambda x, m: ATEN._native_batch_norm_legit_no_training.default(x, None, None, m.mean, m.variance, 0.1, 0.1)[1],
            "statistics of a batch norm",
        ),
    ],
)  # fmt: skip
def test_second_results_may_not_be_read(spelling: Spelling, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        capture(model_of(spelling), image())


def test_the_kind_of_dropout_stays_for_training() -> None:
    modes = {
        nn.Dropout(0.2): "elements",
        nn.Dropout2d(0.2): "channels",
        nn.AlphaDropout(0.2): "alpha",
        nn.FeatureAlphaDropout(0.2): "alpha_channels",
        torchvision.ops.StochasticDepth(0.2, "row"): "rows",
        torchvision.ops.StochasticDepth(0.2, "batch"): "batch",
    }
    for layer, mode in modes.items():
        (node,) = capture(model_of(layer), image()).module.main.nodes
        assert (node.op, node.attributes["p"], node.attributes["mode"]) == ("dropout", 0.2, mode)
