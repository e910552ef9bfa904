"""Six small networks for the pictures of `rendered`, and twins of two of them that are hard to quantize.

    mobilenet        inverted residuals, ReLU6: 24 layers
    mobilenet_relu   the same with ReLU, trained as such: what its hard twin is made of
    resnet           basic blocks
    efficientnet     inverted residuals with squeeze-and-excite and SiLU
    mobilenet_v3     inverted residuals with ReLU, then with hardswish; gates that are hard sigmoids
    unet             encoder and decoder with concatenations: one transposed convolution, one resize

All have batch norms. Their weights are committed next to this file and are never trained again, so that tables compare
quantization on fixed networks.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rendered import CLASSES, FAMILIES

__all__ = ["NETWORKS", "TWINS", "Block", "hard_twin", "load", "pairs", "weights_digest", "weights_of"]

WEIGHTS = Path(__file__).with_name("weights")
DECADES = 3.0
"""Range of the factors of a hard twin, in decades."""


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias that keeps the size at stride 1, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class SqueezeExcite(nn.Module):
    """Each channel times a gate that follows from the means of all: x * gate(W2 activation(W1 mean(x))).

    Args:
        channels: Number of channels of the input.
        squeezed: Number of channels between the two layers.
        activation: Function after the first layer.
        gate: Function after the second layer, 0 to 1.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        activation: Callable[[Tensor], Tensor] = F.silu,
        gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.activation, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return x * self.gate(self.expand(self.activation(self.reduce(self.pool(x)))))


class Block(nn.Module):
    """Layers with a shortcut around them, and an activation after the sum if there is one.

    Args:
        body: The layers.
        shortcut: Modules on the shortcut of the input; None: no shortcut.
        activation: Activation after the sum.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Module | None, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]."""
        y: Tensor = self.body(x)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return y if self.activation is None else self.activation(y)


Excite = Callable[[int, int], SqueezeExcite]
"""Makes the squeeze-and-excite of a block: of the channels between its layers, and of its input."""


def inverted_residual(
    inputs: int,
    outputs: int,
    stride: int,
    expansion: int,
    activation: type[nn.Module],
    *,
    excite: Excite | None = None,
    kernel: int = 3,
) -> Block:
    """Expand 1x1, depthwise, squeeze and excite, project 1x1 (Sandler et al. 2018, arXiv:1801.04381)."""
    hidden = inputs * expansion
    body = nn.Sequential(
        *conv_bn(inputs, hidden, 1),
        activation(),
        *conv_bn(hidden, hidden, kernel, stride, groups=hidden),
        activation(),
        *([excite(hidden, inputs)] if excite else []),
        *conv_bn(hidden, outputs, 1),
    )
    return Block(body, nn.Identity() if stride == 1 and inputs == outputs else None)


def basic_block(inputs: int, outputs: int, stride: int) -> Block:
    """Two convolutions 3x3 and a shortcut (He et al. 2016, arXiv:1512.03385)."""
    body = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU(), *conv_bn(outputs, outputs, 3))
    same = stride == 1 and inputs == outputs
    shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))
    return Block(body, shortcut, nn.ReLU())


def _classifier(features: list[nn.Module], channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Sequential(*features), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def _mobile(
    stages: tuple[tuple[int, int, int, int], ...],
    stem: int,
    head: int,
    activation: type[nn.Module],
    excite: Excite | None = None,
) -> nn.Sequential:
    """Stages are (expansion, output channels, blocks, stride of the first)."""
    features: list[nn.Module] = [*conv_bn(3, stem, 3, 2), activation()]
    channels = stem
    for expansion, outputs, count, first_stride in stages:
        for index in range(count):
            stride = first_stride if index == 0 else 1
            features.append(inverted_residual(channels, outputs, stride, expansion, activation, excite=excite))
            channels = outputs
    features += [*conv_bn(channels, head, 1), activation()]
    return _classifier(features, head)


def mobilenet(activation: type[nn.Module] = nn.ReLU6) -> nn.Sequential:
    """16x16 -> 8x8 -> 4x4 pixels, 12 to 240 channels."""
    return _mobile(((3, 12, 1, 1), (4, 20, 3, 2), (6, 40, 3, 2)), 12, 160, activation)


def resnet() -> nn.Sequential:
    """16x16 -> 8x8 -> 4x4 pixels, 16 to 64 channels."""
    blocks = [basic_block(16, 16, 1), basic_block(16, 32, 2), basic_block(32, 64, 2)]
    return _classifier([*conv_bn(3, 16, 3, 2), nn.ReLU(), *blocks], 64)


def efficientnet() -> nn.Sequential:
    """16x16 -> 8x8 -> 4x4 pixels, 12 to 240 channels."""
    stages = ((3, 12, 1, 1), (4, 20, 2, 2), (6, 40, 2, 2))
    return _mobile(stages, 12, 160, nn.SiLU, lambda hidden, inputs: SqueezeExcite(hidden, max(4, inputs // 4)))


def mobilenet_v3() -> nn.Sequential:
    """16x16 -> 8x8 -> 4x4 pixels, 12 to 160 channels; ReLU at first, hardswish later (Howard et al. 2019).

    Source: arXiv:1905.02244, table 2: gates on the first block and on all with kernels of 5x5, whose inner layer has a
    quarter of the channels; a hidden layer after the mean.
    """

    def excite(hidden: int, inputs: int) -> SqueezeExcite:  # squeezes from the wide side
        return SqueezeExcite(hidden, hidden // 4, F.relu, F.hardsigmoid)

    blocks = [
        inverted_residual(12, 12, 1, 3, nn.ReLU, excite=excite),
        inverted_residual(12, 20, 2, 4, nn.ReLU),
        inverted_residual(20, 20, 1, 4, nn.ReLU),
        inverted_residual(20, 40, 2, 4, nn.Hardswish, excite=excite, kernel=5),
        inverted_residual(40, 40, 1, 4, nn.Hardswish, excite=excite, kernel=5),
        inverted_residual(40, 40, 1, 4, nn.Hardswish, excite=excite, kernel=5),
    ]
    stem, last = [*conv_bn(3, 12, 3, 2), nn.Hardswish()], [*conv_bn(40, 120, 1), nn.Hardswish()]
    mean = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*stem, *blocks, *last, *mean, nn.Linear(120, 64), nn.Hardswish(), nn.Linear(64, CLASSES))


class UNet(nn.Module):
    """[N, 3, 32, 32] -> logits [N, FAMILIES, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(*conv_bn(3, 8, 3), nn.ReLU())
        self.down2 = nn.Sequential(*conv_bn(8, 20, 3, 2), nn.ReLU(), *conv_bn(20, 20, 3), nn.ReLU())
        self.down4 = nn.Sequential(*conv_bn(20, 40, 3, 2), nn.ReLU(), *conv_bn(40, 40, 3), nn.ReLU())
        self.down8 = nn.Sequential(*conv_bn(40, 64, 3, 2), nn.ReLU(), *conv_bn(64, 40, 1), nn.ReLU())
        self.up4 = nn.Sequential(*conv_bn(80, 40, 3), nn.ReLU())
        self.grow = nn.Sequential(nn.ConvTranspose2d(40, 20, 2, 2, bias=False), nn.BatchNorm2d(20), nn.ReLU())
        self.up2 = nn.Sequential(*conv_bn(40, 16, 3), nn.ReLU())
        self.up1 = nn.Sequential(*conv_bn(24, 8, 3), nn.ReLU(), nn.Conv2d(8, FAMILIES, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x1 = self.down1(x)
        x2 = self.down2(x1)
        x4 = self.down4(x2)
        y4 = self.up4(torch.cat([F.interpolate(self.down8(x4), scale_factor=2.0, mode="nearest"), x4], 1))
        y2 = self.up2(torch.cat([self.grow(y4), x2], 1))
        logits: Tensor = self.up1(torch.cat([F.interpolate(y2, scale_factor=2.0, mode="nearest"), x1], 1))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet": mobilenet,
    "mobilenet_relu": lambda: mobilenet(nn.ReLU),
    "resnet": resnet,
    "efficientnet": efficientnet,
    "mobilenet_v3": mobilenet_v3,
    "unet": UNet,
}
TWINS: dict[str, str] = {"mobilenet_hard": "mobilenet_relu", "resnet_hard": "resnet"}
"""Hard twin -> the network that it is made of."""


def weights_of(name: str) -> Path:
    """Path of the weights of a network, or of the network from which a twin is made."""
    return WEIGHTS / f"{TWINS.get(name, name)}.safetensors"


def weights_digest(name: str) -> str:
    """SHA-256 of the file of weights."""
    return hashlib.sha256(weights_of(name).read_bytes()).hexdigest()


def load(name: str) -> nn.Module:
    """A trained network, or a hard twin of one, in eval mode.

    Raises:
        FileNotFoundError: There are no weights: train the network.
    """
    model = NETWORKS[TWINS.get(name, name)]()
    model.load_state_dict(load_file(weights_of(name)))
    model.eval()
    return hard_twin(model) if name in TWINS else model


def pairs(model: nn.Module) -> Iterator[tuple[nn.BatchNorm2d, nn.Conv2d]]:
    """Batch norms of `Block`s between which and the next convolution there is only a ReLU."""
    for block in model.modules():
        if not isinstance(block, Block):
            continue
        body = list(block.body)
        for norm, relu, conv in zip(body, body[1:], body[2:], strict=False):
            if isinstance(norm, nn.BatchNorm2d) and isinstance(relu, nn.ReLU) and isinstance(conv, nn.Conv2d):
                yield norm, conv


def hard_twin(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same function with channels that differ in range by three decades.

        batch norm ──► relu ──► W     becomes     s * batch norm ──► relu ──► W / s

    with one s per channel, log-uniform over 10^-1.5 .. 10^1.5, inside of each `Block`: relu(s x) = s relu(x). What
    trained networks have of their own accord (Nagel et al. 2019, arXiv:1906.04721, figure 2) is had here on purpose. A
    ReLU6 would cut off what is scaled up, so that the twin of the mobile network is that of the one trained with ReLU.

    Args:
        model: With batch norms.
        seed: Seed for the factors.

    Returns:
        A copy; equal up to the rounding of one product per weight.
    """
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm, conv in pairs(twin):
            exponents = DECADES * (torch.rand(norm.num_features, generator=generator, dtype=torch.float64) - 0.5)
            # The ends are always there: a layer of twelve channels spans three decades as well.
            exponents[:2] = torch.tensor([-DECADES / 2, DECADES / 2])
            factors = 10.0**exponents
            norm.weight.mul_(factors.to(norm.weight))
            norm.bias.mul_(factors.to(norm.bias))
            by_input = factors.reshape(-1, 1, 1, 1) if conv.groups > 1 else factors.reshape(1, -1, 1, 1)
            conv.weight.div_(by_input.to(conv.weight))
    return twin
