"""`python -m benchmarks.zoo`: every convolutional family of torchvision through the whole compiler, as a table.

Weights are random, batch-norm statistics settled by a few forward passes, images are noise: what is shown is that the
forms agree and what quantization costs a network of that shape, not the accuracy of a trained one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import qcompiler
from qcompiler.backends import onnx_qdq
from qcompiler.ir import tree
from qcompiler.validation.metrics import sqnr_db

TABLE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "zoo.md"
TARGET = "int8_dsp_per_channel"
BATCH, PASSES = 4, 3

_CLASSIFIERS = torchvision.models
_SEGMENTATION = torchvision.models.segmentation


def _classifier(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(_CLASSIFIERS, name)(weights=None)


def _inception(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(_CLASSIFIERS, name)(init_weights=False, aux_logits=False)


def _segmenter(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(_SEGMENTATION, name)(weights=None, weights_backbone=None)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (_classifier("alexnet"), 96),
    "vgg11_bn": (_classifier("vgg11_bn"), 64),
    "resnet18": (_classifier("resnet18"), 64),
    "resnext50_32x4d": (_classifier("resnext50_32x4d"), 64),
    "wide_resnet50_2": (_classifier("wide_resnet50_2"), 64),
    "squeezenet1_1": (_classifier("squeezenet1_1"), 64),
    "densenet121": (_classifier("densenet121"), 64),
    "mobilenet_v2": (_classifier("mobilenet_v2"), 64),
    "mobilenet_v3_small": (_classifier("mobilenet_v3_small"), 64),
    "efficientnet_b0": (_classifier("efficientnet_b0"), 64),
    "efficientnet_v2_s": (_classifier("efficientnet_v2_s"), 64),
    "shufflenet_v2_x0_5": (_classifier("shufflenet_v2_x0_5"), 64),
    "mnasnet0_5": (_classifier("mnasnet0_5"), 64),
    "regnet_x_400mf": (_classifier("regnet_x_400mf"), 64),
    "regnet_y_400mf": (_classifier("regnet_y_400mf"), 64),
    "googlenet": (_inception("googlenet"), 64),
    "inception_v3": (_inception("inception_v3"), 96),
    "convnext_tiny": (_classifier("convnext_tiny"), 64),
    "fcn_resnet50": (_segmenter("fcn_resnet50"), 64),
    "deeplabv3_mobilenet_v3_large": (_segmenter("deeplabv3_mobilenet_v3_large"), 64),
    "lraspp_mobilenet_v3_large": (_segmenter("lraspp_mobilenet_v3_large"), 64),
}
"""The smallest member of each family, and the side of the images."""


@dataclass(frozen=True)
class Row:
    """The results of one network.

    Args:
        name: Name of the network.
        size: Side of the images, pixels.
        tensors: Tensors compared with the exact simulation.
        differing: Elements in which the integer program differs from it.
        sqnr: Signal-to-noise ratio of the integer program against the float model, dB.
        runtime: Signal-to-noise ratio of the ONNX file in a default session, dB.
        plain: Signal-to-noise ratio of the ONNX file with all optimization off, dB.
        layer: Elements per million that differ in ONNX Runtime, layer by layer.
    """

    name: str
    size: int
    tensors: int
    differing: int
    sqnr: float
    runtime: float
    plain: float
    layer: float

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.size} | {self.tensors} | {self.differing} | {self.sqnr:.1f} | {self.runtime:.1f} "
            f"| {self.plain:.1f} | {self.layer:.0f} |"
        )


def row(name: str) -> Row:
    """Compile one network and compare it with itself."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.train()
        for _ in range(PASSES):
            model(torch.randn(BATCH, 3, size, size, generator=generator))
        model.eval()
        x = torch.randn(BATCH, 3, size, size, generator=generator)
        compiled = qcompiler.compile(model, TARGET, calibration_data=[x])
        expected = _first(model(x))
    report = compiled.verification
    assert report is not None
    file = compiled.artifact.forms["ONNX"].files["model.onnx"]
    program, layers = report.form("integer program"), report.form("onnxruntime, layer by layer")
    runtime, plain = (
        torch.from_numpy(onnx_qdq.run(file, [x.numpy()], optimize=optimize)[0]) for optimize in (True, False)
    )
    return Row(
        name,
        size,
        program.tensors,
        program.differing,
        sqnr_db(expected, _first(compiled.run(x))),
        sqnr_db(expected, runtime),
        sqnr_db(expected, plain),
        1e6 * layers.differing / layers.elements,
    )


def _first(result: object) -> Tensor:
    return tree.flatten(result)[0][0]


def page(rows: list[Row]) -> str:
    """The table as a page."""
    head = ("network", "pixels", "tensors", "differing", "SQNR", "ONNX Runtime", "unoptimised", "layers")
    text = f"""# Networks of torchvision

Made by `python -m benchmarks.zoo` for `{TARGET}`: random weights, batch-norm statistics settled by {PASSES} forward
passes, {BATCH} images of noise. *Differing*: elements in which the integer program differs from the exact simulation.
*SQNR*, dB: of the first output against the float model, for the integer program and for the ONNX file in a default
session and with all optimisation off; the last two must agree within 0.5 dB, or the file means something else in one of
them. *Layers*: elements per million that differ in ONNX Runtime, by one step, when each layer is fed the same integers.
"""
    return "\n".join([text, f"| {' | '.join(head)} |", "|---" * len(head) + "|", *map(str, rows), ""])


def main() -> int:
    """Write the table, or print the rows that are named."""
    parser = argparse.ArgumentParser(prog="benchmarks.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="all, written to docs/reference/zoo.md, when none is named")
    names = parser.parse_args().names
    rows = []
    for name in names or NETWORKS:
        rows.append(row(name))
        sys.stdout.write(f"{rows[-1]}\n")
        sys.stdout.flush()
    if not names:
        TABLE.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
