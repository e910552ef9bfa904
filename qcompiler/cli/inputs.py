"""Tensors from files for the command line: arrays and folders of images."""

from __future__ import annotations

import io
import math
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.storage.reading import check_regular, machine_memory, read_file

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
"""File name suffixes of images."""

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0,), (1.0,)),
    "signed": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean to subtract from pixels in [0, 1], and standard deviation to divide by; `signed` gives [-1, 1]."""


TYPES = {"float": torch.float32, "int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8, "bool": torch.bool}
"""Element types of example inputs by name."""
EXAMPLES = 2
"""Samples of example inputs. Not 1, because torch treats sizes of 1 specially."""
_SHAPE = re.compile(r"(?P<sizes>[0-9]{1,9}(,[0-9]{1,9})*)?(:(?P<type>\w+))?")


def example_inputs(shapes: Iterable[str]) -> tuple[Tensor, ...]:
    """Example inputs of given sizes: normal numbers by a fixed seed, and zeros for integers.

    Args:
        shapes: Sizes of one sample of each input, and its type if it has no float32: `3,224,224`, `16:int64`.

    Raises:
        InputError: A text is something else, or the tensor exceeds the memory of this machine.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for text in shapes:
        parts = _SHAPE.fullmatch(text)
        name = "" if parts is None else parts["type"] or "float"
        if parts is None or name not in TYPES or not text:
            raise InputError(
                f"--input-shape is {text!r}",
                expected=f"sizes without the batch, such as 3,224,224, and a type after a colon: {', '.join(TYPES)}",
            )
        sizes = (EXAMPLES, *(int(size) for size in (parts["sizes"] or "").split(",") if size))
        if 0 in sizes:
            raise InputError(f"--input-shape is {text!r}, which has no elements", expected="sizes of at least 1")
        _check_bytes(math.prod(sizes) * TYPES[name].itemsize, f"--input-shape {text}")
        is_float = TYPES[name].is_floating_point
        found.append(torch.randn(sizes, generator=generator) if is_float else torch.zeros(sizes, dtype=TYPES[name]))
    return tuple(found)


def load_tensors(path: Path) -> tuple[Tensor, ...]:
    """The arrays of a file, in file order. No code in the file is run.

    Args:
        path: File `.npz`, `.npy` or `.safetensors`, or `.pt` and `.pth` with tensors only.

    Raises:
        InputError: The file is missing, unreadable or of another kind, holds objects other than numeric arrays, or
            exceeds the memory of this machine.
    """
    readers = {".npz": _zip_of_arrays, ".npy": _array, ".safetensors": _safetensors, ".pt": _pickle, ".pth": _pickle}
    if path.suffix not in readers:
        raise InputError(
            f"the file {path.name!r} has an unknown type",
            expected=".npz, .npy, .safetensors or .pt; for calibration also a folder of images",
        )
    data = read_file(path, InputError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # readers warn of old formats, which still load
            found = readers[path.suffix](data, str(path))
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path} does not fit into memory", fix="Use fewer samples.") from None
    except Exception as error:  # noqa: BLE001  # on a broken file each reader raises its own type: struct.error, ...
        reason = " ".join(str(error).partition("\n")[0].split())[:200]
        raise InputError(f"{path} cannot be read: {reason}", fix="Write the file again.") from None
    for index, tensor in enumerate(found):
        _check_tensor(tensor, f"{path}, tensor {index}")
    return found


def _zip_of_arrays(data: bytes, where: str) -> tuple[Tensor, ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        _check_bytes(sum(info.file_size for info in infos), where)
        return tuple(tensor for info in infos for tensor in _array(archive.read(info), f"{where}, {info.filename}"))


def _array(data: bytes, where: str) -> tuple[Tensor, ...]:
    # Check the header first: np.load allocates the memory that the header declares before reading the data.
    header = np.lib.format.read_array_header_1_0 if data[6:7] == b"\1" else np.lib.format.read_array_header_2_0
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version in ((1, 0), (2, 0)):
        shape, _, dtype = header(stream)
        if math.prod(shape) * dtype.itemsize > len(data):
            raise InputError(f"the header declares {math.prod(shape)} elements, but the file is shorter", where=where)
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype.kind not in "biuf":
        raise InputError(f"the array has the type {array.dtype}", where=where, expected="an array of numbers")
    return (torch.from_numpy(np.asarray(array, array.dtype.newbyteorder("="))),)


def _safetensors(data: bytes, where: str) -> tuple[Tensor, ...]:
    return tuple(load_safetensors(data).values())


def _pickle(data: bytes, where: str) -> tuple[Tensor, ...]:
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_bytes(sum(info.file_size for info in archive.infolist()), where)
    try:
        item = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")  # noqa: TID251  # runs no code
    except Exception:  # noqa: BLE001  # the reader raises many types
        # torch's own message may recommend weights_only=False, which lets the file run code.
        found = f"{where} is damaged, or contains objects other than tensors"
        raise InputError(found, expected="one or more tensors") from None
    items = list(item.values()) if isinstance(item, dict) else item
    items = items if isinstance(items, tuple | list) else [items]
    if not all(isinstance(x, Tensor) for x in items):
        raise InputError(f"{where} contains objects other than tensors", expected="one or more tensors")
    return tuple(items)


def _check_bytes(count: int, where: str) -> None:
    if count > machine_memory():
        raise InputError(f"{where} needs {count} bytes", expected="less than the memory of this machine")


def _check_tensor(tensor: Tensor, where: str) -> None:
    """Refuse a tensor that is not a plain array of real numbers."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        kind = "complex" if tensor.is_complex() else f"of layout {tensor.layout} and type {tensor.dtype}"
        raise InputError(f"the tensor is {kind}", where=where, expected="a dense tensor of real numbers")
    _check_bytes(tensor.numel() * tensor.element_size(), where)  # a stride of 0 stores fewer bytes than the tensor has


def batches(tensors: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    """Split the samples of `tensors` into batches of `size`; one tuple of arguments per batch."""
    count = min((len(x) for x in tensors if x.dim()), default=0)
    return [tuple(x[start : start + size] for x in tensors) for start in range(0, count, size)]


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder and its subfolders, sorted by name, one batch at a time.

    Each image is resized (bilinear) to cover the model's input size and cropped at the centre.

    Args:
        folder: Folder with the images.
        shape: Channels, height and width of the model's input: 1 channel is grey, 3 are red, green and blue.
        normalize: One of `NORMALIZATIONS`.
        batch_size: Images per batch.

    Raises:
        InputError: The folder holds no image, or the model's input has neither 1 nor 3 channels.
    """

    folder: Path
    shape: tuple[int, int, int]
    normalize: str = "unit"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.shape[0] not in (1, 3):
            raise InputError(f"the input of the model has {self.shape[0]} channels", expected="1 (grey) or 3 (colour)")
        if not self.files:
            raise InputError(f"the folder {str(self.folder)!r} contains no images", expected=", ".join(IMAGES))

    @property
    def files(self) -> list[Path]:
        """Paths of the images, sorted by name."""
        try:
            found = (path for path in self.folder.rglob("*") if path.suffix.lower() in IMAGES)
            return sorted(path for path in found if not path.is_dir())
        except OSError as error:
            raise InputError(f"the folder {str(self.folder)!r} cannot be read: {error.strerror}") from None

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        """Yield batches, float32 [B, C, H, W]; each image is read when its batch is requested."""
        files = self.files
        for start in range(0, len(files), self.batch_size):
            yield (torch.stack([self._read(path) for path in files[start : start + self.batch_size]]),)

    def _read(self, path: Path) -> Tensor:
        try:
            from PIL import Image, ImageOps
        except ImportError:
            raise InputError("Pillow, which reads images, is not installed", fix="Run `pip install pillow`.") from None
        channels, height, width = self.shape
        try:
            check_regular(path.stat(), str(path), InputError)
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    fitted = ImageOps.fit(
                        image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BILINEAR
                    )
        except InputError:
            raise
        except Exception as error:  # each decoder raises its own type on a broken image
            reason = " ".join(str(error).split())
            raise InputError(f"the image {path} cannot be read: {reason}", fix="Remove or repair it.") from error
        pixels = torch.from_numpy(np.asarray(fitted, np.float32).reshape(height, width, channels).copy())
        mean, std = (torch.tensor(_spread(part, channels)) for part in NORMALIZATIONS[self.normalize])
        return ((pixels / 255.0 - mean) / std).permute(2, 0, 1).contiguous()


def _spread(values: Sequence[float], channels: int) -> list[float]:
    """One value per channel; a grey image uses the mean of the three values."""
    if len(values) in (1, channels):
        return list(values) * (channels // len(values))
    return [sum(values) / len(values)] * channels
