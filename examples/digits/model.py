"""A MobileNetV2-style classifier of 8x8 scans: small enough to train in a minute, rich enough to be hard to quantize.

It holds what makes mobile networks difficult in eight bits: depthwise convolutions with uneven channel ranges, batch
norm everywhere, clipped activations, residual additions of differently scaled branches, and a global average.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["CLASSES", "WEIGHTS", "DigitsNet", "InvertedResidual", "load_digits_net"]

CLASSES = 10
WEIGHTS = Path(__file__).with_name("weights.safetensors")

# (expansion, output channels, blocks, stride of the first block): 8x8 -> 8x8 -> 4x4 -> 2x2.
STAGES = ((1, 16, 1, 1), (4, 24, 3, 2), (4, 56, 3, 2))
STEM_CHANNELS = 16
HEAD_CHANNELS = 256


def conv_bn_relu6(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, padded to keep the size at stride 1; batch norm; ReLU6."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; with a shortcut when the shape does not change.

    Source: Sandler et al. 2018, arXiv:1801.04381, section 3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [] if expansion == 1 else [conv_bn_relu6(in_channels, hidden, 1)]
        self.branch = nn.Sequential(
            *expand,
            conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]."""
        y: Tensor = self.branch(x)
        return x + y if self.shortcut else y


class DigitsNet(nn.Module):
    """[N, 1, 8, 8] in [0, 1] (ink / 16) -> logits [N, 10].

    Attributes:
        example_input_array: One blank scan, so that tools find the input's shape. A plain attribute, not a buffer.
    """

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        blocks: list[nn.Module] = [conv_bn_relu6(1, STEM_CHANNELS, 3)]
        channels = STEM_CHANNELS
        for expansion, out_channels, count, first_stride in STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, out_channels, stride, expansion))
                channels = out_channels
        blocks.append(conv_bn_relu6(channels, HEAD_CHANNELS, 1))
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(HEAD_CHANNELS, CLASSES)
        self.example_input_array = torch.zeros(1, 1, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 8, 8] -> logits [N, 10]."""
        x = torch.flatten(self.pool(self.features(x)), 1)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


def load_digits_net(weights: Path = WEIGHTS) -> DigitsNet:
    """The trained network, in eval mode.

    Raises:
        FileNotFoundError: When `weights` does not exist.
    """
    model = DigitsNet()
    model.load_state_dict(load_file(weights))
    return model.eval()
