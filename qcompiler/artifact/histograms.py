"""Histograms of the worst tensors of an artifact, for its interactive report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.artifact.report import Page
from qcompiler.errors import InputError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import interpret
from qcompiler.ir.types import DType
from qcompiler.pages.markup import paragraph, section
from qcompiler.pages.plots import Histogram, Histograms
from qcompiler.program.program import Tensor as ProgramTensor
from qcompiler.validation.layers import QUANTIZED_NAME

__all__ = ["histograms"]

SHOWN = 12
"""Tensors with a histogram."""
BINS = 64


def histograms(page: Page, floating: Graph, inputs: Sequence[Tensor]) -> list[str]:
    """Sections with the histograms of the tensors with the lowest signal-to-noise ratio.

    Args:
        page: Content of the report.
        floating: Graph before quantizers were inserted.
        inputs: Flat float inputs.

    Returns:
        Markup; without matplotlib, a sentence that names the extra.
    """
    tensors = page.program.program.tensors
    worst = sorted((ratio, name) for name, ratio in page.sqnr.items() if name in tensors and tensors[name].scale)
    wanted = {name.removesuffix(QUANTIZED_NAME): (name, ratio) for ratio, name in worst[:SHOWN]}
    found: dict[str, Histogram] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        if value.name in wanted:
            name, ratio = wanted[value.name]
            found[value.name] = _histogram(name, f"{ratio:.1f} dB", tensor, tensors[name])

    with torch.no_grad():
        interpret(floating, list(inputs), floating.module.tensors, observe=observe)
    if not found:
        return []
    try:
        plot = Histograms([found[name] for name in wanted if name in found]).svg()
    except InputError as error:
        return [section("Histograms", paragraph(str(error)))]
    text = (
        "The numbers of the float model on the inputs of the compile, counted on a logarithmic axis; the worst tensors "
        "first. Dashed lines are the limits of the grid: numbers outside are clipped."
    )
    return [section("Histograms", paragraph(text), f'<div class="wide">{plot}</div>')]


def _histogram(name: str, note: str, x: Tensor, tensor: ProgramTensor) -> Histogram:
    """Counts of all finite elements, on an axis that also shows the limits of the grid."""
    low_code, high_code = DType(tensor.dtype).limits
    scale, zero = tensor.scale[0], tensor.zero_point[0]
    limits = scale * (low_code - zero), scale * (high_code - zero)
    finite = x[torch.isfinite(x)].float()
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else limits
    counts = torch.histc(finite, BINS, min=low, max=high) if high > low else torch.tensor([float(finite.numel())])
    return Histogram(name, [int(count) for count in counts], (low, high), limits, note)
