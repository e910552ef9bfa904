"""Networks with one planted illness each: accurate in float, poor in integers, with a known layer and cause.

All read digits of 8x8 pixels. Features are random, and the last layer is fitted to them by least squares, so that a
network takes no training. An illness changes no result of the float model, or is part of the call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.digits.data import DigitsData, load_data
from qcompiler.analysis.findings import Cause


@functools.cache
def digits() -> DigitsData:
    return load_data()


@dataclass(frozen=True)
class Case:
    """A network and its illness.

    Args:
        model: The network.
        data: Calibration data.
        cause: Planted cause.
        layers: Names of layers, one of which a finding has to name.
        scores: Function from the outputs of the model to scores of the classes.
        options: Other keywords of the analysis and of compile.
        target: Target.
    """

    model: nn.Module
    data: list[Tensor]
    cause: Cause
    layers: tuple[str, ...]
    scores: Callable[[Tensor], Tensor] = field(default=lambda outputs: outputs)
    options: Mapping[str, object] = field(default_factory=dict)
    target: str = "int8_dsp"

    def evaluate(self, model: Callable[[Tensor], object]) -> float:
        """Accuracy in percent on half of the test images."""
        images, labels = digits().test_images[::2], digits().test_labels[::2]
        outputs = model(images)
        assert isinstance(outputs, Tensor)
        return 100.0 * float((self.scores(outputs).argmax(1) == labels).double().mean())


class Net(nn.Module):
    """Two convolutions with batch norms and an activation, and a linear head."""

    def __init__(self, act: Callable[[Tensor], Tensor] = functional.relu, seed: int = 0, channels: int = 24) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.norm1 = nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)
        self.head = nn.Linear(32 * 16, 10)
        self.act = act

    def features(self, x: Tensor) -> Tensor:
        """[N, 512]."""
        y = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(y))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        scores: Tensor = self.head(self.features(x))
        return scores


def bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The bias, which may be changed in place."""
    assert layer.bias is not None
    return layer.bias


def batches() -> list[Tensor]:
    images = digits().calibration_images
    return [images[:128], images[128:256]]


def settle(model: nn.Module) -> None:
    """Give batch norms the statistics of the images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(digits().calibration_images)
    model.eval()


def fit(model: Net) -> Net:
    """Fit the head by ridge regression."""
    with torch.no_grad():
        x = model.eval().features(digits().train_images).double()
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        wanted = functional.one_hot(digits().train_labels, 10).double()
        ridge = 0.3 * torch.eye(x.shape[1], dtype=torch.float64) * x.square().mean()
        solved = torch.linalg.solve(x.T @ x + ridge * 10, x.T @ wanted)
        model.head.weight.copy_(solved[:-1].T.float())
        model.head.bias.copy_(solved[-1].float())
    return model


def trained(**options: object) -> Net:
    model = Net(**options)  # type: ignore[arg-type]
    settle(model)
    return fit(model)


def outlier_in_weights() -> Case:
    """Two channels are equal, and large weights of both cancel each other."""
    model = Net(functional.silu)
    with torch.no_grad():
        model.conv1.weight[1], bias(model.conv1)[1] = model.conv1.weight[0], bias(model.conv1)[0]
    settle(model)
    with torch.no_grad():
        model.conv2.weight[3, 0, 1, 1] += 100.0
        model.conv2.weight[3, 1, 1, 1] -= 100.0
    return Case(fit(model), batches(), Cause.WEIGHT_OUTLIER, ("conv2",))


def outlier_in_activations() -> Case:
    """One channel has a large offset, which the next bias takes away."""
    model = trained(act=functional.silu)
    with torch.no_grad():
        model.norm2.bias[5] += 1000.0
    with torch.no_grad():
        columns = model.head.weight.reshape(10, 32, 16)[:, 5].sum(1)
        bias(model.head).sub_(1000.0 * columns)
    return Case(model, batches(), Cause.ACTIVATION_OUTLIER, ("conv2", "norm2", "silu_1"))


class Residual(Net):
    """A stream of residual additions with channels of very different size."""

    def __init__(self) -> None:
        super().__init__(channels=32)
        self.branches = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))
        self.scale = nn.Parameter(torch.logspace(-1.0, 1.0, 32).reshape(1, -1, 1, 1), requires_grad=False)

    def features(self, x: Tensor) -> Tensor:
        """[N, 512]."""
        y = self.norm1(self.conv1(x))
        for branch in self.branches:
            y = y + branch(functional.relu(y))
        return functional.relu(self.conv2(functional.relu(y))).flatten(1)


def residual_stream() -> Case:
    """Channels of the stream are scaled, and the layers that read it scale back."""
    model = Residual()
    with torch.no_grad():
        scale = model.scale.flatten()
        for branch in (*model.branches, model.conv2):
            assert isinstance(branch, nn.Conv2d)
            branch.weight.div_(scale.reshape(1, -1, 1, 1))
            if branch is not model.conv2:
                branch.weight.mul_(scale.reshape(-1, 1, 1, 1))
                bias(branch).mul_(scale)
        model.norm1.weight.mul_(scale)
        model.norm1.bias.mul_(scale)
    settle(model)
    return Case(fit(model), batches(), Cause.RESIDUAL, ("add", "add_1", "add_2"))


class Detector(Net):
    """Boxes and scores in one output."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4 + 10]."""
        features = self.features(x)
        return torch.cat([640.0 * features[:, :4].sigmoid(), self.head(features).sigmoid()], 1)


def concat() -> Case:
    model = Detector()
    settle(model)
    return Case(fit(model), batches(), Cause.CONCAT, ("concat", "cat"), scores=lambda outputs: outputs[:, 4:])


def preprocessing() -> Case:
    return Case(trained(), [255.0 * x for x in batches()], Cause.PREPROCESSING, ("x",))


def dead_batch_norm() -> Case:
    """A channel that reads a channel of zeros has no variance, and its weight is divided by almost nothing."""
    model = Net(functional.silu)
    settle(model)
    with torch.no_grad():
        model.norm1.weight[2], model.norm1.bias[2] = 0.0, 0.0
        model.conv2.weight[7] = 0.0
        model.conv2.weight[7, 2] = 0.3  # reads the channel that is 0
        bias(model.conv2)[7] = 0.0
    settle_second(model)
    return Case(fit(model), batches(), Cause.DEAD_CHANNEL, ("conv2", "norm2"))


def settle_second(model: Net) -> None:
    """Statistics of the second batch norm anew."""
    with torch.no_grad():
        model.norm2.train()(model.conv2(model.act(model.norm1(model.conv1(digits().calibration_images)))))
    model.norm2.eval()


class Gated(Net):
    """Features times gates, of which one is far beyond where a sigmoid changes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(24, 24, 1)
        with torch.no_grad():
            self.gate.weight *= 6.0
            bias(self.gate)[0] = 4000.0

    def features(self, x: Tensor) -> Tensor:
        """[N, 512]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = y * torch.sigmoid(self.gate(y))
        return functional.relu(self.norm2(self.conv2(y))).flatten(1)


def saturating_sigmoid() -> Case:
    model = Gated()
    settle(model)
    return Case(fit(model), batches(), Cause.SATURATION, ("gate", "sigmoid"))


class Depthwise(Net):
    """A depthwise layer between the two convolutions."""

    def __init__(self) -> None:
        super().__init__(act=functional.silu)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        with torch.no_grad():
            self.depthwise.weight *= torch.logspace(-1.5, 1.5, 24).reshape(-1, 1, 1, 1)
            self.conv2.weight /= torch.logspace(-1.5, 1.5, 24).reshape(1, -1, 1, 1)

    def features(self, x: Tensor) -> Tensor:
        """[N, 512]."""
        y = self.depthwise(self.act(self.norm1(self.conv1(x))))
        return self.act(self.norm2(self.conv2(y))).flatten(1)


def depthwise() -> Case:
    """Without equalization, which would mend it."""
    model = Depthwise()
    settle(model)
    return Case(fit(model), batches(), Cause.DEPTHWISE, ("depthwise",), options={"effort": "fast"})


def few_bits() -> Case:
    return Case(trained(), batches(), Cause.FEW_BITS, ("conv1",), options={"overrides": {"conv1": 3}})


def untrained_batch_norms() -> Case:
    return Case(fit(Net()), batches(), Cause.UNTRAINED, ("norm1", "norm2"))


CASES: dict[str, Callable[[], Case]] = {
    item.__name__: item
    for item in (
        outlier_in_weights,
        outlier_in_activations,
        residual_stream,
        concat,
        preprocessing,
        dead_batch_norm,
        saturating_sigmoid,
        depthwise,
        few_bits,
        untrained_batch_norms,
    )
}
