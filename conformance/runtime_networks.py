"""The target of ONNX Runtime's arithmetic against ONNX Runtime: whole networks, every element of every tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.rendered import render
from conformance.lines import Line, Tally
from conformance.networks import IMAGES, SEED, Network, compiled, digits, small, without_shortcuts

__all__ = ["TARGET", "lines"]

TARGET = "ort_cpu"
"""Target with ONNX Runtime's arithmetic."""
CHANNELS = 12
FUNCTIONS = (
    nn.Sigmoid,
    nn.Tanh,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.LeakyReLU,
    nn.ELU,
    nn.Softplus,
    nn.Mish,
)


class _Stack(nn.Sequential):
    """Convolutions with something between them, a global average, a linear layer."""

    def __init__(self, between: tuple[nn.Module, ...], generator: torch.Generator) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for item in between:
            layers += [nn.Conv2d(channels, CHANNELS, 3, padding=1), item]
            channels = CHANNELS
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10))
        with torch.no_grad():
            for weight in self.parameters():
                reach = 1.0 if weight.dim() == 1 else 3.0 / weight[0].numel() ** 0.5
                weight.copy_((torch.rand(weight.shape, generator=generator) - 0.5) * reach)


def _stack(*between: nn.Module) -> Network:
    return Network(_Stack(between, torch.Generator().manual_seed(SEED)).eval(), render(IMAGES, SEED).images)


def _tables() -> Network:
    return _stack(*(function() for function in FUNCTIONS))


def _pools() -> Network:
    return _stack(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), nn.Sequential(nn.ReLU6(), nn.MaxPool2d(3, 2, 1)))


def _averages() -> Network:
    return _stack(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), nn.Sequential(nn.ReLU(), nn.AvgPool2d(3, 2, 1)))


class _Elementwise(nn.Module):
    """Sums, differences and products of activations: of one shape, of a gate per channel, and of constants."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.left, self.right = (nn.Conv2d(3, CHANNELS, size, padding=size // 2) for size in (3, 1))
        self.shift = nn.Parameter(torch.rand(CHANNELS, 1, 1, generator=generator) - 0.5)
        self.gain = nn.Parameter(torch.rand(CHANNELS, 1, 1, generator=generator) + 0.5)
        with torch.no_grad():
            for layer in (self.left, self.right):
                layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) - 0.5)
                layer.bias.zero_()  # type: ignore[union-attr]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, CHANNELS]."""
        left, right = self.left(x), self.right(x)
        total, difference = torch.relu(left + right), left - right
        gate = torch.sigmoid(difference.mean((2, 3), keepdim=True))
        product = total * difference * gate
        result: Tensor = ((product - gate) * self.gain + self.shift - total).mean((2, 3))
        return result


def _elementwise() -> Network:
    return Network(_Elementwise().eval(), render(IMAGES, SEED).images)


EXACT: dict[str, Callable[[], Network]] = {
    **{name: partial(without_shortcuts, name) for name in ("mobilenet", "mobilenet_hard", "resnet", "efficientnet")},
    "unet": partial(small, "unet"),
    "tables": _tables,
    "pools": _pools,
    "additions": digits,
    "elementwise": _elementwise,
}
"""Convolutions, also depthwise and transposed ones, linear layers, sums, differences, products, concatenations, maxima,
global averages, resizing, and functions of tables."""
MEASURED: dict[str, Callable[[], Network]] = {
    # It averages real numbers in float32, and adds the zero point before it rounds.
    "window_averages": _averages,
}
"""Operators with other results in ONNX Runtime, at ties and next to them."""


def check(make: Callable[[], Network]) -> Tally:
    """The exact simulation, the graph, the program and ONNX Runtime: end to end, and layer by layer on random codes."""
    found, network = compiled(make, TARGET)
    report = found.verify(network.images)
    tally = Tally()
    for name in ("integer graph", "integer program", "onnxruntime, layer by layer", "onnxruntime, end to end"):
        form = report.form(name)
        tally.compared += form.elements
        tally.mismatches += form.differing
        if form.differing or not form.elements:
            tally.notes.append(str(form))
    return tally


def lines() -> list[Line]:
    """One line for each network."""
    exact = [Line(f"onnxruntime/{name}", partial(check, make)) for name, make in EXACT.items()]
    return exact + [Line(f"onnxruntime/{name}", partial(check, make), exact=False) for name, make in MEASURED.items()]
