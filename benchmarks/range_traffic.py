"""`python -m benchmarks.range_traffic`: layers with a static and with a dynamic range, as emitted C, in one run.

With a static range a layer is the C that the compiler emits: accumulators become codes in registers. With a dynamic
range the same kernel writes its accumulators (32 bits) and keeps their smallest and largest; then they are read back,
quantized by the emitted code, and written again. Both give the same codes, which is checked. The ratio of the times of
one round is printed next to the ratio of bytes that `qcompiler.memory_movement` predicts. `--plot` draws the pictures
of the page.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import torch
import torchvision
from torch import nn

import qcompiler
from benchmarks.pages import PERFORMANCE, write_section
from qcompiler.analysis.traffic import Direction, Movement, Traffic
from qcompiler.backends.integer import c

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(__file__).with_suffix(".c")
IMAGES = ROOT / "docs" / "howto" / "images"
NETWORKS = {"resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}
SECTION = "range_traffic"
TARGET = "int8_dsp"
ROUNDS = 15
FLAGS = ("-std=c99", "-D_POSIX_C_SOURCE=200809L", "-O3", "-march=native", "-ffp-contract=off")


@dataclass(frozen=True)
class Shape:
    """The shape of a convolution with padding that keeps the size of the image.

    Args:
        network: Network with such a layer.
        inputs: Input channels.
        outputs: Output channels.
        kernel: Height and width of the window.
        size: Height and width of the image.
        depthwise: Whether each channel is a group.
    """

    network: str
    inputs: int
    outputs: int
    kernel: int
    size: int
    depthwise: bool = False

    def __str__(self) -> str:
        kind = "depthwise" if self.depthwise else f"{self.kernel}x{self.kernel}"
        return f"{kind}, {self.inputs} to {self.outputs}, {self.size}x{self.size}"

    def model(self) -> nn.Module:
        """The layer with random weights."""
        torch.manual_seed(0)
        groups = self.inputs if self.depthwise else 1
        padding = self.kernel // 2
        return nn.Conv2d(self.inputs, self.outputs, self.kernel, padding=padding, groups=groups, bias=False).eval()

    def example(self, samples: int = 1) -> torch.Tensor:
        """Random images."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(samples, self.inputs, self.size, self.size, generator=generator)


SHAPES = (
    Shape("ResNet-18", 64, 64, 3, 56),
    Shape("ResNet-18", 128, 128, 3, 28),
    Shape("ResNet-18", 256, 256, 3, 14),
    Shape("ResNet-18", 512, 512, 3, 7),
    Shape("MobileNetV2", 16, 96, 1, 112),
    Shape("MobileNetV2", 96, 96, 3, 112, depthwise=True),
    Shape("MobileNetV2", 24, 144, 1, 56),
    Shape("MobileNetV2", 144, 144, 3, 56, depthwise=True),
    Shape("MobileNetV2", 960, 960, 3, 7, depthwise=True),
    Shape("MobileNetV2", 160, 960, 1, 7),
)
"""Layers of the two networks, at 224x224, from many weights and small results to few weights and large results."""


def predicted(shape: Shape) -> Movement:
    """The bytes that the layer moves forward."""
    found = qcompiler.memory_movement(shape.model(), TARGET, example_inputs=shape.example())
    return found.of(Direction.FORWARD)[0]


_STORE = re.compile(r"const lanes made = (\w+)\(&with, sums \+ 2 \* i\);\s*store_pixels\([^;]*;")
_STORE_DEEP = re.compile(r"store_bytes\(y, (\w+)\(&with, sums\), some\);")
_CALL = re.compile(r"(\w+)\((t_\w+), (t_\w+), &(c_\w+)\);")

_SUMS = """
static int32_t wide[${OUTPUTS} + 4 * LANES];
static const int8_t *base;
static lanes least_sums, most_sums;

static inline void add_to_range(lanes sums)
{
    least_sums = V(min_epi32)(least_sums, sums);
    most_sums = V(max_epi32)(most_sums, sums);
}

static inline void store_sums(int32_t *first, int32_t *second, const lanes *sums, int32_t count)
{
    for (int32_t i = 0; i < (second ? 4 : 2); ++i) {
        int32_t *to = (i < 2 ? first : second) + i % 2 * LANES;
        const int32_t left = count - i % 2 * LANES;
        add_to_range(sums[i]);
        if (left >= LANES) {
            store_lanes(to, sums[i]);
        } else if (left > 0) {
            int32_t some[LANES];
            store_lanes(some, sums[i]);
            memcpy(to, some, (size_t)left * 4);
        }
    }
}

/* Sums in the order of interleave: four channels at a time. */
static inline void store_deep_sums(int32_t *to, const lanes *sums)
{
    int32_t all[4][LANES];
    for (int32_t i = 0; i < 4; ++i) {
        add_to_range(sums[i]);
        store_lanes(all[i], sums[i]);
    }
    for (int32_t at = 0; at < LANES; at += 4) {
        for (int32_t i = 0; i < 4; ++i) {
            _mm_storeu_si128((__m128i *)(to + 4 * at + 4 * i), _mm_loadu_si128((const __m128i *)(all[i] + at)));
        }
    }
}

static ${LANES_OF}_t prepared[${CHANNELS} / PANEL + 1];
"""


def source(files: Mapping[str, bytes], prefix: str, shape: Shape) -> str:
    """One C program: the emitted layer, the same layer with a dynamic range, and both timed in turns.

    Args:
        files: The emitted files.
        prefix: Name with which the emitted functions begin.
        shape: The layer.

    Raises:
        ValueError: The emitted kernel has another form than this program knows.
    """
    kernels, model, weights = (files[name].decode() for name in ("kernels.c", "model.c", "weights.c"))
    found = _CALL.search(model)
    stores = (_STORE_DEEP if shape.depthwise else _STORE).search(kernels)
    if found is None or stores is None:
        raise ValueError(f"the emitted C of {shape} has no vector kernel that this benchmark can change")
    kernel, y, x, constants = found.groups()
    begin = kernels.index(f"static void {kernel}_find(") if not shape.depthwise else kernels.index(f"{kernel}_prepare(")
    begin = kernels.rindex("\n#if defined(LANES)\n", 0, begin)
    plain = kernel.replace("_bytes_", "_channels_last_") + "_t"
    fields = {
        "OUTPUTS": str(shape.outputs * shape.size**2),
        "INPUTS": str(shape.inputs * shape.size**2),
        "CHANNELS": str(shape.outputs),
        "LANES_OF": stores[1],
        "KERNEL": kernel,
        "Y": y,
        "X": x,
        "CONSTANTS": constants,
        "CALL": f"{kernel}_t" if shape.depthwise else plain,
        "PLAIN": constants if shape.depthwise else f"{constants}.plain",
        "PREFIX": prefix,
    }
    if shape.depthwise:
        changed = _STORE_DEEP.sub("store_deep_sums(wide + (y - base), sums);", kernels[begin:])
    else:
        second = "i + 1 < n ? wide + (to_y - base) + call->out_channels : 0"
        changed = _STORE.sub(f"store_sums(wide + (to_y - base), {second}, sums + 2 * i, count);", kernels[begin:])
    changed = re.sub(rf"\b{kernel}(?!_t\b)", f"dynamic_{kernel}", changed)
    parts = [
        kernels,
        weights,
        model,
        Template(_SUMS).substitute(fields),
        changed,
        Template(SOURCE.read_text(encoding="utf-8")).substitute(fields),
    ]
    return "\n".join(parts)


def measured(shape: Shape, rounds: int) -> list[tuple[float, float]]:
    """Seconds of the layer with a static and with a dynamic range, round by round.

    Raises:
        CalledProcessError: The C does not compile, or both ranges give different codes.
    """
    images = shape.example(2)
    compiled = qcompiler.compile(shape.model(), TARGET, calibration_data=[images], effort="fast", verify="off")
    program = compiled.artifact.program
    assert program.program.memory is not None
    files = c.emit(program, "layer", program.program.memory)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        (folder / "both.c").write_text(source(files, "layer", shape), encoding="utf-8")
        subprocess.run([*c.find_compiler(), *FLAGS, "both.c", "-o", "both"], cwd=folder, check=True)
        shown = subprocess.run([str(folder / "both"), str(rounds)], check=True, capture_output=True, text=True).stdout
    return [(float(line.split()[0]), float(line.split()[1])) for line in shown.splitlines()]


@dataclass(frozen=True)
class Row:
    """One layer of the table.

    Args:
        shape: The layer.
        movement: Predicted bytes.
        seconds: Measured seconds with a static and with a dynamic range, by round.
    """

    shape: Shape
    movement: Movement
    seconds: Sequence[tuple[float, float]]

    def cells(self) -> list[str]:
        """The cells of the row."""
        ratio = statistics.median(dynamic / static for static, dynamic in self.seconds)
        static, dynamic = (statistics.median(column) for column in zip(*self.seconds, strict=True))
        rate = 2 * self.movement.accumulators / (dynamic - static) / 1e9 if dynamic > static else float("nan")
        return [
            self.shape.network,
            str(self.shape),
            f"{self.movement.static / 1024:.0f}",
            f"{self.movement.dynamic / 1024:.0f}",
            f"{self.movement.dynamic / self.movement.static:.2f}",
            f"{1e6 * static:.0f}",
            f"{1e6 * dynamic:.0f}",
            f"{ratio:.2f}",
            f"{rate:.1f}",
        ]


HEAD = (
    "network",
    "layer",
    "static KB",
    "dynamic KB",
    "ratio of bytes",
    "static, us",
    "dynamic, us",
    "ratio of times",
    "GB/s of the additional bytes",
)


def section(rows: Sequence[Row], compiler: str, processor: str) -> str:
    """The section of the page."""
    text = (
        "Made by `python -m benchmarks.range_traffic`: each layer as emitted C with a static range, and with a dynamic "
        "range, for which the same kernel writes 32-bit accumulators, keeps their range, and reads them back to "
        f"quantize them. Both give the same codes. One image, one thread, {len(rows[0].seconds)} rounds in turns, "
        f"medians of processor time; {compiler} with `-O3 -march=native` on {processor}. The ratio of bytes is that of "
        "`qcompiler.memory_movement`; the last column is the number of additional bytes divided by the additional "
        "time. Where computing takes longer than moving, as in 3x3 convolutions, a dynamic range costs this processor "
        "little; where the accumulators leave its caches, it costs up to as much as the bytes predict."
    )
    lines = ["## Static and dynamic ranges", "", text, "", f"| {' | '.join(HEAD)} |", "|---|---|" + "---:|" * 7]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return "\n".join(lines)


def traffic(network: str) -> Traffic:
    """The bytes that a network of torchvision moves for one image of 224x224."""
    model = getattr(torchvision.models, network)(weights=None).eval()
    return qcompiler.memory_movement(model, TARGET, example_inputs=torch.zeros(1, 3, 224, 224))


def plot(network: str) -> str:
    """The picture of the page: KB of the forward product by layer."""
    title = f"{NETWORKS[network]}, one image: KB moved forward by layer, {TARGET}"
    return traffic(network).plot(title)


def image(network: str) -> Path:
    """File of the picture of a network."""
    return IMAGES / f"traffic_{network}.svg"


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else "an unknown processor"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page; or draw."""
    parser = argparse.ArgumentParser(prog="benchmarks.range_traffic", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="others: no page")
    parser.add_argument("--plot", action="store_true", help="draw the pictures of the page instead")
    options = parser.parse_args(arguments)
    if options.plot:
        for network in NETWORKS:
            image(network).write_text(plot(network), encoding="utf-8")
            print(f"wrote {image(network).name}")
        return 0
    shown = subprocess.run([*c.find_compiler(), "--version"], check=True, capture_output=True, text=True).stdout
    rows = []
    for shape in SHAPES:
        rows.append(Row(shape, predicted(shape), measured(shape, options.rounds)))
        print(*rows[-1].cells(), sep="  ", flush=True)
    if options.rounds == ROUNDS:
        write_section(PERFORMANCE, SECTION, section(rows, shown.splitlines()[0], _processor()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
