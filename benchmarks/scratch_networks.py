"""Small networks in the shape of ResNet-18, MobileNetV2 and VGG, for training from scratch on `textured`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.networks import basic_block, conv_bn, inverted_residual
from benchmarks.textured import CLASSES

__all__ = ["NETWORKS", "new"]


def resnet18() -> nn.Module:
    """Four stages of two basic blocks each, 16 to 128 channels (He et al. 2016, arXiv:1512.03385)."""
    layers: list[nn.Module] = [*conv_bn(3, 16, 5, 2), nn.ReLU(), nn.MaxPool2d(2)]
    channels = 16
    for width, stride in ((16, 1), (32, 2), (64, 2), (128, 2)):
        layers += [basic_block(channels, width, stride), basic_block(width, width, 1)]
        channels = width
    return _classified(layers, channels)


def mobilenet_v2() -> nn.Module:
    """Inverted residuals of expansion 3, 12 to 64 channels (Sandler et al. 2018, arXiv:1801.04381)."""
    layers: list[nn.Module] = [*conv_bn(3, 12, 3, 2), nn.ReLU6()]
    channels = 12
    for width, count, stride in ((24, 2, 2), (32, 3, 2), (64, 2, 2)):
        for index in range(count):
            layers.append(inverted_residual(channels, width, stride if index == 0 else 1, 3, nn.ReLU6))
            channels = width
    return _classified([*layers, *conv_bn(channels, 160, 1), nn.ReLU6()], 160)


def vgg() -> nn.Module:
    """Convolutions and pooling without shortcuts, two linear layers (Simonyan and Zisserman 2015, arXiv:1409.1556)."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((16, 1), (32, 1), (64, 2), (128, 2)):
        for _ in range(count):
            # The first stride, which VGG does not have, makes a step three times as fast.
            layers += [*conv_bn(channels, width, 3, 2 if channels == 3 else 1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def _classified(layers: list[nn.Module], channels: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "vgg": vgg}


def new(name: str, seed: int) -> nn.Module:
    """A network with random weights; the same ones for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name]()
