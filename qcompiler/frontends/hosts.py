"""Models whose ends the host computes: detectors with anchors, box decoding and non-maximum suppression.

    images ─► before ─► network ─► after ─► [{"boxes", "labels", "scores"}, ...]
              host      compiled    host

The results of a detector have as many rows as boxes are found, so that no graph of fixed shapes computes them, and box
coordinates need more than 8 bits. The host computes both ends in float, by the code of the model itself. The network
between them is a module, whose artifact names the steps of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.ir.diagnostics import Diagnostic

__all__ = ["HostSplit", "HostedNetwork", "split_host"]

DETECTION = "torchvision.models.detection."
TWO_STAGES = "GeneralizedRCNN"
ONE_STAGE = ("SSD", "RetinaNet", "FCOS")
BEFORE = ("resizing, normalization and batching of images",)
AFTER = ("anchor boxes", "box decoding", "non-maximum suppression")


class HostedNetwork(nn.Module):
    """The part of a model between the steps of the host. A compile removes this wrapper and notes its steps.

    Args:
        network: The part itself.
        before: Names of the steps before it, for people.
        after: Names of the steps after it.
        code: The class or function that computes these steps.
    """

    def __init__(self, network: nn.Module, before: Sequence[str], after: Sequence[str], code: object) -> None:
        super().__init__()
        self.network = network
        named: Any = code if hasattr(code, "__qualname__") else type(code)
        place = f"{named.__module__}:{named.__qualname__}"
        self.steps = Diagnostic("host-steps", {"before": list(before), "after": list(after)}, place)
        """The steps of the host, which manifest and report of an artifact name."""

    def forward(self, x: Tensor) -> object:
        """The results of the network."""
        return self.network(x)


class Runs(Protocol):
    """A compiled model or an artifact."""

    def run(self, *inputs: object, **named: object) -> object:
        """Results of the network."""
        ...


@dataclass(frozen=True)
class HostSplit:
    """A model in three parts: `after(network(x), context)`, where `x, context = before(images)`.

    Args:
        network: The part to compile.
        before: The caller's images as the input of the network, and anything that `after` needs of them.
        after: Outputs of the network, in its own nesting, and the context, as the results of the model.
    """

    network: HostedNetwork
    before: Callable[[Any], tuple[Tensor, object]]
    after: Callable[[Any, Any], object]

    def __call__(self, images: object) -> object:
        """The results of the float model."""
        x, context = self.before(images)
        with torch.no_grad():
            return self.after(self.network(x), context)

    def run(self, compiled: Runs, images: object) -> object:
        """The results with the network of a compiled model, or of an artifact.

        Args:
            compiled: The return value of `qcompiler.compile(self.network, ...)` or `qcompiler.load(folder)`.
            images: Images as the model takes them.
        """
        x, context = self.before(images)
        return self.after(compiled.run(x), context)

    def batches(self, data: Iterable[object]) -> Iterator[Tensor]:
        """Calibration data for the network, from batches of images as the model takes them."""
        return (self.before(images)[0] for images in data)


def split_host(
    model: nn.Module,
    images: object,
    *,
    before: Callable[[Any], tuple[Tensor, object]] | None = None,
    after: Callable[[Any, Any], object] | None = None,
    steps_before: Sequence[str] = (),
    steps_after: Sequence[str] = (),
) -> HostSplit:
    """Split a detector into a network to compile and steps that the host computes.

    Args:
        model: An SSD, RetinaNet or FCOS of torchvision. Any other module is a network itself, with `after` as the code
            of the host.
        images: Example images as the model takes them: for torchvision's detectors a list of [3, H, W].
        before: For other modules: images to the input of the network and a context. None: the images are the input.
        after: For other modules: outputs of the network and the context to results.
        steps_before: Names of the steps of `before`.
        steps_after: Names of the steps of `after`, such as "box decoding".

    Returns:
        The parts. For a detector of torchvision they together give its results on `images`, bit by bit.

    Raises:
        InputError: The model is in training mode, `after` or its names are missing, or the class of the model changes
            the computation of torchvision's class.
        UnsupportedError: The detector has two stages.
    """
    name = type(model).__name__
    if model.training:
        raise InputError(f"{name} is in training mode", fix="Call model.eval() first.")
    kinds = {kind.__name__: kind for kind in type(model).__mro__ if kind.__module__.startswith(DETECTION)}
    if TWO_STAGES in kinds:
        raise UnsupportedError(
            f"{name} has two stages: the second reads boxes that the first finds",
            where=name,
            fix="Use a detector of one stage, or compile backbone and heads as models of their own.",
        )
    if after is not None:
        if not steps_after or (before is not None and not steps_before):
            raise InputError("the steps of the host have no names", fix='Pass steps_after=("box decoding", ...).')
        network = HostedNetwork(model, steps_before, steps_after, after).eval()
        return HostSplit(network, before or _as_it_is, after)
    kind: Any = next((kinds[found] for found in ONE_STAGE if found in kinds), None)
    if kind is None:
        raise InputError(
            f"nothing is known of the host part of {name}",
            expected="an SSD, RetinaNet or FCOS of torchvision, or after=",
            fix="Pass the network as the model, and the code that follows it as after=.",
        )
    found = _Torchvision(model, images, kind).split
    # Random networks may find no box at all, so that equal results alone do not show an overridden forward.
    if type(model).forward is not kind.forward or not _equal(found(images), _results(model, images)):
        raise InputError(f"{name} does not compute the same as {kind.__name__} of torchvision", fix="Pass after=.")
    return found


def _as_it_is(images: Tensor) -> tuple[Tensor, object]:
    return images, None


def _results(model: nn.Module, images: object) -> object:
    with torch.no_grad():
        return model(images)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    return isinstance(b, list) and len(cast("list[object]", a)) == len(b) and all(map(_equal, cast("Any", a), b))


class BackboneAndHeads(nn.Module):
    """Backbone and heads of a detector of torchvision: [N, 3, H, W] -> {"cls_logits": [N, A, K], ...}."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of the heads by name."""
        found: dict[str, Tensor] = self.head(_levels(self.backbone(images)))
        return found


def _levels(features: Any) -> list[Tensor]:
    """The feature maps of a backbone."""
    return [features] if isinstance(features, Tensor) else list(features.values())


class _Torchvision:
    """A detector of torchvision in parts, for images that its transform brings to the size of the examples.

    Args:
        model: The detector.
        images: Example images.
        kind: torchvision's class of the detector.
    """

    def __init__(self, model: Any, images: object, kind: type) -> None:
        self.model, self.by_level = model, kind.__name__ != "SSD"
        self.size: tuple[int, ...] = ()
        x, _ = self.before(images)
        self.size = tuple(x.shape[-2:])
        with torch.no_grad():
            self.maps = [tuple(item.shape[-2:]) for item in _levels(model.backbone(x))]
        network = HostedNetwork(BackboneAndHeads(model), BEFORE, AFTER, kind).eval()
        self.split = HostSplit(network, self.before, self.after)

    def before(self, images: Any) -> tuple[Tensor, object]:
        """The batch [N, 3, H, W], and the batch of torchvision with the original sizes."""
        original = [tuple(image.shape[-2:]) for image in images]
        with torch.no_grad():
            batch, _ = self.model.transform(list(images), None)
        found = tuple(batch.tensors.shape[-2:])
        if self.size and found != self.size:
            raise InputError(
                f"the model's transform makes images of {found[0]}x{found[1]} pixels",
                expected=f"{self.size[0]}x{self.size[1]}, as in the example images",
                fix=f"Set model.transform.fixed_size = {self.size} before split_host.",
            )
        return batch.tensors, (batch, original)

    def after(self, outputs: dict[str, Tensor], context: tuple[Any, list[tuple[int, int]]]) -> object:
        """Boxes, labels and scores of each image, in pixels of the original image."""
        batch, original = context
        like = next(iter(outputs.values()))
        # The generator of anchors reads sizes, type and device of the feature maps only.
        maps = [like.new_empty(len(original), 1, *size) for size in self.maps]
        heads: Any = dict(outputs)
        with torch.no_grad():
            anchors = self.model.anchor_generator(batch, maps)
            if self.by_level:
                cells = [height * width for height, width in self.maps]
                counts = [cell * (like.shape[1] // sum(cells)) for cell in cells]
                heads = {name: list(item.split(counts, dim=1)) for name, item in heads.items()}
                anchors = [list(item.split(counts)) for item in anchors]
            found = self.model.postprocess_detections(heads, anchors, batch.image_sizes)
            return self.model.transform.postprocess(found, batch.image_sizes, original)
