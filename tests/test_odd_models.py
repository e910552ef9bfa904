"""Models of odd form: many inputs and outputs, shared modules, constants, nothing to quantize. Every form agrees on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.errors import UnsupportedError


def images(channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, 6, 6, generator=torch.Generator().manual_seed(channels))


class Convolution(nn.Module):
    """Base: one convolution that keeps the size of the image."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)


class TwoInputs(Convolution):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x) + self.conv(y)  # type: ignore[no-any-return]


class NestedOutputs(Convolution):
    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.conv(x)
        return {"logits": y, "more": (y.relu(), [y])}


class UnusedInput(Convolution):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class InputAsOutput(Convolution):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.conv(x)


class ConstantOutput(Convolution):
    def __init__(self) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.arange(3.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.anchors * 2


class Difference(Convolution):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(1 - self.conv(x) - x.mean((1, 2, 3), keepdim=True))


class SharedModule(Convolution):
    def __init__(self) -> None:
        super().__init__(4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = functional.relu(self.norm(self.conv(x))) + x
        return x


class SqueezeAndExcite(Convolution):
    def __init__(self) -> None:
        super().__init__(4)
        self.gate = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(y, 1)))


def all_zero() -> nn.Module:
    model = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)  # type: ignore[arg-type]  # it has one
    return model


class Resized(Convolution):
    """Averages and interpolates to sizes that do not divide one another."""

    def __init__(self, *sizes: object, **options: object) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((4, 9))
        self.sizes, self.options = sizes, options

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.conv(x))
        z = functional.interpolate(y, *self.sizes, **self.options)  # type: ignore[arg-type]
        return self.pool(z)  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "two inputs": (TwoInputs, (images(), images() + 1)),
    "nested outputs": (NestedOutputs, (images(),)),
    "an input that nobody reads": (UnusedInput, (images(), torch.ones(2, 5))),
    "an input that is an output": (InputAsOutput, (images(),)),
    "an output that is a constant": (ConstantOutput, (images(),)),
    "nothing to compute": (nn.Identity, (images(),)),
    "a module called three times": (SharedModule, (images(4),)),
    "a product with a broadcast gate": (SqueezeAndExcite, (images(4),)),
    "weights that are zero": (all_zero, (images(),)),
    "a batch of one": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), (images(batch=1),)),
    "batch norm of features": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)),
        (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),),
    ),
    "batch norm in front of padding": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
        (images(),),
    ),
    "nearest pixels": (lambda: Resized(size=(11, 4), mode="nearest"), (images(),)),
    "between pixels": (lambda: Resized(size=(11, 13), mode="bilinear"), (images(),)),
    "between pixels, by corners": (lambda: Resized(size=(8, 13), mode="bilinear", align_corners=True), (images(),)),
    "twice the size": (lambda: Resized(scale_factor=2, mode="bilinear"), (images(),)),
    "half the size": (lambda: Resized(scale_factor=0.5, mode="nearest"), (images(),)),
    "a convolution of sequences": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3, stride=2, padding=1, groups=1), nn.BatchNorm1d(8), nn.ReLU()),
        (torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0)),),
    ),
    "a convolution of volumes": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU6(), nn.Conv3d(4, 4, 1, groups=4)
        ),
        (torch.randn(2, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)),),
    ),
    "a transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        (images(),),
    ),
    "transposed convolutions in groups": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 8, 2, 2, groups=2), nn.BatchNorm2d(8), nn.ReLU6()),
        (images(4),),
    ),
    "differences": (Difference, (images(),)),
    "a pooling first": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)), (images(),)),
    "one channel and one pixel": (lambda: nn.Conv2d(1, 1, 1), (torch.full((3, 1, 1, 1), 0.5),)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["int8_dsp", "int8_dsp_per_channel", "ort_cpu"])
def test_every_form_agrees(name: str, target: str) -> None:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model = make().eval()
    compiled = qcompiler.compile(model, target, example_inputs=inputs, calibration_data=[inputs])
    assert compiled.verification is not None
    assert compiled.verification.passed
    bigger = tuple(torch.cat([x, x.flip(0), x]) for x in inputs)
    results = [flat(run(*bigger)) for run in (compiled.simulate, compiled.run, compiled.module())]
    with torch.no_grad():
        expected = flat(model(*bigger))
    for result in results:
        assert len(result) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    for found, exact in zip(results[0], expected, strict=True):
        assert found.shape == exact.shape
        assert float((found - exact).abs().max()) <= 0.1 * float(exact.abs().max()) + 1e-6


def flat(item: object) -> list[Tensor]:
    match item:
        case Tensor():
            return [item]
        case dict():
            return [leaf for part in item.values() for leaf in flat(part)]
        case tuple() | list():
            return [leaf for part in item for leaf in flat(part)]
    raise AssertionError(item)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "bags": (lambda: nn.EmbeddingBag(5, 4), torch.zeros(2, 3, dtype=torch.long), "'embedding_bag' has no operator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_target_lacks_is_refused_by_name_and_place(name: str) -> None:
    make, x, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message) as caught:
        qcompiler.compile(nn.Sequential(make()).eval(), example_inputs=x, calibration_data=[x])
    assert "0" in str(caught.value).partition("(at ")[2]


@pytest.mark.parametrize("effort", ["default", "best"])
@pytest.mark.parametrize("target", ["int8_dsp_per_channel", "w4a8_npu", "tflite_int8"])
def test_one_vector_without_a_batch(target: str, effort: str) -> None:
    """Channels are the only axis."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    data = [torch.randn(3) for _ in range(8)]
    compiled = qcompiler.compile(model, target, calibration_data=data, effort=effort)  # type: ignore[arg-type]
    assert compiled.verification is not None and compiled.verification.passed
    with torch.no_grad():
        expected = torch.stack([model(x) for x in data])
    found = torch.stack([part for x in data for part in flat(compiled.run(x))])
    assert float((found - expected).square().mean()) < 0.01 * float(expected.square().mean())


def test_one_vector_trains_and_is_analyzed() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), [torch.randn(3) for _ in range(8)]
    assert qcompiler.prepare_qat(model, calibration_data=data)(data[0]).shape == (2,)
    assert qcompiler.analyze(model, "int8_dsp", data).scores["quantized"] > 20.0
