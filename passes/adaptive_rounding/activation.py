"""Refine rounded rows with the activation after the layer, which weights the errors of its input.

A closed ReLU hides errors of its input. Around a rounding found without the activation, with y^ the input of the
activation f, e = f(y^) - f(y) its error and m = f'(y^), the error after f is again quadratic in each row:

    E (e + m (d - d0) x^)^2    G = E[m^2 x^ x^T]    c = E[e m x^] - G d0        d = s q - w, d0: current d

but with a different G for each row, so only rows that are short enough are refined (`PRODUCTS`). f' is the mean slope
over the usual error of y^ on both sides, so a nearly open activation counts. The bias, if any, absorbs the mean error.
A row is changed if its error after f falls.

Source: Nagel et al. 2020, arXiv:2004.10568, equation 25 (the activation as a part of the reconstruction); the
Gauss-Newton form is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.calibration.processes import Processes
from qcompiler.ir.graph import Node
from qcompiler.ir.interpret import evaluate_node
from qcompiler.ir.registry import Trait
from qcompiler.ops import SCALED, scaled_values
from qcompiler.ops.quantizers import channel_bounds, clamps_channels, leaf_tensor
from qcompiler.passes.base import only_user
from qcompiler.quant.affine import along_axis
from qcompiler.quant.rounding_search import Moments, round_to_data

MOMENTS = 1 << 25
"""Maximum number of elements in the moments of all rows: 128 MiB."""

PRODUCTS = 1 << 36
"""Maximum number of multiplications for the moments of all rows; larger problems use fewer samples, at least
`FEWEST`."""

PATCHES = 1 << 26
"""Maximum number of elements in the samples of one model: 256 MiB."""

FEWEST, MOST = 4096, 8192
"""Minimum and sufficient number of samples for the moments of a row."""

PLAIN = 0.25
"""Weight of an error before the activation relative to one after, because other data may open closed activations."""

ROUNDS = 2
SHORT = 32
"""Length up to which products of all pairs of inputs are computed once for all rows; longer rows are separate."""

CHUNK = 1 << 22
"""Number of products of two inputs in memory at a time."""

Activation = Callable[[Tensor, int], Tensor]
"""A function of a tensor and its channel axis."""

Batch = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Following:
    """The bias and activation after the product of a layer.

    Args:
        bias: float32 [groups, 1, R]; zeros without a bias.
        function: The activation; None without an activation.
        has_bias: Whether the bias may be changed.
    """

    bias: Tensor
    function: Activation | None
    has_bias: bool

    def apply(self, x: Tensor) -> Tensor:
        """The activation of [groups, S, R]."""
        if self.function is None:
            return x
        wide = x.transpose(0, 1)
        return self.function(wide.flatten(1), 1).reshape(wide.shape).transpose(0, 1)


def activation_after(node: Node) -> Activation | None:
    """The activation that is the only user of a layer, if any."""
    reader = only_user(node)
    if reader is not None and clamps_channels(reader):
        low, high = channel_bounds(reader)
        return lambda x, axis: x.clamp(along_axis(low, x.dim(), axis), along_axis(high, x.dim(), axis))
    if reader is not None and reader.op == SCALED:
        scale = leaf_tensor(reader.inputs[1])
        return lambda x, axis: scaled_values(reader, x, scale, axis)
    if reader is None or len(reader.inputs) != 1:
        return None
    if not reader.definition.has(Trait.ACTIVATION, Trait.UNARY):
        return None
    return lambda x, axis: evaluate_node(reader, [x])[0]


def samples_for(rows: Tensor, count: int) -> int:
    """Number of the `count` samples to use; 0 if the rows are too long."""
    groups, outputs, length = rows.shape
    if groups * outputs * length**2 > MOMENTS or groups * length * FEWEST > PATCHES:
        return 0
    affordable = min(count, MOST, PATCHES // (groups * length), PRODUCTS // (groups * outputs * length**2))
    return affordable if affordable >= min(count, FEWEST) else 0


def refine(
    processes: Processes,
    batches: int,
    batch: Batch,
    following: Following,
    rows: Tensor,
    scale: Tensor,
    limits: tuple[int, int],
    codes: Tensor,
    shift: Tensor,
) -> tuple[Tensor, Tensor]:
    """Change rows so that the error after the activation falls.

    Args:
        processes: Processes of the compile.
        batches: Number of batches.
        batch: Function that returns the patches of a batch in both models, float32 [groups, S, K].
        following: Bias and activation.
        rows: Weights w, float32 [groups, R, K].
        scale: Step of each weight, float32 [groups, R, 1] or [groups, R, K].
        limits: Lowest and highest code.
        codes: Codes found without the activation, float32 [groups, R, K].
        shift: Bias correction so far, float64 [groups, R].

    Returns:
        Codes and shift.
    """
    if following.function is None:
        return codes, shift
    # The few samples are kept in memory: reading them repeatedly would take longer than all other work.
    kept = {index: batch(index) for index in range(batches) if processes.owns(index)}
    batch = kept.__getitem__
    errors, width = _errors(processes, batches, batch, following, rows, scale, codes, shift)
    for _ in range(ROUNDS):
        moments = _moments(processes, batches, batch, following, rows, scale, codes, shift, width)
        weights, slopes, first, gram, drift = moments
        before = (codes * scale - rows).double()
        if following.has_bias:
            centre = first / weights.clamp(min=1e-30).unsqueeze(2)
            gram = gram - first.unsqueeze(3) * centre.unsqueeze(2)
            drift = drift - slopes.unsqueeze(2) * centre
        along = (gram @ before.unsqueeze(3)).squeeze(3)
        groups, outputs, length = rows.shape
        alone = (groups * outputs, 1, length)
        found = round_to_data(
            rows.reshape(alone),
            scale.reshape(groups * outputs, 1, -1),
            *limits,
            Moments.of(gram.reshape(-1, length, length)),
            (drift - along).to(torch.float32).reshape(alone),
            start=codes.reshape(alone),
        ).reshape(rows.shape)
        moved = (found * scale - rows).double() - before
        change = torch.zeros_like(shift)
        if following.has_bias:
            change = -(slopes + (first * moved).sum(2)) / weights.clamp(min=1e-30)
            change = torch.where(weights > 1e-6, change, 0.0)
        tried, _ = _errors(processes, batches, batch, following, rows, scale, found, shift + change)
        better = tried < errors
        errors = torch.where(better, tried, errors)
        codes = torch.where(better.unsqueeze(2), found, codes)
        shift = torch.where(better, shift + change, shift)
    return codes, shift


def _outputs(
    patches: tuple[Tensor, Tensor], following: Following, rows: Tensor, scale: Tensor, codes: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs of the activation in both models, [groups, S, R]."""
    real, quantized = patches
    bias = following.bias + shift.unsqueeze(1).to(torch.float32)
    return real @ rows.transpose(1, 2) + following.bias, quantized @ (codes * scale).transpose(1, 2) + bias


def _errors(
    processes: Processes,
    batches: int,
    batch: Batch,
    following: Following,
    rows: Tensor,
    scale: Tensor,
    codes: Tensor,
    shift: Tensor,
) -> tuple[Tensor, Tensor]:
    """Squared error after the activation, float64 [groups, R], and the usual error before it, [groups, 1, R]."""

    def part(index: int) -> list[Tensor]:
        y, found = _outputs(batch(index), following, rows, scale, codes, shift)
        lost = following.apply(found) - following.apply(y)
        count = torch.tensor(y.shape[1], dtype=torch.float64)
        return [count, *(x.square().sum(1, dtype=torch.float64) for x in (lost, found - y))]

    count, errors, widths = processes.sum(batches, part)
    return errors + PLAIN * widths, (widths / count).sqrt().clamp(min=1e-12).unsqueeze(1).to(torch.float32)


def _moments(
    processes: Processes,
    batches: int,
    batch: Batch,
    following: Following,
    rows: Tensor,
    scale: Tensor,
    codes: Tensor,
    shift: Tensor,
    width: Tensor,
) -> list[Tensor]:
    """Means of m^2 and e m, [groups, R]; of m^2 x^, [.., K]; of m^2 x^ x^T, [.., K, K]; of e m x^. With `PLAIN`."""

    def part(index: int) -> list[Tensor]:
        patches = batch(index)
        y, found = _outputs(patches, following, rows, scale, codes, shift)
        slope = (following.apply(found + width) - following.apply(found - width)) / (2.0 * width)
        weight = slope.square() + PLAIN
        pull = slope * (following.apply(found) - following.apply(y)) + PLAIN * (found - y)
        x = patches[1]
        products = _weighted_products(weight, x)
        count = torch.tensor(x.shape[1], dtype=torch.float64)
        parts = [weight.sum(1), pull.sum(1), weight.transpose(1, 2) @ x, products, pull.transpose(1, 2) @ x]
        return [count, *(item.to(torch.float64) for item in parts)]

    count, *totals = processes.sum(batches, part)
    weights, slopes, first, gram, drift = (total / count for total in totals)
    return [weights, slopes, first, gram, drift]


def _weighted_products(weight: Tensor, x: Tensor) -> Tensor:
    """Sums of weight x x^T over samples: [groups, S, R] and [groups, S, K] to [groups, R, K, K]."""
    groups, _, length = x.shape
    outputs = weight.shape[2]
    if groups == 1 and length > SHORT:
        rows = [(x[0] * weight[0, :, row, None]).T @ x[0] for row in range(outputs)]
        return torch.stack(rows).unsqueeze(0)
    total = x.new_zeros(groups, outputs, length * length)
    size = max(1, CHUNK // (groups * length * length))
    for w, part in zip(weight.split(size, 1), x.split(size, 1), strict=True):
        products = (part.unsqueeze(3) * part.unsqueeze(2)).flatten(2)
        total += w.transpose(1, 2) @ products
    return total.reshape(groups, outputs, length, length)
