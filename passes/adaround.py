"""Round each weight up or down, whichever way the layer's result changes least on data.

Rounding to nearest is best for each weight, not for their sum. Per output channel the squared error of a layer without
its activation is quadratic in the roundings, with the second moments of the layer's inputs as coefficients:

    E (w x - s q x^)^2        x: input of the float model, x^: of the model quantized so far

`quant.rounding_search` minimises it. Layers are taken in order, so that each one makes up for what those before it do
to its input; what is left of the mean goes into the bias. The weights become the real numbers that the codes stand for.

Source: Nagel et al. 2020, arXiv:2004.10568, section 3 (adaptive rounding, asymmetric reconstruction); Nagel et al.
2021, arXiv:2106.08295, section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import CalibrationError, InputError, PassError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.mac import pad_amounts
from qcompiler.ops.quantizers import grid, leaf_tensor
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.equalization import by_channels, groups_of, is_transposed, leaf_of, parameter_readers
from qcompiler.passes.two_models import Pair, run_both
from qcompiler.quant.affine import along_axis
from qcompiler.quant.rounding import round_float
from qcompiler.quant.rounding_search import round_to_data, rounding_error
from qcompiler.validation.contracts import THRESHOLDS, Contract


@dataclass(frozen=True)
class AdaRound(Pass):
    """Adaptive rounding of calibrated weights.

    Refuses: layers that share their weight, and rows of more than `largest` weights.

    Records, per run, how many layers were rounded and the error on data over that of rounding to nearest.

    Args:
        batches: Calibration batches that are used at most; all of what they are on the way is in memory at once.
        positions: Inputs of a layer that are looked at, at most: pixels of all images, drawn at random.
        largest: Most weights of an output channel: the moments of so many inputs are kept, squared.

    Raises:
        InputError: An option is out of range.
        PassError: There is no data.
    """

    name: ClassVar[str] = "adaround"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"weight-ranges"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"activation-ranges"})
    batches: int = 16
    positions: int = 32768
    largest: int = 8192

    def __post_init__(self) -> None:
        if min(self.batches, self.positions, self.largest) < 1:
            raise InputError(
                f"batches={self.batches}, positions={self.positions}, largest={self.largest}",
                expected="at least 1 each",
            )

    @property
    def contract(self) -> Contract:
        """The noise of the weights changes, for the better."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        if context.calibration is None:
            raise PassError("adaptive rounding needs data", fix="Give calibration_data, or leave the pass out.")
        batches = list(islice(iter(context.calibration), self.batches))
        if not batches:
            raise CalibrationError("the calibration data is empty", expected="at least one batch")
        rewriter = context.rewriter(graph)
        readers = parameter_readers(graph)
        ratios: list[float] = []

        def layer(node: Node, operands: Sequence[Pair], result: Pair) -> bool:
            reason = _refusal(node, readers, self.largest)
            if reason:
                rewriter.refuse(node, reason)
                return False
            ratios.append(_round(node, operands[0], self.positions, context.seed, readers, rewriter))
            return True

        run_both(graph, batches, layer)
        mean = math.exp(sum(math.log(max(ratio, 1e-12)) for ratio in ratios) / len(ratios)) if ratios else 1.0
        context.record.metrics.update(layers=len(ratios), error_over_nearest=mean)


def _refusal(node: Node, readers: Mapping[Value, int], largest: int) -> str:
    maker = node.inputs[1].producer
    if maker is None or maker.op != "fake_quantize":
        return "its weight is not quantized"
    if readers[leaf_of(node.inputs[1])] > 1:
        return "its weight is that of another layer too"
    size = by_channels(node, leaf_tensor(leaf_of(node.inputs[1])))[0, 0].numel()
    return f"an output channel has {size} weights, more than {largest}" if size > largest else ""


def _round(node: Node, x: Pair, positions: int, seed: int, readers: Mapping[Value, int], rewriter: Rewriter) -> float:
    """Round the weight of a layer; its squared error over that of rounding to nearest."""
    leaf, quantizer = leaf_of(node.inputs[1]), cast("Node", node.inputs[1].producer)
    weight = leaf_tensor(leaf)
    params, spec = grid(quantizer)
    rows = by_channels(node, weight.to(torch.float64)).flatten(2)  # [groups, outputs, K]
    scales = along_axis(params.scale.to(torch.float64), weight.dim(), params.axis).expand(weight.shape)
    scale = by_channels(node, scales).flatten(2)[:, :, :1]
    generator = torch.Generator().manual_seed(seed)
    places = _places(node, x.real, positions, generator)
    real, quantized = (_patches(node, tensors, places) for tensors in (x.real, x.quantized))  # [groups, S, K]
    means = [part.mean(1, keepdim=True) for part in (real, quantized)]
    has_bias = len(node.inputs) > 2 and readers[leaf_of(node.inputs[2])] == 1
    if has_bias:  # it makes up for the means
        real, quantized = real - means[0], quantized - means[1]
    count = real.shape[1]
    codes = torch.empty_like(rows)
    errors = torch.zeros(2, dtype=torch.float64)
    for index in range(len(rows)):
        gram = quantized[index].T @ quantized[index] / count
        target = rows[index] @ (real[index].T @ quantized[index] / count)
        codes[index] = round_to_data(rows[index], scale[index], spec.qmin, spec.qmax, gram, target)
        constant = (rows[index] @ real[index].T).square().mean(1)
        nearest = round_float(rows[index] / scale[index], spec.rounding).clamp(spec.qmin, spec.qmax)
        for position, choice in enumerate((codes[index], nearest)):
            errors[position] += (rounding_error(choice, scale[index], gram, target) + constant).sum()
    rounded = codes * scale
    rewriter.write_tensor(leaf, _like_weight(node, rounded, weight).to(weight.dtype))
    if has_bias:
        shift = (rows @ means[0].transpose(1, 2) - rounded @ means[1].transpose(1, 2)).reshape(-1)
        bias = leaf_of(node.inputs[2])
        tensor = leaf_tensor(bias)
        rewriter.write_tensor(bias, (tensor.to(torch.float64) + shift).to(tensor.dtype))
    ratio = float(errors[0] / errors[1]) if float(errors[1]) > 0 else 1.0
    rewriter.note(node, f"its weights are rounded to data: {ratio:.3f} of the squared error of rounding to nearest")
    return ratio


def _like_weight(node: Node, rows: Tensor, weight: Tensor) -> Tensor:
    """[groups, outputs, K] back in the shape of the weight."""
    split = by_channels(node, weight)
    shaped = rows.reshape(split.shape)
    return (shaped.transpose(1, 2) if is_transposed(node) else shaped).reshape(weight.shape)


def _places(node: Node, tensors: Sequence[Tensor], most: int, generator: torch.Generator) -> list[Tensor]:
    """For each batch, which outputs of the layer are looked at: positions in the order N, D, H, W, at random."""
    sizes = []
    for tensor in tensors:
        spatial = _output_size(node, tensor)
        sizes.append(len(tensor) * math.prod(spatial) if node.op != "linear" else tensor[..., 0].numel())
    total = sum(sizes)
    chosen = torch.randperm(total, generator=generator)[:most].sort().values if total > most else torch.arange(total)
    begins = torch.tensor([0, *sizes]).cumsum(0)
    return [
        chosen[(chosen >= begin) & (chosen < end)] - begin
        for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)
    ]


def _output_size(node: Node, x: Tensor) -> list[int]:
    if node.op == "linear":
        return list(x.shape[1:-1])
    padded = _prepared(node, x[:1])
    kernel, stride, dilation = _geometry(node)
    return [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]


def _geometry(node: Node) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and dilation of the convolution over the prepared input."""
    kernel = [int(size) for size in leaf_tensor(leaf_of(node.inputs[1])).shape[2:]]
    stride, dilation = (list(cast("tuple[int, ...]", node.attributes[key])) for key in ("stride", "dilation"))
    return kernel, [1] * len(kernel) if is_transposed(node) else stride, dilation


def _prepared(node: Node, x: Tensor) -> Tensor:
    """The input with its padding; that of a transposed convolution as an ordinary one reads it, zeros in between."""
    padding = cast("tuple[int, ...]", node.attributes["padding"])
    rank = x.dim() - 2
    if not is_transposed(node):
        return functional.pad(x, pad_amounts(padding[:rank], padding[rank:]))
    kernel, _, dilation = _geometry(node)
    stride, extra = (cast("tuple[int, ...]", node.attributes[key]) for key in ("stride", "output_padding"))
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    begins = [d * (k - 1) - p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    ends = [begin + more for begin, more in zip(begins, extra, strict=True)]
    return functional.pad(spread, pad_amounts(begins, ends))


def _patches(node: Node, tensors: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """What the chosen outputs read, float64 [groups, S, K], in the order of the weights of a row."""
    groups = groups_of(node)
    found = []
    for x, chosen in zip(tensors, places, strict=True):
        if not len(chosen):
            continue
        if node.op == "linear":
            found.append(x.reshape(-1, x.shape[-1])[chosen].unsqueeze(0))
            continue
        size = _output_size(node, x)
        padded = _prepared(node, x)
        kernel, stride, dilation = _geometry(node)
        pixels = math.prod(size)
        sample, place = chosen // pixels, chosen % pixels
        taps = torch.stack(torch.meshgrid(*(torch.arange(k) for k in kernel), indexing="ij")).flatten(1)  # [rank, taps]
        if is_transposed(node):
            taps = torch.tensor(kernel).unsqueeze(1) - 1 - taps
        at = torch.zeros(len(chosen), taps.shape[1], dtype=torch.int64)
        for axis in range(len(size)):
            inner = math.prod(size[axis + 1 :])
            index = (place // inner % size[axis]).unsqueeze(1) * stride[axis] + taps[axis] * dilation[axis]
            at = at * padded.shape[2 + axis] + index
        flat = padded.flatten(2)[sample]  # [S, C, L]
        read = flat.gather(2, at.unsqueeze(1).expand(-1, flat.shape[1], -1))  # [S, C, taps]
        found.append(read.reshape(len(chosen), groups, -1).transpose(0, 1))
    return torch.cat(found, 1).to(torch.float64)
