"""The networks that are compiled here, each with the images that calibrate it and run through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torchvision
from torch import Tensor, nn

import qcompiler
from benchmarks import networks
from benchmarks.rendered import render
from examples.digits.data import load_data
from examples.digits.model import load_digits_net
from qcompiler.targets import Target

__all__ = ["LARGE", "SMALL", "Network", "compiled", "digits", "large", "small", "without_shortcuts"]

IMAGES, CALIBRATION, SEED = 24, 16, 5
SMALL = ("digits", *networks.NETWORKS, *networks.TWINS)
"""Networks with trained weights, which are part of the repository."""
LARGE = {"mobilenet_v2": 96, "resnet18": 64}
"""Networks of torchvision, with the side of their images. Their weights are random."""
SETTLING_PASSES = 3
"""Forward passes in train mode that give batch norms of random networks statistics that fit."""


@dataclass(frozen=True)
class Network:
    """A network and its images.

    Args:
        model: In eval mode.
        images: float32 [N, C, H, W]; the first `CALIBRATION` give ranges.
    """

    model: nn.Module
    images: Tensor


def digits() -> Network:
    """The network of the example."""
    return Network(load_digits_net(), load_data().calibration_images[:IMAGES])


def small(name: str) -> Network:
    """One of `SMALL`."""
    return digits() if name == "digits" else Network(networks.load(name), render(IMAGES, SEED).images)


def without_shortcuts(name: str) -> Network:
    """A small network whose blocks have lost what leads around them, and with it all additions."""
    network = small(name)
    for module in network.model.modules():
        if isinstance(module, networks.Block):
            module.shortcut = None
    return network


def large(name: str) -> Network:
    """One of `LARGE`, for a few images of noise."""
    size = LARGE[name]
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(4, 3, size, size, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = cast("nn.Module", getattr(torchvision.models, name)(weights=None))
        with torch.no_grad():
            for _ in range(SETTLING_PASSES):
                model.train()(torch.randn(images.shape, generator=generator))
    return Network(model.eval(), images)


def compiled(make: Callable[[], Network], target: str | Target) -> tuple[qcompiler.Compiled, Network]:
    """A network compiled for a target. The verifier is a check of its own and is not run."""
    network = make()
    data = [network.images[:CALIBRATION]]
    return qcompiler.compile(network.model, target, calibration_data=data, verify="off"), network
