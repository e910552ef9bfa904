"""Tensors from files: arrays, and folders of images, as the command line takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qcompiler.errors import ArtifactError, InputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
"""Endings of the files that a folder of images is searched for."""

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0,), (1.0,)),
    "signed": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation that are taken out of pixels from 0 to 1; `signed` gives -1 to 1."""


def load_tensors(path: Path) -> tuple[Tensor, ...]:
    """The arrays of a file, in the order of their names' appearance.

    Args:
        path: `.npz`, `.npy`, `.safetensors`, or `.pt` and `.pth` that hold tensors alone.

    Raises:
        InputError: There is no such file, it is of another kind, or it holds something else.
        ArtifactError: It cannot be read.
    """
    try:
        match path.suffix:
            case ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    return tuple(torch.from_numpy(arrays[name]) for name in arrays.files)
            case ".npy":
                return (torch.from_numpy(np.load(path, allow_pickle=False)),)
            case ".safetensors":
                return tuple(load_file(path).values())
            case ".pt" | ".pth":
                item = torch.load(path, weights_only=True, map_location="cpu")  # noqa: TID251  # tensors only: runs no code
                items = list(item.values()) if isinstance(item, dict) else item
                items = items if isinstance(items, tuple | list) else [items]
                if all(isinstance(x, Tensor) for x in items):
                    return tuple(items)
                raise InputError(f"{path} holds something else than tensors", expected="a tensor, or several")
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}") from None
    except (OSError, ValueError, EOFError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    raise InputError(
        f"{path.name!r} is of an unknown kind",
        expected=".npz, .npy, .safetensors, .pt, or for calibration a folder of images",
    )


def batches(tensors: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    """The samples of `tensors` in batches of `size`; one tuple of arguments per batch."""
    count = min((len(x) for x in tensors if x.dim()), default=0)
    return [tuple(x[start : start + size] for x in tensors) for start in range(0, count, size)]


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder and of the folders in it, in the order of their names, a batch at a time.

    An image is scaled until it covers the size, bilinear, and its middle is cut out.

    Args:
        folder: Where the images are.
        shape: Channels, height and width of what the model takes: 1 channel is grey, 3 are red, green and blue.
        normalize: One of `NORMALIZATIONS`.
        batch_size: Images per batch.

    Raises:
        InputError: The folder holds no image, or the model takes no images.
    """

    folder: Path
    shape: tuple[int, int, int]
    normalize: str = "unit"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.shape[0] not in (1, 3):
            raise InputError(f"the model takes {self.shape[0]} channels", expected="1 for grey images, 3 for coloured")
        if not self.files:
            raise InputError(f"the folder {str(self.folder)!r} holds no image", expected=", ".join(IMAGES))

    @property
    def files(self) -> list[Path]:
        """The images, by name."""
        return sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in IMAGES)

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        """Batches, float32 [B, C, H, W]; an image is read when its batch is due."""
        files = self.files
        for start in range(0, len(files), self.batch_size):
            yield (torch.stack([self._read(path) for path in files[start : start + self.batch_size]]),)

    def _read(self, path: Path) -> Tensor:
        try:
            from PIL import Image, ImageOps, UnidentifiedImageError
        except ImportError:
            raise InputError("images are read with Pillow, which is not here", fix="pip install pillow") from None
        channels, height, width = self.shape
        try:
            with Image.open(path) as image:
                fitted = ImageOps.fit(
                    image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BILINEAR
                )
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InputError(f"the image {path} cannot be read: {error}", fix="Remove or repair it.") from error
        pixels = torch.from_numpy(np.asarray(fitted, np.float32).reshape(height, width, channels).copy())
        mean, std = (torch.tensor(_spread(part, channels)) for part in NORMALIZATIONS[self.normalize])
        return ((pixels / 255.0 - mean) / std).permute(2, 0, 1).contiguous()


def _spread(values: Sequence[float], channels: int) -> list[float]:
    """One number per channel; a grey image takes the mean of three."""
    if len(values) in (1, channels):
        return list(values) * (channels // len(values))
    return [sum(values) / len(values)] * channels
