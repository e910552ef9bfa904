"""Labelled images on disk: class folders or a file of labels, seeded draws, and batches of preprocessed images.

```
ROOT/val/<class>/<image>       or   ROOT/val/<image>  and a file of lines `<image> <label>`
ROOT/train/<class>/<image>     for calibration and training
```
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from qcompiler.errors import InputError

__all__ = ["DataError", "Draw", "Part", "Preprocessing", "batches", "draw", "read_classes", "read_part", "shuffled"]

SHOWN = 3
"""Number of names that a message lists."""
CROP_AREA, CROP_RATIO, CROP_TRIALS = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Share of the area and ratio of the sides of a training crop, and number of trials: those of torchvision's
`RandomResizedCrop`."""


class DataError(InputError):
    """The images or labels on disk are incomplete, unreadable or contradictory."""


@dataclass(frozen=True)
class Preprocessing:
    """The way of an image to the input of a network.

    Args:
        resize: Length of the shorter side after resizing, pixels.
        crop: Side of the square at the centre, pixels.
        interpolation: One of `nearest`, `bilinear`, `bicubic` and similar names of torchvision.
        mean: Mean to subtract from pixels in [0, 1], by channel.
        std: Standard deviation to divide by, by channel.
        squash: Whether both sides become `resize` long, whatever the ratio of the image.
        source: Origin of these values, for the reader.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False
    source: str = ""

    def __str__(self) -> str:
        resized = f"{self.resize}x{self.resize}" if self.squash else f"shorter side {self.resize}"
        spread = f"mean {', '.join(f'{x:g}' for x in self.mean)}, std {', '.join(f'{x:g}' for x in self.std)}"
        return f"{resized} ({self.interpolation}), centre crop {self.crop}, {spread}; from {self.source}"

    def centred(self, image: Image.Image) -> Tensor:
        """The input for evaluation, float32 [3, crop, crop]."""
        size = [self.resize, self.resize] if self.squash else [self.resize]
        resized = F.resize(image, size, InterpolationMode(self.interpolation), antialias=True)
        return self._normalized(F.center_crop(resized, [self.crop, self.crop]))

    def augmented(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        """The input for training, float32 [3, crop, crop]: a random part of the image, mirrored half of the time."""
        top, left, height, width = _random_crop(image.height, image.width, generator)
        size, interpolation = [self.crop, self.crop], InterpolationMode(self.interpolation)
        cut = F.resized_crop(image, top, left, height, width, size, interpolation, antialias=True)
        return self._normalized(F.hflip(cut) if torch.rand((), generator=generator) < 0.5 else cut)

    def _normalized(self, image: Image.Image) -> Tensor:
        # A copy, because torch warns about arrays that cannot be written.
        pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1).contiguous() / 255.0
        normalized: Tensor = F.normalize(pixels, list(self.mean), list(self.std))
        return normalized


def _random_crop(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of an image."""
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    for _ in range(CROP_TRIALS):
        first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        area = height * width * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * first)
        ratio = math.exp(low + (high - low) * second)
        wide, tall = math.floor(math.sqrt(area * ratio) + 0.5), math.floor(math.sqrt(area / ratio) + 0.5)
        if 0 < wide <= width and 0 < tall <= height:
            top = int(torch.randint(height - tall + 1, (), generator=generator))
            return top, int(torch.randint(width - wide + 1, (), generator=generator)), tall, wide
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


@dataclass(frozen=True)
class Part:
    """Labelled images.

    Args:
        folder: Folder of the images.
        names: Paths of the images in the folder, sorted.
        labels: Index of the class of each image.
    """

    folder: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def chosen(self, indices: Sequence[int]) -> Part:
        """The images at these indices."""
        return replace(self, names=tuple(self.names[i] for i in indices), labels=tuple(self.labels[i] for i in indices))

    def digest(self, *, sizes: bool = True) -> str:
        """Hash of the names, labels and file sizes, 16 hexadecimal digits.

        Args:
            sizes: Whether file sizes count; without them a million images take a second.
        """
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            size = (self.folder / name).stat().st_size if sizes else None
            digest.update(f"{name}\n{label} {size}\n".encode())
        return digest.hexdigest()[:16]


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of classes from a file with one name per line, in the order of the network's outputs.

    Raises:
        DataError: The file cannot be read, or a name is there twice.
    """
    names = [line.split()[0] for line in _lines(path)]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not names or twice:
        found = f"{path} has the class {twice[0]!r} twice" if twice else f"{path} is empty"
        raise DataError(found, expected="one name of a class per line")
    return tuple(names)


def read_part(folder: Path, outputs: int, *, classes: Sequence[str] | None = None, labels: Path | None = None) -> Part:
    """The labelled images of a folder.

    Args:
        folder: Folder with one folder per class, or with images that `labels` names.
        outputs: Number of outputs of the network.
        classes: Names of the classes in the order of the outputs; None: the sorted names of the class folders.
        labels: File with lines `<image> <label>`; a label is the index of an output or the name of a class.

    Raises:
        DataError: Folders, images, labels and outputs do not fit together.
    """
    if not folder.is_dir():
        inside = f"class folders in {folder}" if labels is None else f"images in {folder}"
        raise DataError(f"there is no folder {folder}", expected=inside)
    if classes is not None and len(classes) != outputs:
        raise DataError(
            f"{len(classes)} class names were given, but the network has {outputs} outputs",
            fix="Give one name per output, or set the number of outputs with --classes.",
        )
    if labels is not None:
        return _labelled(folder, labels, outputs, classes)
    folders = sorted(item.name for item in folder.iterdir() if item.is_dir())
    if not folders:
        flat = any(item.suffix.lower() in IMG_EXTENSIONS for item in folder.iterdir())
        fix = "Name the file of their labels with --labels." if flat else None
        raise DataError(f"{folder} has no class folders", expected="one folder per class", fix=fix)
    if classes is None and len(folders) != outputs:
        raise DataError(
            f"{folder} has {len(folders)} class folders, but the network has {outputs} outputs",
            fix="For a part of the classes, name all of them in the order of the outputs with --class-names.",
        )
    known = {name: index for index, name in enumerate(folders if classes is None else classes)}
    if unknown := [name for name in folders if name not in known]:
        raise DataError(f"{folder} has folders of unknown classes: {_listed(unknown)}", expected="names of classes")
    found = {name: _images_in(folder / name) for name in folders}
    if empty := [name for name, images in found.items() if not images]:
        raise DataError(f"{folder} has class folders without images: {_listed(empty)}", fix="Fill or remove them.")
    pairs = sorted((f"{name}/{image}", known[name]) for name, images in found.items() for image in images)
    return Part(folder, tuple(name for name, _ in pairs), tuple(label for _, label in pairs))


def _labelled(folder: Path, path: Path, outputs: int, classes: Sequence[str] | None) -> Part:
    known = {name: index for index, name in enumerate(classes or ())}
    lines = _lines(path)
    images = set(_images_in(folder))
    if not images:
        raise DataError(f"{folder} contains no images", expected=", ".join(IMG_EXTENSIONS))
    labels: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.rsplit(maxsplit=1)
        if len(words) < 2:
            raise DataError(
                f"a line has no label: {line!r}", where=f"{path}, line {number}", expected="<image> <label>"
            )
        name, label = words[0].strip(), words[1]
        index = known.get(label, int(label) if label.isdecimal() else -1)
        if not 0 <= index < outputs:
            expected = f"an index below {outputs}" + (", or one of the class names" if known else "")
            raise DataError(f"unknown label {label!r}", where=f"{path}, line {number}", expected=expected)
        if labels.setdefault(name, index) != index:
            raise DataError(f"{name!r} has two labels", where=f"{path}, line {number}", expected="one label per image")
    if absent := sorted(set(labels) - images):
        raise DataError(f"{path} names images that are not in {folder}: {_listed(absent)}")
    if unlabelled := sorted(images - set(labels)):
        raise DataError(f"{path} has no label for {_listed(unlabelled)} of {folder}", fix="Add or remove them.")
    names = tuple(sorted(images))
    return Part(folder, names, tuple(labels[name] for name in names))


def _images_in(folder: Path) -> list[str]:
    # scandir: it knows folders without a look at each of a million files.
    with os.scandir(folder) as entries:
        return [item.name for item in entries if item.name.lower().endswith(IMG_EXTENSIONS) and not item.is_dir()]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"the file {path} cannot be read: {reason}") from None
    return [line for line in lines if line.strip()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclass(frozen=True)
class Draw:
    """The images of a run.

    Args:
        calibration: Images that calibrate.
        measured: Images on which accuracy is measured.
        source: Folder of the calibration images: `train` or `val`.
    """

    calibration: Part
    measured: Part
    source: str

    def record(self, seed: int) -> Mapping[str, object]:
        """The draw as JSON data."""
        return {
            "seed": seed,
            "calibration": {"from": self.source, "images": list(self.calibration.names)},
            "measured": {"count": len(self.measured), "digest": self.measured.digest()},
        }


def draw(val: Part, train: Part | None, *, calibration: int, images: int | None, seed: int) -> Draw:
    """Draw calibration images and the images to measure.

    Args:
        val: Images to measure; without `train`, some of them calibrate instead.
        train: Images of which some calibrate.
        calibration: Number of calibration images.
        images: Number of images to measure; None: all.
        seed: Seed of the calibration images. A subset to measure is the same for all seeds if there is `train`.

    Raises:
        DataError: There are too few images.
    """
    pool = val if train is None else train
    left = len(val) - (calibration if train is None else 0)
    if calibration > len(pool) or (images or 1) > left:
        found = f"{len(val):,} images in {val.folder}" + (
            "" if train is None else f", {len(train):,} in {train.folder}"
        )
        wanted = f"{calibration:,} to calibrate and {images or 1:,} others to measure"
        raise DataError(f"there are too few images: {found}", expected=wanted, fix="Lower --calibration or --images.")
    if train is None:
        order = shuffled(len(val), seed)
        chosen, rest = order[:calibration], order[calibration:]
        return Draw(val.chosen(sorted(chosen)), val.chosen(sorted(rest[:images])), "val")
    chosen = shuffled(len(train), seed)[:calibration]
    measured = val if images is None else val.chosen(sorted(shuffled(len(val), 0)[:images]))
    return Draw(train.chosen(sorted(chosen)), measured, "train")


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers from 0 to below `count` in an order that only the seed decides."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


@dataclass(frozen=True)
class _Unreadable:
    """An image that a process of the loader could not read; raised in the main process, with one line."""

    found: str


class _Images(Dataset[tuple[Tensor, int] | _Unreadable]):
    """Preprocessed images.

    Args:
        part: Labelled images.
        preprocessing: The way to the network.
        seeds: Seeds of the augmentation of each image; None: evaluation.
    """

    def __init__(self, part: Part, preprocessing: Preprocessing, seeds: Sequence[int] | None) -> None:
        self.part, self.preprocessing, self.seeds = part, preprocessing, seeds

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | _Unreadable:
        path = self.part.folder / self.part.names[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some files of ImageNet have damaged EXIF data
                with Image.open(path) as file:
                    image = file.convert("RGB")
        except Exception as error:  # noqa: BLE001  # each decoder raises its own type on a broken image
            return _Unreadable(f"the image {path} cannot be read: {' '.join(str(error).split())}")
        if self.seeds is None:
            return self.preprocessing.centred(image), self.part.labels[index]
        generator = torch.Generator().manual_seed(self.seeds[index])
        return self.preprocessing.augmented(image, generator), self.part.labels[index]


def _joined(items: list[tuple[Tensor, int] | _Unreadable]) -> tuple[Tensor, Tensor] | _Unreadable:
    pairs = [item for item in items if not isinstance(item, _Unreadable)]
    broken = next((item for item in items if isinstance(item, _Unreadable)), None)
    return broken or (torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs]))


def batches(
    part: Part, preprocessing: Preprocessing, batch: int, *, workers: int = 0, seeds: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, float32 [B, 3, crop, crop], and labels, int64 [B], in the order of `part`.

    Args:
        part: Labelled images.
        preprocessing: The way to the network.
        batch: Images per batch.
        workers: Processes that read images; 0: this process.
        seeds: Seeds of the augmentation of each image; None: evaluation.

    Raises:
        DataError: An image cannot be read.
    """
    images = _Images(part, preprocessing, seeds)
    # The loader draws the seed of its processes from a generator of its own, so that torch's stays as it is.
    own = torch.Generator().manual_seed(0)
    loader = DataLoader(images, batch, num_workers=workers, collate_fn=_joined, generator=own)
    for item in loader:
        if isinstance(item, _Unreadable):
            raise DataError(item.found, fix="Repair or remove it; finished work is kept.")
        yield item
