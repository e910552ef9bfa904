"""Networks of torchvision and timm with the weights of a checkpoint on disk."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.imagenet.data import SHOWN, Preprocessing
from qcompiler.errors import InputError

__all__ = ["CheckpointError", "Network", "NetworkError", "load_network", "read_checkpoint"]

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network")
"""Keys under which training programs keep the weights."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of DataParallel, DistributedDataParallel and torch.compile."""
PORTED = ("googlenet", "inception_v3")
"""Networks of torchvision whose published weights expect an input that the network itself rescales."""
OLD_NAME = re.compile(r"\.(norm|conv)\.([12])\.")
"""Names of DenseNet in published checkpoints; torchvision joins word and number."""


class NetworkError(InputError):
    """The network is unknown, or its package is not installed."""


class CheckpointError(InputError):
    """The checkpoint is missing or unreadable, or does not fit the network."""


@dataclass(frozen=True)
class Network:
    """A trained network.

    Args:
        name: Name with its package, such as `torchvision:resnet18`.
        model: The network, in eval mode.
        digest: Hash of the weights and buffers, 16 hexadecimal digits.
        preprocessing: The way of an image to its input.
        outputs: Number of classes.
    """

    name: str
    model: nn.Module
    digest: str
    preprocessing: Preprocessing
    outputs: int


def load_network(
    name: str,
    checkpoint: Path,
    *,
    outputs: int = 1000,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
) -> Network:
    """Build a network and load its weights.

    Args:
        name: `torchvision:NAME` or `timm:NAME`.
        checkpoint: File of weights: `.safetensors`, or a state dict of torch.
        outputs: Number of classes.
        options: Further arguments of the network, such as `width_mult`.
        weights: Name of torchvision's weights whose preprocessing applies; None: found by the file name, or default.
        resize: Length of the shorter side in place of that of the preprocessing, pixels.
        crop: Side of the crop in place of that of the preprocessing, pixels.

    Raises:
        NetworkError: The package or the network is unknown, or an option does not fit.
        CheckpointError: The checkpoint is missing or unreadable, or does not fit.
    """
    package, _, short = name.partition(":")
    builders = {"torchvision": _torchvision, "timm": _timm}
    if package not in builders or not short:
        raise NetworkError(f"the network is {name!r}", expected="torchvision:NAME or timm:NAME")
    state = read_checkpoint(checkpoint)
    model, preprocessing = builders[package](short, outputs, dict(options or {}), checkpoint.name, weights)
    _load(model, state, name, checkpoint)
    model.eval()
    if resize is not None or crop is not None:
        source = f"{preprocessing.source}, with --resize or --crop"
        size = (resize or preprocessing.resize, crop or preprocessing.crop)
        preprocessing = replace(preprocessing, resize=size[0], crop=size[1], source=source)
    digest = hashlib.sha256(repr((name, sorted((options or {}).items()))).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return Network(name, model, digest.hexdigest()[:16], preprocessing, outputs)


def _torchvision(
    name: str, outputs: int, options: dict[str, Any], file: str, weights: str | None
) -> tuple[nn.Module, Preprocessing]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise NetworkError(f"torchvision has no network {name!r}", fix=_near(name, known))
    if name in PORTED:
        options = {"init_weights": False, "transform_input": True} | options
    model = _built(lambda: models.get_model(name, weights=None, num_classes=outputs, **options), name)
    entries = models.get_model_weights(name)
    if weights is not None and weights not in entries.__members__:
        raise NetworkError(f"{name} has no weights {weights!r}", expected=", ".join(entries.__members__))
    named = next((item for item in entries if item.url.endswith(f"/{file}")), None)
    entry = entries[weights] if weights is not None else named or entries.DEFAULT
    preset = entry.transforms()
    why = "" if weights is not None else ", by the file name" if named else ", the default: the file name tells nothing"
    return model, Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        source=f"torchvision's {entry.name}{why}",
    )


def _timm(
    name: str, outputs: int, options: dict[str, Any], file: str, weights: str | None
) -> tuple[nn.Module, Preprocessing]:
    timm, data = _package("timm"), _package("timm.data")
    if weights is not None:
        raise NetworkError(f"--weights {weights} is for networks of torchvision", fix="Write timm:NAME.TAG instead.")
    if not timm.is_model(name.partition(".")[0]):
        raise NetworkError(f"timm has no network {name!r}", fix=_near(name, timm.list_models()))
    model = _built(lambda: timm.create_model(name, pretrained=False, num_classes=outputs, **options), name)
    found = data.resolve_data_config({}, model=model)
    crop, mode = found["input_size"][-1], found.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        raise NetworkError(f"{name} has the crop mode {mode!r}", expected="center or squash")
    return model, Preprocessing(
        resize=int(crop / found["crop_pct"]),
        crop=crop,
        interpolation="bicubic" if found["interpolation"] == "random" else found["interpolation"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        squash=mode == "squash",
        source="timm's resolve_data_config",
    )


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        fix = "Run `pip install timm`, or use a network of torchvision."
        raise NetworkError(f"the package timm cannot be imported: {error}", fix=fix) from None


def _built(make: Any, name: str) -> nn.Module:  # noqa: ANN401  # a function of another package
    try:
        model: nn.Module = make()
    except (TypeError, ValueError, RuntimeError) as error:
        raise NetworkError(f"{name} cannot be built: {error}", fix="Change --network-options.") from None
    return model


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=SHOWN)
    return f"Did you mean {', '.join(near)}?" if near else f"It has {len(known)} networks, such as {known[0]}."


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights of a file by name, without wrappers and prefixes. No code in the file is run.

    Raises:
        CheckpointError: The file is missing, unreadable, or contains no weights.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}", fix="Give the path of a file with --checkpoint.")
    try:
        if path.suffix == ".safetensors":
            found: object = load_file(path)
        else:
            # Training programs often store their arguments next to the weights; a Namespace is plain data.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(path, map_location="cpu", weights_only=True)  # runs no code
    except Exception:  # noqa: BLE001  # the readers raise many types, and recommend to run the code of the file
        found = f"the checkpoint {path} is damaged, or contains objects other than tensors and numbers"
        raise CheckpointError(found, fix="Save the state dict of the network alone.") from None
    for _ in range(2):  # a wrapper in a wrapper
        inner = next((found[key] for key in WRAPPERS if isinstance(found, Mapping) and key in found), None)
        found = inner if isinstance(inner, Mapping) else found
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        expected = f"a state dict, or one under {', '.join(WRAPPERS)}"
        raise CheckpointError(f"the checkpoint {path} contains no weights", expected=expected)
    for prefix in PREFIXES * 2:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _load(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    own = model.state_dict()
    state = {key if key in own else OLD_NAME.sub(r".\1\2.", key): tensor for key, tensor in state.items()}
    # Checkpoints of torch before version 1.0 have no counters, and evaluation does not read them.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {list(state[key].shape)} in the file and {list(own[key].shape)} in the network"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = list(_problems(missing, unexpected, shapes))
    if problems:
        fix = "Check --network, --classes and --network-options."
        raise CheckpointError(f"{path} does not fit {name}: {'; '.join(problems)}", fix=fix)
    model.load_state_dict(state, strict=False)


def _problems(missing: list[str], unexpected: list[str], shapes: list[str]) -> Iterator[str]:
    for word, found in (("missing", missing), ("unexpected", unexpected), ("wrong shapes", shapes)):
        if found:
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            yield f"{word}: {', '.join(found[:SHOWN])}{more}"
