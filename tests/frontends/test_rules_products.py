"""Convolutions, linear layers and matrix products of torch become operators that compute the same."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from qcompiler.frontends import capture, rules_products
from tests.support.spellings import RuleTests, Spelling, image, model_of

SPELLED: dict[str, Spelling] = {
    "conv1d": lambda x, m: F.conv1d(x.flatten(2), m.kernel[:, :2, 0], m.bias, stride=2, padding=1, groups=2),
    "conv2d": lambda x, m: F.conv2d(x, m.kernel, None, (1, 2), 2, dilation=2),
    "conv3d": lambda x, m: F.conv3d(x.unsqueeze(2), m.kernel.unsqueeze(2), m.bias, padding=(0, 1, 1)),
    "conv_transpose1d": lambda x, m: F.conv_transpose1d(x.flatten(2), m.kernel[0], m.bias[:3], stride=2),
    "conv_transpose2d": lambda x, m: F.conv_transpose2d(x, m.kernel, m.bias, 2, 1, output_padding=1),
    "conv_transpose3d": lambda x, m: F.conv_transpose3d(x.unsqueeze(2), m.kernel.unsqueeze(2), dilation=(1, 2, 1)),
    "convolution": lambda x, m: torch.convolution(x, m.kernel, m.bias, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
    "linear": lambda x, m: F.linear(x, m.kernel[:, :, 0, 1], m.bias),
    "matmul": lambda x, m: torch.matmul(x, x.transpose(2, 3)),
    "mm": lambda x, m: torch.mm(x[:, :, 0, 0], m.kernel[:, :, 0, 1]),
    "addmm": lambda x, m: torch.addmm(m.bias, x[:, :, 0, 0], m.kernel[:, :, 0, 1]),
}

SAME: dict[str, list[Spelling]] = {
    "conv2d": [
        lambda x, m: F.conv2d(x, m.kernel, m.bias, padding=1),
        lambda x, m: torch.conv2d(x, m.kernel, m.bias, padding=(1, 1)),
        lambda x, m: F.conv2d(x, m.kernel, m.bias, padding="same"),
        lambda x, m: F.conv2d(F.pad(x, (1, 1, 1, 1)), m.kernel, m.bias),
        lambda x, m: torch.convolution(x, m.kernel, m.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ],
    "conv2d without padding": [
        lambda x, m: F.conv2d(x, m.kernel, padding="valid"),
        lambda x, m: F.conv2d(x, m.kernel),
    ],
    "conv_transpose2d": [
        lambda x, m: F.conv_transpose2d(x, m.kernel, None, 2, 1, 1),
        lambda x, m: torch.convolution(x, m.kernel, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    ],
    "linear": [
        lambda x, m: F.linear(x, m.kernel[:, :, 0, 0], m.bias),
        lambda x, m: torch._C._nn.linear(x, m.kernel[:, :, 0, 0], m.bias),
    ],
    "linear in two dimensions": [
        lambda x, m: F.linear(x[:, :, 0, 0], m.kernel[:, :, 0, 0], m.bias),
        lambda x, m: torch.addmm(m.bias, x[:, :, 0, 0], m.kernel[:, :, 0, 0].t()),
    ],
    "linear without bias": [
        lambda x, m: F.linear(x[:, :, 0, 0], m.kernel[:, :, 0, 0]),
        lambda x, m: torch.mm(x[:, :, 0, 0], m.kernel[:, :, 0, 0].t()),
    ],
    "matmul": [lambda x: x @ x, lambda x: torch.matmul(x, x), lambda x: x.matmul(x)],
    "bmm": [lambda x: torch.bmm(x[:, 0], x[:, 1]), lambda x: x[:, 0] @ x[:, 1]],
}

REFUSED: dict[str, tuple[Spelling, str]] = {
    "beta": (
        lambda x, m: torch.addmm(m.bias, x[:, :, 0, 0], m.kernel[:, :, 0, 1], beta=2),
        "addmm with beta=2 and alpha=1",
    ),
    "alpha": (
        lambda x, m: torch.addmm(m.bias, x[:, :, 0, 0], m.kernel[:, :, 0, 1], alpha=0.5),
        "addmm with beta=1 and alpha=0.5",
    ),
}


class TestRules(RuleTests):
    file, spelled, same, refused = rules_products, SPELLED, SAME, REFUSED


def test_padding_of_an_even_kernel_is_asymmetric() -> None:
    layer = nn.Conv2d(4, 4, (2, 4), padding="same")
    (node,) = [x for x in capture(model_of(layer), image()).module.main.nodes if x.op == "conv2d"]
    assert node.attributes["padding"] == (0, 1, 1, 2)
