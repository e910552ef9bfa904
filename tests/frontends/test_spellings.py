# ruff: noqa: PLW0108  # a function of torch is traced under its own name only when a frame of ours calls it
"""All ways to write an operator in torch are one operator here, whichever tracer saw it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.frontends import capture
from qcompiler.ir.graph import Module
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.text import print_module
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fold_constants import FoldConstants

Spelling = Callable[..., Any]


class Spelled(nn.Module):
    """A spelling as a model; a module is a child of it."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        weight = torch.linspace(-1, 1, 4)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(weight.flip(0).clone())
        self.kernel = nn.Parameter(torch.linspace(-1, 1, 4 * 4 * 3 * 3).reshape(4, 4, 3, 3))
        self.mean, self.variance = nn.Buffer(weight * 0.1), nn.Buffer(weight.abs() + 0.5)

    def forward(self, x: Tensor) -> object:
        takes_model = not isinstance(self.spelling, nn.Module) and self.spelling.__code__.co_argcount == 2
        return self.spelling(x, self) if takes_model else self.spelling(x)


SPELLINGS: dict[str, list[Spelling]] = {
    "relu": [
        lambda x: F.relu(x),
        lambda x: torch.relu(x),
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
    "neg": [lambda x: -x, lambda x: torch.neg(x), lambda x: x.negative(), lambda x: x * -1, lambda x: x.neg_()],
    "conv2d": [
        lambda x, m: F.conv2d(x, m.kernel, m.bias, padding=1),
        lambda x, m: torch.conv2d(x, m.kernel, m.bias, padding=(1, 1)),
        lambda x, m: F.conv2d(x, m.kernel, m.bias, padding="same"),
        lambda x, m: F.conv2d(F.pad(x, (1, 1, 1, 1)), m.kernel, m.bias),
    ],
    "linear": [
        lambda x, m: F.linear(x, m.kernel[:, :, 0, 0], m.bias),
        lambda x, m: torch._C._nn.linear(x, m.kernel[:, :, 0, 0], m.bias),
    ],
    "batch_norm": [
        lambda x, m: F.batch_norm(x, m.mean, m.variance, m.weight, m.bias),
        lambda x, m: torch.batch_norm(x, m.weight, m.bias, m.mean, m.variance, False, 0.1, 1e-5, True),
    ],
    "layer_norm": [
        lambda x, m: F.layer_norm(x, (4,), m.weight, m.bias),
        lambda x, m: torch.layer_norm(x, [4], m.weight, m.bias),
        lambda x, m: F.layer_norm(x, x.shape[-1:], m.weight, m.bias, 1e-5),
    ],
    "max_pool2d": [nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2), lambda x: torch.max_pool2d(x, (2, 2), 2), lambda x: F.adaptive_max_pool2d(x, 2)],
    "avg_pool2d": [nn.AvgPool2d(2), lambda x: F.avg_pool2d(x, (2, 2)), lambda x: F.adaptive_avg_pool2d(x, (2, 2)), nn.AdaptiveAvgPool2d(2)],
    "mean": [
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: torch.mean(x, dim=[-1, -2], keepdim=True),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        nn.AdaptiveAvgPool2d((1, 1)),
        lambda x: F.avg_pool2d(x, x.shape[2:]),
        nn.AvgPool2d(4),
    ],
    "resize": [
        nn.Upsample(scale_factor=2),
        nn.UpsamplingNearest2d(scale_factor=2),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=(8, 8), mode="nearest"),
        lambda x: F.interpolate(x, 8),
    ],
    "resize by lines": [
        nn.Upsample((8, 8), mode="bilinear"),
        lambda x: F.interpolate(x, scale_factor=(2.0, 2.0), mode="bilinear", align_corners=False),
    ],
    "concat": [lambda x: torch.cat([x, x], 1), lambda x: torch.concat((x, x), dim=1), lambda x: torch.cat((x, x), -3)],
    "stack": [lambda x: torch.stack([x, x], 1), lambda x: torch.stack((x, x), dim=-4)],
    "flatten": [nn.Flatten(), lambda x: x.flatten(1), lambda x: torch.flatten(x, 1), lambda x: x.view(x.size(0), -1), lambda x: x.reshape(x.shape[0], 64)],
    "permute": [lambda x: x.permute(0, 1, 3, 2), lambda x: torch.permute(x, (0, 1, 3, 2)), lambda x: x.transpose(2, 3), lambda x: torch.transpose(x, -1, -2), lambda x: x.mT, lambda x: x.swapaxes(2, 3)],
    "unsqueeze": [lambda x: x.unsqueeze(1), lambda x: torch.unsqueeze(x, 1), lambda x: x[:, None], lambda x: x.reshape(-1, 1, 4, 4, 4)],
    "chunk": [lambda x: x.chunk(2, 1), lambda x: torch.chunk(x, 2, dim=1), lambda x: x.split(2, 1), lambda x: torch.split(x, [2, 2], 1), lambda x: (x[:, :2], x[:, 2:])],
    "slice": [lambda x: x[:, 1:3], lambda x: x.narrow(1, 1, 2), lambda x: x[:, 1:-1], lambda x: x[:, 1:3, ...]],
    "select": [lambda x: x[:, 1], lambda x: x.select(1, 1), lambda x: x.unbind(1)[1], lambda x: x[:, -3]],
    "pad": [lambda x: F.pad(x, (1, 2)), nn.ConstantPad2d((1, 2, 0, 0), 0.0), nn.ZeroPad2d((1, 2, 0, 0)), lambda x: F.pad(x, (1, 2, 0, 0), "constant", 0.0)],
    "channel_shuffle": [
        nn.ChannelShuffle(2),
        lambda x: F.channel_shuffle(x, 2),
        lambda x: x.view(x.shape[0], 2, 2, 4, 4).transpose(1, 2).reshape(x.shape[0], 4, 4, 4),
    ],
    "pixel_shuffle": [nn.PixelShuffle(2), lambda x: F.pixel_shuffle(x, 2)],
    "pixel_unshuffle": [nn.PixelUnshuffle(2), lambda x: F.pixel_unshuffle(x, 2)],
    "nothing": [nn.Identity(), lambda x: x, lambda x: x.contiguous(), lambda x: x.clone(), lambda x: F.dropout(x, training=False), nn.Dropout(), lambda x: x.to(torch.float32), lambda x: x.detach()],
}  # fmt: skip


def canonical(module: Module) -> Module:
    PassManager([Canonicalize(), FoldConstants(), EliminateDeadCode()]).run(module, PassContext())
    return module


def image() -> Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_the_same_operator(name: str) -> None:
    found: dict[str, str] = {}
    for index, spelling in enumerate(SPELLINGS[name]):
        model = Spelled(spelling).eval()
        for route, subject in (("fx", model), ("export", _exported(model))):
            module = canonical(capture(subject, image()).module)
            assert all(node.op != "custom" for node in module.main.nodes), f"spelling {index}: {print_module(module)}"
            found[f"spelling {index} by {route}"] = module_hash(module)
    different = [key for key, value in found.items() if value != next(iter(found.values()))]
    assert not different


def _exported(model: nn.Module) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", min=1, max=65536)},)
    return torch.export.export(model, (image(),), dynamic_shapes=shapes)
